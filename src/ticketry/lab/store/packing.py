"""What of a store goes into a bundle: results and masks of runs, their records, and the weights if they are wanted.

From the keys that a record names to its results, from these to the weights that they start from and the trainings that
gave those, back to the initialisation. Of weights that are left out it is told which training gives them: see
`lab.training.remake`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import content_of
from ticketry.lab.store.bundle_file import Contents, Source, write_bundle
from ticketry.lab.store.files import digest_of, explained, sealed_bytes
from ticketry.lab.store.similar import by_similarity
from ticketry.lab.store.store import FORMAT, NUMERICS, Store
from ticketry.records.campaign import read_campaign_record

_KEY = re.compile(r"\b([0-9a-f]{64})@([0-9]{1,18})\b")
_OF_MASKS = ("masks", "plans")
"""Kinds of answers that tell which mask was made."""


def pack(store: Store, runs: Sequence[str], target: Path, *, weights: bool = False) -> Contents:
    """Write a bundle of runs, with the evidence that is about them; without runs, of all that is in the store.

    Args:
        target: the file.
        weights: whether the weights go with it: some hundred times as large.

    Raises:
        StoreError: for a run that is not there, and whatever is damaged.
    """
    chosen = _Chosen(store, tuple(runs))
    return write_bundle(
        target,
        list(chosen.sources(weights)),
        store=FORMAT,
        numerics=NUMERICS,
        weights=weights,
        runs=[name for kind, name, _ in chosen.records if kind == "run"],
    )


def outputs(record: Mapping[str, Any]) -> set[str]:
    """Digests of the weights and states that a result gave."""
    found = (record["model"], record["training"], *record["variants"].values())
    return {digest for digest in found if digest}


@dataclass
class _Chosen:
    store: Store
    runs: tuple[str, ...]
    results: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = list(self._records())
        if self.runs:
            keys = {key for _, _, values in self.records for key in keys_of(values)}
            self._follow({trajectory for trajectory, _ in keys})
        else:
            self._follow({path.parent.name for path in self.store.paths.result_files()})

    def sources(self, weights: bool) -> Iterator[Source]:
        """The parts, in the order in which they are to be unpacked: what is needed before what needs it."""
        made = self._made()
        started = {
            digest
            for record in self.results.values()
            for digest in (_start(record).get("state"), _start(record).get("optimizer"))
            if digest
        }
        states = {*made, *started}
        needed = {blob for record in self.results.values() for blob in record["segment"].get("blobs", ())}
        answers = list(self._answers(needed - states))
        masks = (needed - states).union(*(blobs for _, _, blobs in answers)) - states
        kept = {digest for digest in states if self.store.has(digest)} if weights else set()
        for digest in by_similarity(masks, self.store.get_bytes):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest))
        for digest in sorted(kept - masks):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest), whole=True)
        for digest in sorted(states - kept):
            trajectory, step = made.get(digest, (None, 0))
            told = {"trajectory": trajectory, "step": step}
            yield Source("memo", ("left-out", digest), partial(sealed_bytes, told))
        for path, kind, _ in answers:
            yield Source("memo", (kind, path.stem), partial(_file, path))
        for trajectory, step in sorted(self.results):
            yield Source("result", (trajectory, str(step)), partial(_file, self.store.paths.result(trajectory, step)))
        for kind, name, _ in sorted(self.records, key=lambda one: one[:2]):
            yield Source(kind, (name,), partial(_file, self.store.paths.record(kind, name)))

    # -- records -----------------------------------------------------------------------------------------------------

    def _records(self) -> Iterator[tuple[Any, str, Mapping[str, Any]]]:
        known = {path.parent.name: path for path in self.store.paths.run_records()}
        for name in self.runs or sorted(known):
            if name not in known:
                told = ", ".join(sorted(known)[:5]) or "none"
                raise StoreError(f"there is no run {name} in {self.store.paths.root}: it has {told}")
            yield "run", name, self.store.read(known[name]) or {}
        for path in self.store.paths.evidence_records():
            values = self.store.read(path) or {}
            if not self.runs or {values.get("run"), *_texts(values.get("runs"))} & set(self.runs):
                yield "evidence", path.stem, values

        for path in self.store.paths.campaign_records():
            values = self.store.read(path) or {}
            campaign = read_campaign_record(values, str(path))
            if not self.runs or set(self.runs) >= {name for run in campaign.runs for name in run.runs}:
                yield "campaign", path.stem, values

    # -- results -----------------------------------------------------------------------------------------------------

    def _follow(self, trajectories: Iterable[str]) -> None:
        """Take all results of these trajectories, and of those that gave what they start from."""
        waiting, seen = sorted(trajectories), set[str]()
        while waiting:
            trajectory = waiting.pop()
            if trajectory in seen:
                continue
            seen.add(trajectory)
            for step in self.store.stored_steps(trajectory):
                record = self.store.trained(trajectory, step)
                if record is None:
                    continue
                self.results[trajectory, step] = record
                waiting += [
                    self._makers[blob][0] for blob in record["segment"].get("blobs", ()) if blob in self._makers
                ]

    @cached_property
    def _makers(self) -> dict[str, tuple[str, int]]:
        """Digest of weights -> the first result of the store that gave them."""
        found: dict[str, tuple[str, int]] = {}
        for path in self.store.paths.result_files():
            trajectory, step = path.parent.name, int(path.stem)
            for digest in outputs(
                self.store.trained(trajectory, step) or {"model": "", "training": "", "variants": {}}
            ):
                found[digest] = min(found.get(digest, (trajectory, step)), (trajectory, step))
        return found

    def _made(self) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for key, record in sorted(self.results.items()):
            for digest in outputs(record):
                found.setdefault(digest, key)
        return found

    # -- answers -----------------------------------------------------------------------------------------------------

    def _answers(self, masks: set[str]) -> Iterator[tuple[Path, str, set[str]]]:
        """Answers that tell how these masks came about, of the tasks how large they are; without runs, all of masks."""
        tasks = {
            digest_of(record["segment"]["task"]) for record in self.results.values() if "task" in record["segment"]
        }
        for path in self.store.paths.memo_files():
            kind = path.parent.parent.name
            if kind in ("sizes", "prices") and path.stem in tasks:
                yield path, kind, set()
            if kind in _OF_MASKS and (known := self.store.memo(kind, path.stem)):
                blobs = {known[name] for name in ("mask", "plan") if name in known}
                if not self.runs or blobs & masks:
                    yield path, kind, blobs


def _start(record: Mapping[str, Any]) -> Mapping[str, Any]:
    start = record["segment"].get("start")
    return start if isinstance(start, dict) else {}


def keys_of(values: Mapping[str, Any]) -> set[tuple[str, int]]:
    """The keys of results, trajectory and step, that a record names."""
    return {(found[1], int(found[2])) for found in _KEY.finditer(json.dumps(values))}


def _texts(value: object) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _file(path: Path) -> bytes:
    with explained(path, "read"):
        return content_of(path)
