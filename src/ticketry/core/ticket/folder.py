"""A ticket's folder: written whole or not at all, and checked before anything in it is believed."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ticketry.core.ticket.json_values import plain
from ticketry.errors import TicketError
from ticketry.files import flush, parse_json, reason_of
from ticketry.folders import delete_tree_if_possible, exists, is_file

KIND = "ticketry.ticket"
FORMAT = 2
MANIFEST = "ticket.json"
MASK = "mask.safetensors"
START = "start.safetensors"
MODEL = "model.safetensors"
FILES = (MANIFEST, MASK, START, MODEL)

_SEAL = "sha256"
"""The entry of ticket.json that holds the digest of all others."""
_LARGEST_MANIFEST = 16 << 20
_TRIES = 8
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFact:
    """What ticket.json says of another file of the ticket."""

    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal digest."""


# -- writing -----------------------------------------------------------------------------------------------------------


def write_folder(
    path: str | Path,
    payloads: Iterable[tuple[str, bytes | Iterable[bytes]]],
    manifest: Callable[[Mapping[str, FileFact]], bytes],
) -> Path:
    """Write a ticket's files beside `path` and move them into place together.

    A ticket that is there already is left alone if it is the same, byte for byte, and replaced if it is another.

    Args:
        path: the ticket's folder; folders above it are made.
        payloads: name and contents, whole or piece by piece, of every file but ticket.json, taken one at a time.
        manifest: gives the contents of ticket.json when the facts of all other files are known.

    Raises:
        TicketError: if `path` is there and no ticket, or cannot be written; nothing is left behind then.
    """
    target = Path(os.path.realpath(path))
    if not target.name:
        raise TicketError(f"a ticket needs a folder of its own, not {target}")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        facts = {}
        for name, data in payloads:
            facts[name] = _write(temporary / name, (data,) if isinstance(data, bytes) else data)
        _write(temporary / MANIFEST, (manifest(facts),))
        flush(temporary)
        _place(temporary, target)
        flush(target.parent)
    except OSError as error:
        raise TicketError(
            f"the ticket cannot be written to {target}: {reason_of(error)};"
            " make room, check the permissions, or choose another folder"
        ) from None
    finally:
        delete_tree_if_possible(temporary)
    return target


def _write(path: Path, pieces: Iterable[bytes]) -> FileFact:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    flush(path)
    return FileFact(size, digest.hexdigest())


def _place(temporary: Path, target: Path) -> None:
    aside = temporary.with_suffix(".old")
    for tries_left in reversed(range(_TRIES)):
        try:
            if exists(target):
                if _same(temporary, target):
                    return
                _require_replaceable(target)
                target.rename(aside)  # a folder cannot be renamed over one that has files in it
            temporary.rename(target)
            return
        except OSError:  # also if another process put a ticket there, or moved it aside, between two of these lines
            if not tries_left:
                raise
        finally:
            _settle(aside, target)


def _settle(aside: Path, target: Path) -> None:
    """Put back what was moved aside if nothing came in its place; else remove it."""
    if exists(aside) and not exists(target):
        with contextlib.suppress(OSError):
            aside.rename(target)
    if exists(target):
        delete_tree_if_possible(aside)


def _same(one: Path, other: Path) -> bool:
    names = [name for name in FILES if exists(one / name)]
    if names != [name for name in FILES if exists(other / name)]:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def _require_replaceable(target: Path) -> None:
    if target.is_file():
        raise TicketError(f"{target} is a file: a ticket is a folder, choose another name")
    before = target.stat()
    names = sorted(entry.name for entry in target.iterdir())
    others = [name for name in names if name not in FILES]
    if names and (others or not _is_ticket(target)):
        if not os.path.samestat(before, target.stat()):
            raise FileExistsError(f"{target} was replaced while it was looked at")
        what = f"it holds {others[0]!r}" if others else f"it has no {MANIFEST} of a ticket"
        raise TicketError(f"{target} is there and is not a ticket's folder ({what}): choose another, or remove it")


def _is_ticket(folder: Path) -> bool:
    try:
        return bool(_json(_read(folder, folder, MANIFEST)).get("kind") == KIND)
    except TicketError:
        return False


def sealed_manifest(values: Mapping[str, Any]) -> bytes:
    """ticket.json of these values, with a digest of them."""
    whole = {**values, _SEAL: _digest_of(values)}
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest_of(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, root: Path) -> tuple[dict[str, Any], dict[str, FileFact]]:
    """ticket.json of `folder` as plain values, and what it says of the other files.

    Raises:
        TicketError: if it is absent, larger than 16 MB, no JSON object, of another kind or a newer format, or names
            files that a ticket does not have.
    """
    if not os.path.isdir(folder):
        raise TicketError(f"there is no ticket at {folder}: a ticket is a folder with a {MANIFEST}")
    manifest: dict[str, Any] = plain(_json(_read(folder, root, MANIFEST)), MANIFEST)
    if manifest.get("kind") != KIND:
        raise TicketError(f"{folder / MANIFEST} is not a ticket's: its kind is {str(manifest.get('kind'))[:80]!r}")
    number = manifest.get("format")
    if type(number) is not int or number < 1:
        raise TicketError(f"{folder / MANIFEST} has no format number: the ticket is damaged")
    if number > FORMAT:
        raise TicketError(
            f"the ticket {folder} was made by a newer ticketry (its format is not {FORMAT}): pip install -U ticketry"
        )
    seal = manifest.pop(_SEAL, None)
    if (seal is not None or number > 1) and seal != _digest_of(manifest):  # format 1 had none
        raise TicketError(
            f"{folder / MANIFEST} is damaged: its contents do not match its digest; fetch the ticket anew"
        )
    facts = _facts(manifest.get("files"), folder)
    if MODEL not in facts and os.path.lexists(folder / MODEL):
        raise TicketError(
            f"{folder} has a {MODEL} that its {MANIFEST} does not list: remove it or fetch the ticket anew"
        )
    return manifest, facts


def manifest_bytes(folder: Path) -> bytes:
    """ticket.json as it is on the disk."""
    return _read(folder, folder, MANIFEST)


def read_file(folder: Path, root: Path, name: str, fact: FileFact) -> bytes:
    """The contents of a file whose size and digest are as ticket.json says; `TicketError` if not."""
    data = _read(folder, root, name, fact.size)
    if hashlib.sha256(data).hexdigest() != fact.sha256:
        raise TicketError(
            f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST}; fetch the ticket anew"
        )
    return data


def _facts(files: object, folder: Path) -> dict[str, FileFact]:
    if not isinstance(files, dict) or MASK not in files or START not in files:
        raise TicketError(f"{folder / MANIFEST} does not list {MASK} and {START}: the ticket is damaged")
    facts = {}
    for name, entry in files.items():
        if name not in (MASK, START, MODEL):
            raise TicketError(f"{folder / MANIFEST} names the file {name[:80]!r}, which is none of a ticket's")
        size, digest = (entry.get("size"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        if type(size) is not int or size < 0 or not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise TicketError(f"{folder / MANIFEST} has no size and SHA-256 of {name}: the ticket is damaged")
        facts[name] = FileFact(size, digest)
    return facts


def _read(folder: Path, root: Path, name: str, size: int | None = None) -> bytes:
    """The bytes of a regular file that lies, links followed, under `root`. Memory is taken for its true size only."""
    path = Path(os.path.realpath(folder / name))
    if Path(os.path.realpath(root)) not in path.parents:
        raise TicketError(f"{folder / name} is a link to outside of the ticket and is not followed")
    try:
        if not is_file(path):  # nor a pipe or a device
            raise TicketError(f"{folder} is not a whole ticket: it has no file {name}")
        actual = path.stat().st_size
        if size is None and actual > _LARGEST_MANIFEST:
            raise TicketError(f"{folder / name} is larger than {_LARGEST_MANIFEST >> 20} MB: it is not a ticket's")
        if size is not None and actual != size:
            raise TicketError(f"{folder / name} has {actual} bytes and not the number in {MANIFEST}: fetch it anew")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else repr(error)
        raise TicketError(f"{folder / name} cannot be read: {reason}") from error


def _json(data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TicketError(f"{MANIFEST} is not JSON ({str(error)[:80]}): the ticket is damaged") from None
    if not isinstance(value, dict):
        raise TicketError(f"{MANIFEST} is not a JSON object: the ticket is damaged")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
