"""Pack runs into a bundle: their records, results and masks, and optionally their weights.

The bundle contains the results to which a run's record refers, and the results of all trainings that gave the initial
weights of these, back to the initialisation. It also contains the same trainings with a second order of the data, if
they exist. For weights that are left out, the bundle says which training computes them again, see
`lab.training.execute`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import content_of
from ticketry.lab.store.bundle import Contents, Source, sort_by_similarity, write_bundle
from ticketry.lab.store.files import digest_of, explain_os_errors, read_sealed, sealed_bytes
from ticketry.lab.store.references import Key, Results, output_digests, result_keys_in, second_order_trajectory
from ticketry.lab.store.store import FORMAT, NUMERICS, Store
from ticketry.records.campaign import read_campaign_record

_GONE: dict[str, Any] = {"segment": {}}
"""Value in place of a result that another process has just deleted."""
_SHOWN = 5
"""Number of names in an error message."""
_OF_MASKS = ("masks", "plans")
"""Kinds of stored values that contain the digest of a mask."""


def pack(store: Store, names: Sequence[str], target: Path, *, weights: bool = False, masks: bool = True) -> Contents:
    """Write runs, and the evidence about them, into a bundle.

    Args:
        store: the store.
        names: names of runs. The name of a campaign with its scale (``stabilizing-cpu``) means all its runs. Without
            names, everything in the store is packed.
        target: the file to write.
        weights: whether to include weights; the bundle is then some hundred times as large.
        masks: whether to include masks, and the results of networks with masks. Without them the bundle contains the
            records, and the results of dense networks only.

    Raises:
        StoreError: for an unknown name, for weights without masks, and for damaged files.
    """
    if weights and not masks:
        raise StoreError("weights go with the masks that they were trained under: leave masks in, or weights out")
    selection = _Selection(store, names, masks)
    return write_bundle(
        target,
        list(selection.sources(weights)),
        store=FORMAT,
        numerics=NUMERICS,
        weights=weights,
        runs=[name for kind, name, _ in selection.records if kind == "run"],
    )


class _Selection:
    """Selects the records and results that go into a bundle."""

    def __init__(self, store: Store, names: Sequence[str], masks: bool) -> None:
        self.store, self.names, self.masks = store, tuple(names), masks
        self._campaigns = self._read_campaigns()
        self.runs = self._named_runs()
        self.records = list(self._select_records())
        known = Results(store.paths, lambda path: store.load_valid_result(path.parent.name, int(path.stem)) or _GONE)
        named = {trajectory for _, _, values in self.records for trajectory, _ in result_keys_in(values)}
        # A trajectory in the second order has no results if it was not trained.
        found = known.follow(named if self.names else known.of_trajectory, _input_digests, second_order_trajectory)
        records = {(path.parent.name, int(path.stem)): known.records[path] for path in found}
        self.results = {key: record for key, record in records.items() if record is not _GONE}
        if not self.masks:  # leaves what starts from an initialisation: dense networks, in both orders of the data
            self.results = {key: record for key, record in self.results.items() if not _input_digests(record)}

    def sources(self, weights: bool) -> Iterator[Source]:
        """Yield the parts of the bundle; a part comes after all parts to which it refers."""
        made: dict[str, Key] = {}
        started, needed = set[str](), set[str]()
        for key, record in sorted(self.results.items()):
            segment = record["segment"]
            start = segment["start"] if isinstance(segment.get("start"), dict) else {}
            started |= {digest for digest in (start.get("state"), start.get("optimizer")) if digest}
            needed |= set(_input_digests(record))
            for digest in output_digests(record):
                made.setdefault(digest, key)
        states = {*made, *started}
        memos = list(self._memos(needed - states))
        masks = (needed - states).union(*(blobs for _, _, blobs in memos)) - states
        included = {digest for digest in states if self.store.has(digest)} if weights else set()
        for digest in sort_by_similarity(masks, self.store.get_bytes):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest))
        for digest in sorted(included - masks):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest), whole=True)
        for digest in sorted(states - included):
            trajectory, step = made.get(digest, (None, 0))
            facts = {"trajectory": trajectory, "step": step}
            yield Source("memo", ("left-out", digest), partial(sealed_bytes, facts))
        for path, kind, _ in memos:
            yield Source("memo", (kind, path.stem), partial(_read, path))
        for trajectory, step in sorted(self.results):
            yield Source("result", (trajectory, str(step)), partial(_read, self.store.paths.result(trajectory, step)))
        for kind, name, _ in sorted(self.records, key=lambda one: one[:2]):
            yield Source(kind, (name,), partial(_read, self.store.paths.record(kind, name)))

    # -- records -----------------------------------------------------------------------------------------------------

    def _read_campaigns(self) -> dict[str, tuple[Mapping[str, Any], set[str]]]:
        """Return, by the name of a campaign, the campaign's record and the names of its runs."""
        read: dict[str, tuple[Mapping[str, Any], set[str]]] = {}
        for path in self.store.paths.campaign_records():
            values = read_sealed(path) or {}
            runs = {name for run in read_campaign_record(values, str(path)).runs for name in run.runs}
            read[path.stem] = (values, runs)
        return read

    def _named_runs(self) -> tuple[str, ...]:
        """Return the names of the runs to pack: the given runs and the runs of given campaigns, or by default all."""
        known = {path.parent.name for path in self.store.paths.run_records()}
        found: dict[str, None] = {}
        for name in self.names:
            if name not in known and name not in self._campaigns:
                raise StoreError(
                    f"there is no run or campaign {name} in {self.store.paths.root}: {self._describe(known)}. Trainings"
                    " of a run that has not ended go into a bundle of everything, for which no run is named"
                )
            if not (runs := {name} if name in known else self._campaigns[name][1]):
                raise StoreError(f"nothing is done of the campaign {name} in {self.store.paths.root}")
            if gone := sorted(runs - known):
                raise StoreError(
                    f"the campaign {name} needs the run {gone[0]}, which is not in {self.store.paths.root}: run the"
                    " campaign again, which trains what is missing"
                )
            found |= dict.fromkeys(sorted(runs))
        return tuple(found if self.names else sorted(known))

    def _describe(self, runs: set[str]) -> str:
        campaigns = f", and the campaigns {', '.join(sorted(self._campaigns))}" if self._campaigns else ""
        more = ", …" if len(runs) > _SHOWN else ""
        return f"it has {', '.join(sorted(runs)[:_SHOWN]) or 'no runs'}{more}{campaigns}"

    def _select_records(self) -> Iterator[tuple[Any, str, Mapping[str, Any]]]:
        for name in self.runs:
            yield "run", name, read_sealed(self.store.paths.record("run", name)) or {}
        for path in self.store.paths.evidence_records():
            values = read_sealed(path) or {}
            runs = values["runs"] if isinstance(values.get("runs"), list) else []
            about = [name for name in (values.get("run"), *runs) if isinstance(name, str)]
            if not self.names or set(about) & set(self.runs):
                yield "evidence", path.stem, values
        for name, (record, needed) in self._campaigns.items():
            # A campaign without any run can be planned again from its file.
            if not self.names or name in self.names or (needed and needed <= set(self.runs)):
                yield "campaign", name, record

    def _memos(self, masks: set[str]) -> Iterator[tuple[Path, str, set[str]]]:
        """Yield stored values to pack: those that contain one of `masks`, and the sizes and prices of the tasks.

        If everything in the store is packed, all stored values that contain a mask are included. Each item is a path,
        the kind of value, and the digests that the value contains.
        """
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


def _input_digests(record: Mapping[str, Any]) -> Sequence[str]:
    """Return the digests of the tensors with which a training starts: initial state and mask."""
    blobs: Sequence[str] = record["segment"].get("blobs", ())
    return blobs


def _read(path: Path) -> bytes:
    with explain_os_errors(path, "read"):
        return content_of(path)
