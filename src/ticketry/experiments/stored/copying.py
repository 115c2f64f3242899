"""From one store to another, folders or shared ones: all that a machine needs to go on, and nothing twice."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ticketry.errors import StoreError
from ticketry.files import parse_json
from ticketry.lab.remote.address import checked_url, is_url
from ticketry.lab.remote.objects import Listed, Remote
from ticketry.lab.remote.records import moved_inside
from ticketry.lab.remote.shared_folder import SharedFolder
from ticketry.lab.store.files import sealed_bytes, unsealed
from ticketry.lab.store.opening import open_store, remote_at
from ticketry.lab.store.running import is_mark, marked_in_use
from ticketry.lab.store.store import FORMAT

_ORDER = ("blobs", "memo", "results", "runs", "evidence", "campaigns")
"""Folders that are copied: what is named before what names it. Leases, states on the way and what a repair set aside
stay."""
_SEALED = ("memo", "results")


@dataclass(frozen=True)
class Copied:
    """What was done."""

    files: int
    bytes: int
    """Of these."""
    known: int
    """Files that were there already, or belong to a run of which another one of that name was."""


def copy_store(origin: str, target: str) -> Copied:
    """Copy what the store at one address has and that at another lacks; killed, the same call goes on.

    Args:
        origin: a folder or a URL, see `open_store`.
        target: the same; made if absent.

    Raises:
        StoreError: if there is no store, one file does not match its digest, or one cannot be read or written.
    """
    here, there = _objects(origin), _objects(target)
    if (described := here.read("store.json")) is None:
        raise StoreError(f"there is no store at {origin}")
    if (number := _object(described.data).get("format")) != FORMAT:
        raise StoreError(
            f"the store at {origin} has the store format {str(number)[:20]!r}, this ticketry copies {FORMAT}: use the"
            " ticketry that made it, or, if its store.json is damaged, `ticketry store check --repair`"
        )
    if here.address == there.address:
        raise StoreError(f"{target} is the very store that is to be copied")
    store = open_store(target)
    with marked_in_use(store.paths):  # nothing is deleted meanwhile that what is copied names
        return _copied(here, there, origin, target)


def _copied(here: Remote, there: Remote, origin: str, target: str) -> Copied:
    known = {one.name: one for one in there.list()}
    files = size = skipped = 0
    wanted = list(_wanted(here))
    others = {
        _record_of(one.name)
        for one in wanted
        if one.name in known and _is_told(one.name) and not _is_same(there, one.name, _data(here, one, origin, target))
    }
    for one in wanted:
        # What is there stays, and with a file of another's run or campaign of that name all that belongs to it.
        if one.name in known or _record_of(one.name) in others:
            skipped += 1
            continue
        data = _data(here, one, origin, target)
        there.replace(one.name, data)
        files, size = files + 1, size + len(data)
    return Copied(files, size, skipped)


def _data(here: Remote, one: Listed, origin: str, target: str) -> bytes:
    return _moved(_checked(here, one), one.name, origin, target)


def _is_same(there: Remote, name: str, data: bytes) -> bool:
    found = there.read(name)
    return found is not None and found.data == data


def _is_told(name: str) -> bool:
    """Whether it is part of a run, or a record: texts about campaigns can be made anew."""
    return name.partition("/")[0] not in ("blobs", *_SEALED) and not name.endswith(".md")


def _record_of(name: str) -> str:
    """The record that a file stands beside: a ticket beside its run's, a page beside its campaign's or evidence's."""
    parts = name.split("/")
    return f"runs/{parts[1]}/run.json" if parts[0] == "runs" else str(PurePosixPath(name).with_suffix(".json"))


def _objects(address: str) -> Remote:
    if is_url(address):
        return remote_at(checked_url(address))
    return SharedFolder(f"file://{Path(address).absolute()}")


def _wanted(here: Remote) -> Iterator[Listed]:
    found = {folder: list(here.list(folder)) for folder in _ORDER}
    for folder in _ORDER:
        yield from sorted(filter(_is_copied, found[folder]), key=lambda one: (_is_record(one.name), one.name))


def _is_copied(one: Listed) -> bool:
    parts = one.name.split("/")
    plain = not is_mark(parts[-1]) and not any(part.startswith(".") for part in parts)
    return plain and not one.name.endswith(".html")  # pages: made anew of the records that are copied


def _is_record(name: str) -> bool:
    return name.endswith("/run.json") or (name.count("/") == 1 and name.endswith(".json"))


def _checked(here: Remote, one: Listed) -> bytes:
    found = here.read(one.name)
    if found is None:
        raise StoreError(f"{here.address}/{one.name} went away while it was copied: run the same command again")
    folder = one.name.partition("/")[0]
    wanted = Path(one.name).stem if folder == "blobs" else _digest_by_record(here, one.name)
    if wanted and hashlib.sha256(found.data).hexdigest() != wanted:
        raise StoreError(
            f"{here.address}/{one.name} is damaged: its contents do not match its digest. Run `ticketry store check"
            " --repair` there first"
        )
    if folder in _SEALED or _is_record(one.name):
        unsealed(found.data, f"{here.address}/{one.name}")
    return found.data


def _digest_by_record(here: Remote, name: str) -> str | None:
    """What a ticket tells of the file beside its ticket.json, and a run's record of its run file; None of others."""
    if name.startswith("runs/") and name.endswith("/run.toml") and name.count("/") == 2:
        record = here.read(name.removesuffix("toml") + "json")
        config = _object(record.data if record else b"").get("config")
        return hashlib.sha256(config.encode(errors="replace")).hexdigest() if isinstance(config, str) else None
    run, _, place = name.partition("/tickets/")
    ticket, _, file = place.partition("/")
    if not run.startswith("runs/") or file in ("", "ticket.json"):
        return None
    manifest = here.read(f"{run}/tickets/{ticket}/ticket.json")
    fact = _object(_object(manifest.data if manifest else b"").get("files")).get(file)
    told = _object(fact).get("sha256")
    return told if isinstance(told, str) else None


def _object(value: object) -> dict[str, Any]:
    """A JSON object, also as bytes; empty if it is none."""
    try:
        found = parse_json(value) if isinstance(value, bytes) else value
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def _moved(data: bytes, name: str, origin: str, target: str) -> bytes:
    """A record with its store's new address in place of the old one; anything else as it is."""
    if not _is_record(name):
        return data
    values, new = unsealed(data, name), checked_url(target) if is_url(target) else target
    return sealed_bytes(renamed(values, () if values.get("store") else (origin,), new))


def renamed(values: dict[str, Any], places: Iterable[str], new: str) -> dict[str, Any]:
    """A record with its store's new place instead of the old one, which it tells itself, and of these."""
    told = values.get("store")
    own = [told] if told and isinstance(told, str) else []
    moved = values
    for old in dict.fromkeys((*own, *places)):
        moved = moved_inside(moved, old, new)
    return {**moved, "store": new} if own else moved
