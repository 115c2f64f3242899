"""Unpacks a bundle into a store. The whole bundle is verified before anything is written.

Existing files stay, with two exceptions: results without metrics, and records of campaigns with fewer replicates.
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
"""Function of (kind, values) that raises `StoreError` if the record of a run or of evidence is invalid."""


@dataclass(frozen=True)
class Unpacked:
    """Result of unpacking a bundle."""

    runs: tuple[str, ...]
    new: int
    """Number of files that were added to the store."""
    known: int
    """Number of files that the store already had."""
    differing: tuple[Path, ...]
    """Files of the store for which the bundle has other numbers."""
    left_out: int
    """Number of states whose weights are neither in the bundle nor in the store: they are trained again when needed."""
    renewed: tuple[Path, ...] = ()
    """Files that were replaced because the bundle has more: results with metrics, campaigns with more replicates."""
    apart: tuple[str, ...] = ()
    """Campaigns for which bundle and store each have replicates that the other lacks. One record stays; it is written
    again with all replicates when the campaign is planned or continued."""


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
    """Write a result or stored value as an object, and a record as a file: records are uploaded later, all together."""
    if path.is_relative_to(store.paths.results) or path.is_relative_to(store.paths.memo):
        store.objects.put(store.paths.object_name(path), data)
    else:
        write_atomically(path, data)


def _write_run_file(record: Path, data: bytes) -> None:
    """Write the configuration of a run, if it is missing, before the run's record: a stored run then always has its
    configuration, even if this process is killed.
    """
    file = record.with_name("run.toml")
    if not path_exists(record) or (not path_exists(file) and _read(record) == data):
        write_atomically(file, parse_canonical_record(data, "run")["config"].encode())


def _read(path: Path) -> bytes:
    with explain_os_errors(path, "read"):
        return content_of(path)


# -- which of two files stays ------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """Tells which of two files stays: the store's or the bundle's."""

    take: bool
    """Whether the bundle's file replaces the store's."""
    lost: Literal["", "numbers", "replicates"] = ""
    """What is lost with the other file: other numbers, replicates of a campaign, or nothing."""


_OF_MAKING = ("seconds", "train_seconds", "other_seconds", "cost", "environment", "command", "config", "store")
"""Entries of a record about how and when it was made."""


def compare(kind: Kind, name: tuple[str, ...], known: bytes, new: bytes) -> Comparison:
    """Compare a file of the store with the verified file of the same name in a bundle."""
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
    """Return a record whose paths are in the store of the record `beside`, since a copied store has another folder."""
    old, new = values.get("store"), beside.get("store")
    if not (isinstance(old, str) and isinstance(new, str) and old):
        return values
    moved: dict[str, Any] = replace_folder_in_paths(values, old, new)
    return moved


def _without_origin(value: Any) -> Any:
    """Return a record without the entries in `_OF_MAKING`."""
    if isinstance(value, dict):
        return {name: _without_origin(one) for name, one in value.items() if name not in _OF_MAKING}
    return [_without_origin(one) for one in value] if isinstance(value, list) else value


def _compare_campaigns(ours: CampaignRecord, theirs: CampaignRecord) -> Comparison:
    """Choose the record with more replicates, or the later one."""
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
    """Return the path of a part in the store; `OutsideError` for an invalid name."""
    names = part.name
    if part.kind == "blob":
        return paths.blob(names[0])
    if part.kind == "result":
        return paths.result(names[0], int(names[1]))
    if part.kind == "memo":
        return paths.memo_file(*names)
    return paths.record(part.kind, names[0])


def _check_part(paths: Paths, part: Part, data: bytes, check: Check, what: str) -> None:
    """Raise `StoreError` unless a part matches its name."""
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
    """Raise `StoreError` unless a result describes its training, and its key is the digest of that."""
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
