"""Write a bundle again with the masks of one replicate per search: `python research/trim_bundle.py IN OUT`.

Records and metrics of all replicates stay, so verdicts, tables and pages do not change. The tickets of a search's first
replicate keep their masks and results, with everything that their training starts from. Tickets of other replicates
are trained again when something needs them. Runs of one search with other seeds (blocks of replicates) count once.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ticketry.lab.store.bundle import Bundle, Part, Source, write_bundle
from ticketry.lab.store.references import output_digests, trajectory_in_second_data_order

Key = tuple[str, str]


def trim(source: Path, target: Path) -> tuple[int, int]:
    """Write the trimmed bundle to `target`; return the sizes before and after."""
    with Bundle(source) as bundle:
        contents, parts = bundle.contents, list(bundle.parts())
    results: dict[Key, dict[str, Any]] = {
        (part.name[0], part.name[1]): json.loads(data) for part, data in parts if part.kind == "result"
    }
    retained = _retained(results, [json.loads(data) for part, data in parts if part.kind == "run"])
    states = {digest for key in retained for digest in (*output_digests(results[key]), *_starts(results[key]))}
    blobs = {blob for key in retained for blob in results[key]["segment"].get("blobs", ())}

    def is_retained(part: Part, data: bytes) -> bool:
        if part.kind == "blob":
            return part.name[0] in blobs
        if part.kind == "result":
            return (part.name[0], part.name[1]) in retained
        if part.kind == "memo" and part.name[0] == "left-out":
            return part.name[1] in states
        if part.kind == "memo" and part.name[0] in ("masks", "plans"):
            values = json.loads(data)
            return {values[name] for name in ("mask", "plan") if name in values} <= blobs
        return True

    chosen = [
        Source(part.kind, part.name, lambda data=data: data, whole=part.coding == "whole")  # type: ignore[misc]
        for part, data in parts
        if is_retained(part, data)
    ]
    write_bundle(
        target,
        chosen,
        store=contents.store,
        numerics=contents.numerics,
        weights=contents.weights,
        runs=contents.runs,
    )
    return source.stat().st_size, target.stat().st_size


def _retained(results: Mapping[Key, dict[str, Any]], runs: Iterable[dict[str, Any]]) -> set[Key]:
    """Trainings from an initialisation, those of each run's first replicate, and what these start from."""
    makers: dict[str, Key] = {}
    for key in sorted(results):
        for digest in output_digests(results[key]):
            makers.setdefault(digest, key)
    waiting = [key for key, record in results.items() if not record["segment"].get("blobs")]
    for run in {_search(run): run for run in sorted(runs, key=_seed, reverse=True)}.values():
        points = [point for point in run["points"] if point.get("key")]
        first = min((point["replicate"] for point in points), default=0)
        waiting += [_key(point["key"]) for point in points if point["replicate"] == first]
    found: set[Key] = set()
    while waiting:
        key = waiting.pop()
        if key in found or key not in results:
            continue
        found.add(key)
        waiting += [makers[blob] for blob in results[key]["segment"].get("blobs", ()) if blob in makers]
        waiting += [other for other in results if other[0] == key[0]]  # other states of the same training
        if second := trajectory_in_second_data_order(results[key]):
            waiting += [other for other in results if other[0] == second]
    return found


def _search(run: Mapping[str, Any]) -> str:
    """What was searched: the file that repeats the run, without its seeds and number of replicates."""
    return re.sub(r"(?m)^(replicates|initialisation|order|mask) = .*$", "", run["config"])


def _seed(run: Mapping[str, Any]) -> int:
    found = re.search(r"(?m)^initialisation = (\d+)$", run["config"])
    return int(found[1]) if found else 0


def _key(text: str) -> Key:
    trajectory, _, step = text.partition("@")
    return trajectory, step


def _starts(record: Mapping[str, Any]) -> set[str]:
    start = record["segment"].get("start")
    return {start[name] for name in ("state", "optimizer") if start.get(name)} if isinstance(start, dict) else set()


if __name__ == "__main__":
    before, after = trim(Path(sys.argv[1]), Path(sys.argv[2]))
    print(f"{sys.argv[1]}: {before / 1e6:.2f} -> {after / 1e6:.2f} MB")
