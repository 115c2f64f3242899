"""Trainings that differ in nothing but the order of the data: which of a store's is whose second one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ticketry.lab.store.files import digest_of
from ticketry.lab.store.store import NUMERICS, Store
from ticketry_engine.support.seeds import mix


def second_order(seed: int) -> int:
    """The seed of the second order of the data, of the first one's."""
    return mix(seed, "second order")


def in_second_order(result: Mapping[str, Any]) -> str | None:
    """The trajectory of the same training in the second order of the data, of a result that tells its segment."""
    segment = result["segment"]
    if not isinstance(segment, dict) or not isinstance(segment.get("order_seed"), int):
        return None
    told = {name: value for name, value in segment.items() if name not in ("blobs", "last")}
    return digest_of({"numerics": NUMERICS, **told, "order_seed": second_order(segment["order_seed"])})


def measured_second(store: Store, key: str) -> tuple[str, dict[str, Any]] | None:
    """Of the segment of a key the one in the second order, if the store has its metrics: its key and its result."""
    trajectory, _, step = key.partition("@")
    first = store.trained(trajectory, int(step)) if step.isdigit() else None
    second = in_second_order(first) if first else None
    result = store.trained(second, int(step)) if second else None
    return (f"{second}@{step}", result) if result and result["metrics"] else None
