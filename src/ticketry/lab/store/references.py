"""References of a store's records: results, the weights they start from, the trainings that gave those weights.

Also pairs of trainings that differ only in the order of the data: the second one measures the influence of the order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry_engine.support.seeds import mix

_KEY = re.compile(r"\b([0-9a-f]{64})@([0-9]{1,18})\b")
Key = tuple[str, int]
"""Trajectory and step of a result."""


def keys_of(values: Mapping[str, Any]) -> set[Key]:
    """Return the keys of results that a record names."""
    return {(found[1], int(found[2])) for found in _KEY.finditer(json.dumps(values))}


def outputs(record: Mapping[str, Any]) -> set[str]:
    """Return the digests of the weights and states that a result has."""
    found = (record["model"], record["training"], *record["variants"].values())
    return {digest for digest in found if digest}


def blobs_of(record: Mapping[str, Any]) -> set[str]:
    """Return the digests that a result or a remembered value refers to."""
    segment, variants = (record.get(name) for name in ("segment", "variants"))
    blobs = segment.get("blobs") if isinstance(segment, dict) else None
    found = [record.get(name) for name in ("model", "training", "mask", "plan")]
    found += list(variants.values()) if isinstance(variants, dict) else []
    found += blobs if isinstance(blobs, list) else []
    return {digest for digest in found if isinstance(digest, str)}


class Results:
    """All results of a store, read once.

    Args:
        paths: the store.
        read: reads a result; an empty one refers to nothing.
    """

    def __init__(self, paths: Paths, read: Callable[[Path], Mapping[str, Any]]) -> None:
        self.records = {path: read(path) for path in paths.result_files() if path.stem.isdecimal()}
        self.of_trajectory: dict[str, dict[int, Path]] = {}
        """Trajectory -> step -> file."""
        for path in sorted(self.records, key=lambda path: (path.parent.name, int(path.stem))):
            self.of_trajectory.setdefault(path.parent.name, {})[int(path.stem)] = path
        self.makers: dict[str, Key] = {}
        """Digest of weights -> the first result that has them."""
        for trajectory, files in self.of_trajectory.items():
            for step, path in files.items():
                if {"model", "training", "variants"} <= self.records[path].keys():
                    for digest in outputs(self.records[path]):
                        self.makers.setdefault(digest, (trajectory, step))

    def follow(
        self,
        trajectories: Iterable[str],
        starts: Callable[[Mapping[str, Any]], Iterable[str]],
        more: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
    ) -> list[Path]:
        """Return all results of these trajectories, and of those that gave what they start from.

        Args:
            trajectories: where to begin.
            starts: returns the digests of a result whose makers are followed.
            more: returns a further trajectory to follow from a result, or None.
        """
        waiting, seen = sorted(set(trajectories)), set[str]()
        found: list[Path] = []
        while waiting:
            trajectory = waiting.pop()
            if trajectory in seen:
                continue
            seen.add(trajectory)
            for path in self.of_trajectory.get(trajectory, {}).values():
                found.append(path)
                waiting += [self.makers[blob][0] for blob in starts(self.records[path]) if blob in self.makers]
                if other := more(self.records[path]):
                    waiting.append(other)
        return found


# -- the second order of the data --------------------------------------------------------------------------------------


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
