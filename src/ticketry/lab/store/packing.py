"""Pack runs into a bundle, and unpack a bundle into a store after verifying the whole bundle.

A bundle contains the records of runs, and the results to which the records refer. It also contains the results of
earlier trainings, which gave initial weights, and of existing trainings with a second order of the data. It contains
masks, and optionally weights. For left-out weights it names the training that computes them again, see
`lab.training.execute`.

Unpacking does not replace files of the store, with two exceptions: a result without metrics is replaced by one with
metrics, and the record of a campaign by one with more replicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ticketry.errors import StoreError
from ticketry.files import read_bytes
from ticketry.lab.store.bundle import Bundle, Contents, Kind, Part, Source, sort_by_similarity, write_bundle
from ticketry.lab.store.files import (
    MEMOS,
    Digest,
    Trained,
    bytes_with_digest,
    describe_mismatch,
    digest_of,
    explain_os_errors,
    parse_canonical_record,
    path_exists,
    read_with_digest,
    write_atomically,
)
from ticketry.lab.store.locks import mark_in_use
from ticketry.lab.store.mirror import replace_folder_in_paths
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.references import Key, Results, output_digests, result_keys_in, trajectory_in_second_data_order
from ticketry.lab.store.store import FORMAT, NUMERICS, Store, open_store
from ticketry.records.campaign import CampaignRecord, read_campaign_record

_GONE: dict[str, Any] = {"segment": {}}
"""Value in place of a result that another process has just deleted."""
_SHOWN = 5
"""Number of names in an error message."""
_OF_MASKS = ("masks", "plans")
"""Kinds of stored values that contain the digest of a mask."""


def pack(store: Store, names: Sequence[str], target: Path, *, weights: bool = False, masks: bool = True) -> Contents:
    """Write runs, and the evidence about them, into a bundle.

    Args:
        names: names of runs. The name of a campaign with its scale (``stabilizing-cpu``) means all its runs. Without
            names, everything in the store is packed.
        weights: whether to include weights; the bundle is then some hundred times as large.
        masks: whether to include masks, and the results of networks with masks. Without them the bundle contains the
            records, and the results of dense networks only.
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
        self.runs = self._select_run_names()
        self.records = list(self._select_records())
        known = Results(store.paths, lambda path: store.load_valid_result(path.parent.name, int(path.stem)) or _GONE)
        named = {trajectory for _, _, values in self.records for trajectory, _ in result_keys_in(values)}
        # A trajectory in the second order has no results if it was not trained.
        found = known.select_with_references(
            named if self.names else known.of_trajectory, _digests_of_start_tensors, trajectory_in_second_data_order
        )
        records = {(path.parent.name, int(path.stem)): known.records[path] for path in found}
        self.results = {key: record for key, record in records.items() if record is not _GONE}
        if not self.masks:  # retain only dense networks, in both orders of the data
            self.results = {
                key: record for key, record in self.results.items() if not _digests_of_start_tensors(record)
            }

    def sources(self, weights: bool) -> Iterator[Source]:
        """Yield the parts of the bundle; a part comes after all parts to which it refers."""
        made: dict[str, Key] = {}
        started, needed = set[str](), set[str]()
        for key, record in sorted(self.results.items()):
            segment = record["segment"]
            start = segment["start"] if isinstance(segment.get("start"), dict) else {}
            started |= {digest for digest in (start.get("state"), start.get("optimizer")) if digest}
            needed |= set(_digests_of_start_tensors(record))
            for digest in output_digests(record):
                made.setdefault(digest, key)
        states = {*made, *started}
        memos = list(self._select_memos(needed - states))
        masks = (needed - states).union(*(blobs for _, _, blobs in memos)) - states
        included = {digest for digest in states if self.store.has(digest)} if weights else set()
        for digest in sort_by_similarity(masks, self.store.get_bytes):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest))
        for digest in sorted(included - masks):
            yield Source("blob", (digest,), partial(self.store.get_bytes, digest), whole=True)
        for digest in sorted(states - included):
            trajectory, step = made.get(digest, (None, 0))
            facts = {"trajectory": trajectory, "step": step}
            yield Source("memo", ("left-out", digest), partial(bytes_with_digest, facts))
        for path, kind, _ in memos:
            yield Source("memo", (kind, path.stem), partial(_read_file, path))
        for trajectory, step in sorted(self.results):
            yield Source(
                "result", (trajectory, str(step)), partial(_read_file, self.store.paths.result(trajectory, step))
            )
        for kind, name, _ in sorted(self.records, key=lambda one: one[:2]):
            yield Source(kind, (name,), partial(_read_file, self.store.paths.record(kind, name)))

    def _read_campaigns(self) -> dict[str, tuple[Mapping[str, Any], set[str]]]:
        """Return, by the name of a campaign, the campaign's record and the names of its runs."""
        read: dict[str, tuple[Mapping[str, Any], set[str]]] = {}
        for path in self.store.paths.campaign_records():
            values = read_with_digest(path) or {}
            runs = {name for run in read_campaign_record(values, str(path)).runs for name in run.runs}
            read[path.stem] = (values, runs)
        return read

    def _select_run_names(self) -> tuple[str, ...]:
        """Return the names of the runs to pack: the given runs and the runs of given campaigns, or by default all."""
        known = {path.parent.name for path in self.store.paths.run_records()}
        found: dict[str, None] = {}
        for name in self.names:
            if name not in known and name not in self._campaigns:
                raise StoreError(
                    f"there is no run or campaign {name} in {self.store.paths.root}: {self._describe_contents(known)}."
                    " Trainings of a run that has not ended go into a bundle of everything, for which no run is named"
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

    def _describe_contents(self, runs: set[str]) -> str:
        campaigns = f", and the campaigns {', '.join(sorted(self._campaigns))}" if self._campaigns else ""
        more = ", …" if len(runs) > _SHOWN else ""
        return f"it has {', '.join(sorted(runs)[:_SHOWN]) or 'no runs'}{more}{campaigns}"

    def _select_records(self) -> Iterator[tuple[Any, str, Mapping[str, Any]]]:
        for name in self.runs:
            yield "run", name, read_with_digest(self.store.paths.record("run", name)) or {}
        for path in self.store.paths.evidence_records():
            values = read_with_digest(path) or {}
            runs = values["runs"] if isinstance(values.get("runs"), list) else []
            about = [name for name in (values.get("run"), *runs) if isinstance(name, str)]
            if not self.names or set(about) & set(self.runs):
                yield "evidence", path.stem, values
        for name, (record, needed) in self._campaigns.items():
            # A campaign without any run can be planned again from its file.
            if not self.names or name in self.names or (needed and needed <= set(self.runs)):
                yield "campaign", name, record

    def _select_memos(self, masks: set[str]) -> Iterator[tuple[Path, str, set[str]]]:
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
            if self.masks and kind in _OF_MASKS and (known := self.store.load_memo(kind, path.stem)):
                blobs = {known[name] for name in ("mask", "plan") if name in known}
                if not self.names or blobs & masks:
                    yield path, kind, blobs


def _digests_of_start_tensors(record: Mapping[str, Any]) -> Sequence[str]:
    """Return the digests of the tensors with which a training starts: initial state and mask."""
    blobs: Sequence[str] = record["segment"].get("blobs", ())
    return blobs


def _read_file(path: Path) -> bytes:
    with explain_os_errors(path, "read"):
        return read_bytes(path)


# -- unpacking ---------------------------------------------------------------------------------------------------------


Check = Callable[[str, dict[str, Any]], None]
"""Function that checks a record, given its kind and values, and raises `StoreError` if the record is invalid."""


@dataclass(frozen=True)
class Unpacked:
    """Describes what unpacking a bundle has changed in the store."""

    runs: tuple[str, ...]
    new: int
    """Number of files that were added to the store."""
    known: int
    """Number of files that the store already had."""
    differing: tuple[Path, ...]
    """Files of the store that have other numbers than the same files in the bundle; they were not replaced."""
    left_out: int
    """Number of states whose weights are neither in the bundle nor in the store; they are trained again when needed."""
    renewed: tuple[Path, ...] = ()
    """Files that the bundle's files replaced: results now with metrics, campaigns now with more replicates."""
    apart: tuple[str, ...] = ()
    """Campaigns with different replicates in bundle and store; only one of the two records stays.
    Planning or continuing the campaign writes a record with all replicates."""


def unpack(bundle: Path, root: Path, *, check: Check) -> Unpacked:
    """Add a bundle to the store in `root`; if the bundle is damaged or forged, write nothing."""
    with Bundle(bundle) as opened:
        _check_versions(opened.contents, bundle)
        for part, data in opened.parts():
            _check_part_content(Paths(root), part, data, check, f"{bundle}: {' '.join(part.name)}")
        store = open_store(root)
        store.fetch(results=True)
        with mark_in_use(store.paths):  # so that no other process deletes what unpacked results need
            return _add_contents(opened, store)


def _add_contents(opened: Bundle, store: Store) -> Unpacked:
    new, unchanged = 0, list[Path]()
    renewed, differing, apart = list[Path](), list[Path](), list[str]()
    for part, data in opened.parts():
        path = _store_path_of_part(store.paths, part)
        if part.kind == "blob":
            known = store.has(part.name[0])
            store.objects.create_if_absent(store.paths.object_name(path), data)
            new += not known
            if known:
                unchanged.append(path)
            continue
        if part.kind == "run":  # its file goes before its record
            file = path.with_name("run.toml")
            if not path_exists(path) or (not path_exists(file) and _read_file(path) == data):
                write_atomically(file, parse_canonical_record(data, "run")["config"].encode())
        if not path_exists(path):
            _write_store_file(store, path, data)
            new += 1
            continue
        found = compare(part.kind, part.name, _read_file(path), data)
        if found.take:
            _write_store_file(store, path, data)
        (renewed if found.take else unchanged).append(path)
        if found.lost == "numbers":
            differing.append(path)
        elif found.lost:
            apart.append(part.name[0])
    store.publish()
    named = [part.name[1] for part in opened.contents.parts if part.kind == "memo" and part.name[0] == "left-out"]
    left_out = sum(not store.has(digest) for digest in named)
    return Unpacked(opened.contents.runs, new, len(unchanged), tuple(differing), left_out, tuple(renewed), tuple(apart))


def _write_store_file(store: Store, path: Path, data: bytes) -> None:
    """Write a file of the store; in a shared store, results and stored values are uploaded at once, records later."""
    if path.is_relative_to(store.paths.results) or path.is_relative_to(store.paths.memo):
        store.objects.put(store.paths.object_name(path), data)
    else:
        write_atomically(path, data)


# -- which of two files stays ------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Says whether the store's or the bundle's version of a file stays."""

    take: bool
    """Whether the bundle's file replaces the store's."""
    lost: Literal["", "numbers", "replicates"] = ""
    """Content that only the dropped version has: other numbers, replicates of a campaign, or nothing (empty)."""


_OF_MAKING = ("seconds", "train_seconds", "other_seconds", "cost", "environment", "command", "config", "store")
"""Names of entries that say how and when a record was made; they are ignored when records are compared."""


def compare(kind: Kind, name: tuple[str, ...], known: bytes, new: bytes) -> Comparison:
    """Decide which version of a file stays: `known` from the store, or `new` from a bundle (archive).

    `kind` and `name` identify the file.
    """
    if known == new:
        return Comparison(take=False)
    if kind == "blob" or (kind == "memo" and name[0] == "left-out"):
        return Comparison(take=False)  # a digest has one content; several trainings may give the same weights
    theirs = parse_canonical_record(new, "the bundle's")
    try:
        ours = parse_canonical_record(known, "the store's")
        if kind == "campaign":
            return _choose_campaign_record(read_campaign_record(ours), read_campaign_record(theirs))
    except StoreError:
        return Comparison(take=False, lost="numbers")
    if kind == "result":
        mine, other = ours["metrics"], theirs["metrics"]
        if mine is None or other is None:
            plain = [_remove_origin_entries(one | {"metrics": None}) for one in (ours, theirs)]
            same = plain[0] == plain[1]
            return Comparison(same and mine is None and other is not None, "" if same else "numbers")
    same = _remove_origin_entries(ours) == _remove_origin_entries(_replace_store_folder(theirs, ours))
    return Comparison(take=False, lost="" if same else "numbers")


def _replace_store_folder(values: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """Return the record `values`, with the store folder in all its paths replaced by that of the record `beside`."""
    old, new = values.get("store"), beside.get("store")
    if not (isinstance(old, str) and isinstance(new, str) and old):
        return values
    moved: dict[str, Any] = replace_folder_in_paths(values, old, new)
    return moved


def _remove_origin_entries(value: Any) -> Any:
    """Return a JSON value without the entries that say how and when it was made, such as seconds and command."""
    if isinstance(value, dict):
        return {name: _remove_origin_entries(one) for name, one in value.items() if name not in _OF_MAKING}
    return [_remove_origin_entries(one) for one in value] if isinstance(value, list) else value


def _choose_campaign_record(ours: CampaignRecord, theirs: CampaignRecord) -> Comparison:
    """Choose the record with more replicates; if both have the same number, choose the later record."""
    take = _campaign_sort_key(theirs) > _campaign_sort_key(ours)
    winner, other = (theirs, ours) if take else (ours, theirs)
    have = {run.name: run.replicates for run in winner.runs}
    lost = any(run.replicates > have.get(run.name, 0) for run in other.runs)
    return Comparison(take, "replicates" if lost else "")


def _campaign_sort_key(record: CampaignRecord) -> tuple[int, int, str]:
    replicates = sum(run.replicates for run in record.runs)
    return replicates, len(record.twins), str(record.environment.get("date", ""))


# -- checks before anything is written ---------------------------------------------------------------------------------


def _check_versions(contents: Contents, bundle: Path) -> None:
    if contents.numerics != NUMERICS:
        raise StoreError(
            f"{bundle} has results of the numerics {contents.numerics}, this ticketry trains with {NUMERICS}: its"
            " numbers would not be found here. Unpack it with the ticketry that packed it, or train again"
        )
    if contents.store != FORMAT:
        raise StoreError(
            f"{bundle} is of the store format {contents.store}, this ticketry reads {FORMAT}: use the ticketry that"
            " made it"
        )


def _store_path_of_part(paths: Paths, part: Part) -> Path:
    """Return the path in the store for a part of a bundle; `OutsideError` if its name is invalid."""
    names = part.name
    if part.kind == "blob":
        return paths.blob(names[0])
    if part.kind == "result":
        return paths.result(names[0], int(names[1]))
    if part.kind == "memo":
        return paths.memo_file(*names)
    return paths.record(part.kind, names[0])


def _check_part_content(paths: Paths, part: Part, data: bytes, check: Check, what: str) -> None:
    """Raise `StoreError` if the content of a part is invalid or does not belong to the part's name."""
    wanted = 2 if part.kind in ("result", "memo") else 1
    if len(part.name) != wanted:
        raise StoreError(f"{what}: a {part.kind} with {len(part.name)} names, not {wanted}")
    key = part.name[-1] if part.kind == "memo" else part.name[0]
    if part.kind in ("blob", "result", "memo") and describe_mismatch(Digest, key):
        raise StoreError(f"{what}: {key!r:.80} is no digest")
    if part.kind == "result":
        step = part.name[1]
        if not (step.isdecimal() and len(step) < 19 and str(int(step)) == step):
            raise StoreError(f"{what}: {step!r:.80} is no step")
    if part.kind == "memo" and part.name[0] not in MEMOS:
        raise StoreError(f"{what}: there are no remembered values of the kind {part.name[0]!r:.80}")
    _store_path_of_part(paths, part)
    if part.kind == "blob":
        if part.sha256 != key:
            raise StoreError(f"{what}: its digest is another")
        return
    values = parse_canonical_record(data, what)
    if part.kind == "result":
        _check_result(part, values, what)
    elif part.kind == "memo":
        if why := describe_mismatch(MEMOS[part.name[0]], values):
            raise StoreError(f"{what} is not valid: {why}")
    else:
        check(part.kind, values)
        own = {"run": "run", "campaign": "name"}.get(part.kind, "")
        if own and values.get(own) != key:
            raise StoreError(f"{what}: the {part.kind} calls itself {values.get(own)!r:.80}")


def _check_result(part: Part, values: dict[str, Any], what: str) -> None:
    """Raise `StoreError` if a result is invalid, or if its key is not the digest of the training in its description."""
    trajectory, step = part.name
    if why := describe_mismatch(Trained, values):
        raise StoreError(f"{what} is no result: {why}")
    segment = values["segment"] if isinstance(values.get("segment"), dict) else {}
    described = {name: value for name, value in segment.items() if name not in ("blobs", "last")}
    if values["step"] != int(step) or digest_of({"numerics": NUMERICS, **described}) != trajectory:
        raise StoreError(f"{what}: the result is of another training than its key says")
    blobs = segment.get("blobs", [])
    if not isinstance(blobs, list) or any(describe_mismatch(Digest, blob) for blob in blobs):
        raise StoreError(f"{what}: what it names is no digest")
