"""What of a store goes into a bundle: results and masks of runs, their records, and the weights if they are wanted.

From the keys that a record names to its results, from these to the weights that they start from and the trainings that
gave those, back to the initialisation; and to the same trainings in the second order of the data. Of weights that are
left out it is told which training gives them: see `lab.training.execute`.
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
from ticketry.lab.store.second_orders import in_second_order
from ticketry.lab.store.similar import by_similarity
from ticketry.lab.store.store import FORMAT, NUMERICS, Store
from ticketry.records.campaign import read_campaign_record

_KEY = re.compile(r"\b([0-9a-f]{64})@([0-9]{1,18})\b")
_TOLD = 5
"""How many names an error tells."""
_OF_MASKS = ("masks", "plans")
"""Kinds of answers that tell which mask was made."""


def pack(store: Store, names: Sequence[str], target: Path, *, weights: bool = False, masks: bool = True) -> Contents:
    """Write a bundle of runs, with the evidence that is about them; without names, of all that is in the store.

    Args:
        names: of runs, and of campaigns with their scale (``stabilizing-cpu``), which stand for all of their runs.
        target: the file.
        weights: whether the weights go with it: some hundred times as large.
        masks: whether masks go with it, and what each network trained under one gave. Else the records alone tell of
            those, and there are results of dense networks.

    Raises:
        StoreError: for a name that is not there, for weights without masks, and whatever is damaged.
    """
    if weights and not masks:
        raise StoreError("weights go with the masks that they were trained under: leave masks in, or weights out")
    chosen = _Chosen(store, tuple(names), masks)
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
    names: tuple[str, ...]
    masks: bool = True
    results: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._campaigns = self._read_campaigns()
        self.runs = self._named_runs()
        self.records = list(self._records())
        if self.names:
            keys = {key for _, _, values in self.records for key in keys_of(values)}
            self._follow({trajectory for trajectory, _ in keys})
        else:
            self._follow({path.parent.name for path in self.store.paths.result_files()})
        if not self.masks:  # what is left starts from an initialisation: dense networks, in both orders of the data
            self.results = {key: record for key, record in self.results.items() if not record["segment"].get("blobs")}

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

    def _read_campaigns(self) -> dict[str, tuple[Mapping[str, Any], set[str]]]:
        """Of each campaign the record, and the names of its runs."""
        read: dict[str, tuple[Mapping[str, Any], set[str]]] = {}
        for path in self.store.paths.campaign_records():
            values = self.store.read(path) or {}
            runs = {name for run in read_campaign_record(values, str(path)).runs for name in run.runs}
            read[path.stem] = (values, runs)
        return read

    def _named_runs(self) -> tuple[str, ...]:
        """The runs that are named, and those of the campaigns that are; all if nothing is named."""
        known = {path.parent.name for path in self.store.paths.run_records()}
        found: dict[str, None] = {}
        for name in self.names:
            if name not in known and name not in self._campaigns:
                raise StoreError(
                    f"there is no run or campaign {name} in {self.store.paths.root}: {self._told(known)}. What is"
                    " trained of a run that has not ended goes into a bundle of all, for which none is named"
                )
            if not (runs := {name} if name in known else self._campaigns[name][1]):
                raise StoreError(f"nothing is done of the campaign {name} in {self.store.paths.root}")
            if gone := sorted(runs - known):
                raise StoreError(
                    f"the campaign {name} rests on the run {gone[0]}, which is not in {self.store.paths.root}: run the"
                    " campaign again, which trains what is missing"
                )
            found |= dict.fromkeys(sorted(runs))
        return tuple(found if self.names else sorted(known))

    def _told(self, runs: set[str]) -> str:
        campaigns = f", and the campaigns {', '.join(sorted(self._campaigns))}" if self._campaigns else ""
        more = ", …" if len(runs) > _TOLD else ""
        return f"it has {', '.join(sorted(runs)[:_TOLD]) or 'no runs'}{more}{campaigns}"

    def _records(self) -> Iterator[tuple[Any, str, Mapping[str, Any]]]:
        for name in self.runs:
            yield "run", name, self.store.read(self.store.paths.record("run", name)) or {}
        for path in self.store.paths.evidence_records():
            values = self.store.read(path) or {}
            if not self.names or {values.get("run"), *_texts(values.get("runs"))} & set(self.runs):
                yield "evidence", path.stem, values
        for name, (told, runs) in self._campaigns.items():
            # One that nothing was done of is told anew by its file, wherever it is.
            if not self.names or name in self.names or (runs and runs <= set(self.runs)):
                yield "campaign", name, told

    # -- results -----------------------------------------------------------------------------------------------------

    def _follow(self, trajectories: Iterable[str]) -> None:
        """Take all results of these trajectories, and of those that gave what they start from."""
        waiting, seen = sorted(trajectories), set[str]()
        while waiting:
            trajectory = waiting.pop()
            if trajectory in seen:
                continue
            seen.add(trajectory)
            second: str | None = None
            for step in self.store.stored_steps(trajectory):
                record = self.store.trained(trajectory, step)
                if record is None:
                    continue
                self.results[trajectory, step] = record
                waiting += [
                    self._makers[blob][0] for blob in record["segment"].get("blobs", ()) if blob in self._makers
                ]
                second = in_second_order(record)
            if second is not None:
                waiting.append(second)  # what it measures luck by: no result is there if it was not trained

    @cached_property
    def _makers(self) -> dict[str, tuple[str, int]]:
        """Digest of weights -> the first result of the store that gave them."""
        found: dict[str, tuple[str, int]] = {}
        for path in filter(lambda path: path.stem.isdecimal(), self.store.paths.result_files()):
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
            if self.masks and kind in _OF_MASKS and (known := self.store.memo(kind, path.stem)):
                blobs = {known[name] for name in ("mask", "plan") if name in known}
                if not self.names or blobs & masks:
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
