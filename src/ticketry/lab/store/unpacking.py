"""Unpack a bundle into a store, after verifying the whole bundle.

Files that the store has already are not replaced, with two exceptions: a result without metrics is replaced by one with
metrics, and the record of a campaign by one with more replicates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ticketry.errors import StoreError
from ticketry.files import content_of
from ticketry.lab.store.bundle import Bundle, Contents, Kind, Part
from ticketry.lab.store.files import digest_of, explain_os_errors, parse_canonical_record, path_exists, write_atomically
from ticketry.lab.store.marks import mark_in_use
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.records import replace_folder_in_paths
from ticketry.lab.store.schemas import MEMOS, Digest, Trained, describe_mismatch
from ticketry.lab.store.store import FORMAT, NUMERICS, Store, open_store
from ticketry.records.campaign import CampaignRecord, read_campaign_record

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
    """Campaigns for which the bundle and the store have different replicates, and only one of the two records stays.
    Planning or continuing the campaign writes a record with all replicates."""


def unpack(bundle: Path, root: Path, *, check: Check) -> Unpacked:
    """Add the contents of a bundle to the store in `root`, which is created if it is missing.

    Raises:
        StoreError: if the bundle is damaged, forged, or has other numerics or another format. Nothing is written then.
    """
    with Bundle(bundle) as opened:
        _check_versions(opened.contents, bundle)
        for part, data in opened.parts():
            _check_part(Paths(root), part, data, check, f"{bundle}: {' '.join(part.name)}")
        store = open_store(root)
        store.fetch(results=True)
        with mark_in_use(store.paths):  # so that nothing is deleted that unpacked results name
            return _add_contents(opened, store)


def _add_contents(opened: Bundle, store: Store) -> Unpacked:
    new, unchanged = 0, list[Path]()
    renewed, differing, apart = list[Path](), list[Path](), list[str]()
    for part, data in opened.parts():
        path = _path_of_part(store.paths, part)
        if part.kind == "blob":
            known = store.has(part.name[0])
            store.objects.create_if_absent(store.paths.object_name(path), data)
            new += not known
            if known:
                unchanged.append(path)
            continue
        if part.kind == "run":
            _write_run_file(path, data)
        if not path_exists(path):
            _write(store, path, data)
            new += 1
            continue
        found = compare(part.kind, part.name, _read(path), data)
        if found.take:
            _write(store, path, data)
        (renewed if found.take else unchanged).append(path)
        if found.lost == "numbers":
            differing.append(path)
        elif found.lost:
            apart.append(part.name[0])
    store.publish()
    named = [part.name[1] for part in opened.contents.parts if part.kind == "memo" and part.name[0] == "left-out"]
    left_out = sum(not store.has(digest) for digest in named)
    return Unpacked(opened.contents.runs, new, len(unchanged), tuple(differing), left_out, tuple(renewed), tuple(apart))


def _write(store: Store, path: Path, data: bytes) -> None:
    """Write a file of the store; in a shared store, results and stored values are uploaded at once, records later."""
    if path.is_relative_to(store.paths.results) or path.is_relative_to(store.paths.memo):
        store.objects.put(store.paths.object_name(path), data)
    else:
        write_atomically(path, data)


def _write_run_file(record: Path, data: bytes) -> None:
    """Write the configuration ``run.toml`` of a run if it is missing; call this before the run's record is written.

    So every run in the store has its configuration, even if this process is killed in between.

    Args:
        record: path of the run's record.
        data: content of the run's record in the bundle.
    """
    file = record.with_name("run.toml")
    if not path_exists(record) or (not path_exists(file) and _read(record) == data):
        write_atomically(file, parse_canonical_record(data, "run")["config"].encode())


def _read(path: Path) -> bytes:
    with explain_os_errors(path, "read"):
        return content_of(path)


# -- which of two files stays ------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Says whether the store's or the bundle's version of a file stays."""

    take: bool
    """Whether the bundle's file replaces the store's."""
    lost: Literal["", "numbers", "replicates"] = ""
    """What is lost with the version that does not stay: other numbers, replicates of a campaign, or nothing."""


_OF_MAKING = ("seconds", "train_seconds", "other_seconds", "cost", "environment", "command", "config", "store")
"""Names of entries that say how and when a record was made; they are ignored when records are compared."""


def compare(kind: Kind, name: tuple[str, ...], known: bytes, new: bytes) -> Comparison:
    """Decide whether a file of the store (`known`) is replaced by the file of the same name in a bundle (`new`)."""
    if known == new:
        return Comparison(take=False)
    if kind == "blob" or (kind == "memo" and name[0] == "left-out"):
        return Comparison(take=False)  # one content; and any training that gives some weights is as good as another
    theirs = parse_canonical_record(new, "the bundle's")
    try:
        ours = parse_canonical_record(known, "the store's")
        if kind == "campaign":
            return _compare_campaigns(read_campaign_record(ours), read_campaign_record(theirs))
    except StoreError:
        return Comparison(take=False, lost="numbers")
    if kind == "result":
        mine, other = ours["metrics"], theirs["metrics"]
        if mine is None or other is None:
            same = _without_origin({**ours, "metrics": None}) == _without_origin({**theirs, "metrics": None})
            return Comparison(same and mine is None and other is not None, "" if same else "numbers")
    return Comparison(
        take=False, lost="" if _without_origin(ours) == _without_origin(_relocate(theirs, ours)) else "numbers"
    )


def _relocate(values: dict[str, Any], beside: dict[str, Any]) -> dict[str, Any]:
    """Return the record `values` with its store's folder replaced by that of the record `beside` in all paths."""
    old, new = values.get("store"), beside.get("store")
    if not (isinstance(old, str) and isinstance(new, str) and old):
        return values
    moved: dict[str, Any] = replace_folder_in_paths(values, old, new)
    return moved


def _without_origin(value: Any) -> Any:
    """Return a JSON value without the entries that say how and when it was made, see `_OF_MAKING`."""
    if isinstance(value, dict):
        return {name: _without_origin(one) for name, one in value.items() if name not in _OF_MAKING}
    return [_without_origin(one) for one in value] if isinstance(value, list) else value


def _compare_campaigns(ours: CampaignRecord, theirs: CampaignRecord) -> Comparison:
    """Choose the record with more replicates; if both have the same number, choose the later record."""
    take = _campaign_order(theirs) > _campaign_order(ours)
    winner, other = (theirs, ours) if take else (ours, theirs)
    have = {run.name: run.replicates for run in winner.runs}
    lost = any(run.replicates > have.get(run.name, 0) for run in other.runs)
    return Comparison(take, "replicates" if lost else "")


def _campaign_order(record: CampaignRecord) -> tuple[int, int, str]:
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


def _path_of_part(paths: Paths, part: Part) -> Path:
    """Return the path in the store for a part of a bundle; `OutsideError` if its name is invalid."""
    names = part.name
    if part.kind == "blob":
        return paths.blob(names[0])
    if part.kind == "result":
        return paths.result(names[0], int(names[1]))
    if part.kind == "memo":
        return paths.memo_file(*names)
    return paths.record(part.kind, names[0])


def _check_part(paths: Paths, part: Part, data: bytes, check: Check, what: str) -> None:
    """Raise `StoreError` if the content of a part is invalid or does not belong to the part's name.

    Args:
        paths: the store.
        part: description of the part.
        data: content of the part.
        check: checks the records of runs and evidence.
        what: name of the part for error messages.
    """
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
    _path_of_part(paths, part)
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
    """Raise `StoreError` if a result is invalid, or its key is not the digest of the training that it describes."""
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
