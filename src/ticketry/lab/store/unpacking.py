"""A bundle into a store: all of it is checked before anything is written; what is there stays, but for records of
campaigns that tell less, and results without metrics."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import content_of
from ticketry.lab.store.bundle_file import Bundle, Contents, Part
from ticketry.lab.store.files import digest_of, explained, is_there, unsealed, write_atomically
from ticketry.lab.store.meeting import Met, met
from ticketry.lab.store.opening import open_store
from ticketry.lab.store.paths import Paths
from ticketry.lab.store.running import marked_in_use
from ticketry.lab.store.shapes import ANSWERS, Digest, Trained, fault
from ticketry.lab.store.store import FORMAT, NUMERICS, Store


@dataclass(frozen=True)
class Unpacked:
    """What was done."""

    runs: tuple[str, ...]
    new: int
    """Files that the store did not have."""
    known: int
    """Files that it had, and that stay as they were."""
    differing: tuple[Path, ...]
    """Of those, the ones of which the bundle tells other numbers."""
    left_out: int
    """States whose weights are neither in the bundle nor in the store: they are trained again when they are needed."""
    renewed: tuple[Path, ...] = ()
    """Files that it had and that tell more in the bundle: records of campaigns with more replicates, metrics."""
    apart: tuple[str, ...] = ()
    """Campaigns of which bundle and store each told of replicates that the other does not: one record stands, and is
    told anew, of all replicates, when the campaign is planned or goes on."""


def unpack(bundle: Path, root: Path, *, check: Callable[[str, dict[str, Any]], None]) -> Unpacked:
    """Add what a bundle holds to the store in `root`, which is made if absent.

    Args:
        check: of the record of a run or of evidence, kind and values: raises `StoreError` for what cannot be.

    Raises:
        StoreError: if the bundle is damaged, forged, or of other numerics or another format. Nothing is written then.
    """
    with Bundle(bundle) as opened:
        _check_versions(opened.contents, bundle)
        for part, data in opened.parts():
            _check_part(Paths(root), part, data, check, f"{bundle}: {' '.join(part.name)}")
        store = open_store(root)
        store.link.fetch(results=True)
        with marked_in_use(store.paths):  # nothing is deleted meanwhile that what is unpacked names
            return _added(opened, store)


def _added(opened: Bundle, store: Store) -> Unpacked:
    new, unchanged = 0, list[Path]()
    renewed, differing, apart = list[Path](), list[Path](), list[str]()
    for part, data in opened.parts():
        path = _place(store.paths, part)
        if part.kind == "blob":
            store.link.wanted(path)
        if part.kind == "run":
            _write_run_file(path, data)
        there = is_there(path)
        if part.kind == "blob" and there:
            with contextlib.suppress(OSError):  # another user's
                os.utime(path)  # tells a `store gc` that runs now that it is in use again
            store.link.kept(path)
        if not there:
            write_atomically(path, data)
            new += 1
            if part.kind in ("blob", "result", "memo"):  # the others are published together, below
                store.link.written(path)
            continue
        found = met(part.kind, part.name, _content(path), data) if part.kind != "blob" else Met(taken=False)
        if found.taken:
            write_atomically(path, data)
            if part.kind == "result":
                store.link.written(path, replace=True)
        (renewed if found.taken else unchanged).append(path)
        if found.lost == "numbers":
            differing.append(path)
        elif found.lost:
            apart.append(part.name[0])
    store.link.publish()
    named = [part.name[1] for part in opened.contents.parts if part.kind == "memo" and part.name[0] == "left-out"]
    left_out = sum(not store.has(digest) for digest in named)
    return Unpacked(opened.contents.runs, new, len(unchanged), tuple(differing), left_out, tuple(renewed), tuple(apart))


def _write_run_file(record: Path, data: bytes) -> None:
    """Write the file that repeats a run, if the record is not there or lacks it: before the record, so that a run that
    is there has it, wherever this is ended."""
    file = record.with_name("run.toml")
    if not is_there(record) or (not is_there(file) and _content(record) == data):
        write_atomically(file, unsealed(data, "run")["config"].encode())


def _content(path: Path) -> bytes:
    with explained(path, "read"):
        return content_of(path)


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


def _place(paths: Paths, part: Part) -> Path:
    """Where a part belongs, inside the store: `OutsideError` for a name that is none."""
    names = part.name
    if part.kind == "blob":
        return paths.blob(names[0])
    if part.kind == "result":
        return paths.result(names[0], int(names[1]))
    if part.kind == "memo":
        return paths.memo_file(*names)
    return paths.record(part.kind, names[0])


def _check_part(paths: Paths, part: Part, data: bytes, check: Callable[[str, dict[str, Any]], None], what: str) -> None:
    """Raises `StoreError` unless a part is what its name says."""
    wanted = 2 if part.kind in ("result", "memo") else 1
    if len(part.name) != wanted:
        raise StoreError(f"{what}: a {part.kind} with {len(part.name)} names, not {wanted}")
    key = part.name[-1] if part.kind == "memo" else part.name[0]
    if part.kind in ("blob", "result", "memo") and fault(Digest, key):
        raise StoreError(f"{what}: {key!r:.80} is no digest")
    if part.kind == "result" and not (
        part.name[1].isdecimal() and len(part.name[1]) < 19 and str(int(part.name[1])) == part.name[1]
    ):
        raise StoreError(f"{what}: {part.name[1]!r:.80} is no step")
    if part.kind == "memo" and part.name[0] not in ANSWERS:
        raise StoreError(f"{what}: there are no answers of the kind {part.name[0]!r:.80}")
    _place(paths, part)
    if part.kind == "blob":
        if part.sha256 != key:
            raise StoreError(f"{what}: its digest is another")
        return
    values = unsealed(data, what)
    if part.kind == "result":
        _check_result(part, values, what)
    elif part.kind == "memo":
        if why := fault(ANSWERS[part.name[0]], values):
            raise StoreError(f"{what} is none: {why}")
    else:
        check(part.kind, values)
        said = {"run": "run", "campaign": "name"}.get(part.kind, "")
        if said and values.get(said) != key:
            raise StoreError(f"{what}: the {part.kind} calls itself {values.get(said)!r:.80}")


def _check_result(part: Part, values: dict[str, Any], what: str) -> None:
    """A result has to say what it is of, and its key has to be the digest of that."""
    trajectory, step = part.name
    if why := fault(Trained, values):
        raise StoreError(f"{what} is no result: {why}")
    segment = values.get("segment")
    told = (
        {name: value for name, value in segment.items() if name not in ("blobs", "last")}
        if isinstance(segment, dict)
        else {}
    )
    if values["step"] != int(step) or digest_of({"numerics": NUMERICS, **told}) != trajectory:
        raise StoreError(f"{what}: the result is of another training than its key says")
    blobs = segment.get("blobs", []) if isinstance(segment, dict) else []
    if not isinstance(blobs, list) or any(fault(Digest, blob) for blob in blobs):
        raise StoreError(f"{what}: what it names is no digest")
