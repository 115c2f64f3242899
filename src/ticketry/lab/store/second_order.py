"""Pairs of trainings that differ only in the order of the data: the second one measures the influence of the order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry_engine.support.seeds import mix


def second_order(seed: int) -> int:
    """Return the seed of the second order of the data, given the seed of the first."""
    return mix(seed, "second order")


def in_second_order(result: Mapping[str, Any]) -> str | None:
    """Return the trajectory of the same training in the second order; None if the result does not describe it."""
    segment = result["segment"]
    if not isinstance(segment, dict) or not isinstance(segment.get("order_seed"), int):
        return None
    described = {name: value for name, value in segment.items() if name not in ("blobs", "last")}
    return digest_of({"numerics": NUMERICS, **described, "order_seed": second_order(segment["order_seed"])})


def measured_second(store: Store, key: str) -> tuple[str, dict[str, Any]] | None:
    """Return key and result of a segment in the second order, if the store has its metrics."""
    trajectory, _, step = key.partition("@")
    first = store.trained(trajectory, int(step)) if step.isdigit() else None
    second = in_second_order(first) if first else None
    result = store.trained(second, int(step)) if second else None
    return (f"{second}@{step}", result) if result and result["metrics"] else None
