"""Follow the references between a store's records, from results to the trainings that gave their initial weights.

A training may be repeated with another order of the data only; the second training shows the effect of the order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ticketry.lab.store.paths import Paths
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry_engine.support.seeds import mix_seeds

_KEY = re.compile(r"\b([0-9a-f]{64})@([0-9]{1,18})\b")
Key = tuple[str, int]
"""Key of a training (its trajectory), and a step; together they identify a result."""


def result_keys_in(values: Mapping[str, Any]) -> set[Key]:
    """Return the keys of all results that a record mentions."""
    return {(found[1], int(found[2])) for found in _KEY.finditer(json.dumps(values))}


def output_digests(record: Mapping[str, Any]) -> set[str]:
    """Return the digests of all tensors that a training produced: weights, optimiser state, states of variants."""
    found = (record["model"], record["training"], *record["variants"].values())
    return {digest for digest in found if digest}


def referenced_digests(record: Mapping[str, Any]) -> set[str]:
    """Return all digests of tensors and masks to which a result or a stored value refers."""
    segment, variants = (record.get(name) for name in ("segment", "variants"))
    blobs = segment.get("blobs") if isinstance(segment, dict) else None
    found = [record.get(name) for name in ("model", "training", "mask", "plan")]
    found += list(variants.values()) if isinstance(variants, dict) else []
    found += blobs if isinstance(blobs, list) else []
    return {digest for digest in found if isinstance(digest, str)}


class Results:
    """Reads all results of a store and finds the results to which they refer; `read` returns the result in a file."""

    def __init__(self, paths: Paths, read: Callable[[Path], Mapping[str, Any]]) -> None:
        self.records = {path: read(path) for path in paths.result_files() if path.stem.isdecimal()}
        self.of_trajectory: dict[str, dict[int, Path]] = {}
        """Path of each result, by trajectory and step."""
        for path in sorted(self.records, key=lambda path: (path.parent.name, int(path.stem))):
            self.of_trajectory.setdefault(path.parent.name, {})[int(path.stem)] = path
        self.makers: dict[str, Key] = {}
        """Trajectory and step of the first result with some weights, by the digest of the weights."""
        for trajectory, files in self.of_trajectory.items():
            for step, path in files.items():
                if {"model", "training", "variants"} <= self.records[path].keys():
                    for digest in output_digests(self.records[path]):
                        self.makers.setdefault(digest, (trajectory, step))

    def select_with_references(
        self,
        trajectories: Iterable[str],
        starts: Callable[[Mapping[str, Any]], Iterable[str]],
        more: Callable[[Mapping[str, Any]], str | None] = lambda _: None,
    ) -> list[Path]:
        """Return the files of all results of `trajectories`, and of all trainings to which these results refer.

        `starts` returns digests of tensors to which a result refers; the trainings that produced these tensors are
        included. `more` returns the key of another training to include with the result, or None.
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


# -- the second data order ---------------------------------------------------------------------------------------------


def seed_of_second_data_order(seed: int) -> int:
    """Return the seed of another order of the training data, derived from the `seed` of the first order."""
    return mix_seeds(seed, "second order")


def trajectory_in_second_data_order(result: Mapping[str, Any]) -> str | None:
    """Return the key of the same training in another data order; None if `result` does not describe its training."""
    segment = result["segment"]
    if not isinstance(segment, dict) or not isinstance(segment.get("order_seed"), int):
        return None
    described = {name: value for name, value in segment.items() if name not in ("blobs", "last")}
    return digest_of(
        {"numerics": NUMERICS, **described, "order_seed": seed_of_second_data_order(segment["order_seed"])}
    )


def find_result_in_second_data_order(store: Store, key: str) -> tuple[str, dict[str, Any]] | None:
    """Return key and result of the training that repeats training `key` in another data order; None if unmeasured."""
    trajectory, _, step = key.partition("@")
    first = store.load_valid_result(trajectory, int(step)) if step.isdigit() else None
    second = trajectory_in_second_data_order(first) if first else None
    result = store.load_valid_result(second, int(step)) if second else None
    return (f"{second}@{step}", result) if result and result["metrics"] else None
