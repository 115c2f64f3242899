"""The folder of a ticket: written completely or not at all, and checked before its contents are used.

If tensors are sharded over several devices, all processes write the folder together and gather one tensor at a time.
The files are the same as if a single process writes the same ticket.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from ticketry.core.sharding import gather_shards, is_sharded
from ticketry.core.ticket.state_dicts import state_to_bytes
from ticketry.errors import TicketError
from ticketry.files import delete_tree_if_possible, describe_os_error, exists, flush_to_disk, is_file, parse_json

_DEEPEST = 32
_LONGEST_INTEGER = 10**300  # beyond it Python's JSON writer may refuse what its reader accepted


def to_json_values(value: object, where: str, depth: int = 0) -> Any:
    """Return a copy of `value` as plain JSON values; tuples become lists, and keys are sorted.

    Args:
        where: name of the value in messages, such as ``info``.
        depth: number of containers around the value; too many are an error.
    """
    if depth > _DEEPEST:
        raise TicketError(f"{where:.80}… is nested more than {_DEEPEST} levels deep: make it flatter")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _check_unicode(value, where)
    if isinstance(value, int) and abs(value) < _LONGEST_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        keys = sorted(_check_key(key, where) for key in value)
        return {key: to_json_values(value[key], f"{where}.{key}", depth + 1) for key in keys}
    if isinstance(value, (list, tuple)):
        return [to_json_values(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, (int, float)):
        raise TicketError(f"{where:.80} is not a number that JSON can hold (NaN, infinity or too long): use null")
    raise TicketError(f"{where:.80} is a {type(value).__name__}, which JSON cannot hold: give text or numbers")


def _check_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TicketError(f"{where:.80} has the key {key!r:.80}, which is not text")
    return _check_unicode(key, where)


def _check_unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TicketError(f"{where!r:.80} holds text that is not valid Unicode") from None
    return text


KIND = "ticketry.ticket"
FORMAT = 2
MANIFEST = "ticket.json"
MASK = "mask.safetensors"
START = "start.safetensors"
MODEL = "model.safetensors"
FILES = (MANIFEST, MASK, START, MODEL)

_SEAL = "sha256"
"""Name of the entry in ticket.json that has the digest of all other entries."""
_LARGEST_MANIFEST = 16 << 20
_TRIES = 8
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFact:
    """Size and digest of a file of the ticket, as listed in ticket.json."""

    size: int
    """Number of bytes."""
    sha256: str
    """Hexadecimal digest."""


# -- writing -----------------------------------------------------------------------------------------------------------


def write_folder(
    path: str | Path,
    payloads: Iterable[tuple[str, bytes | Iterable[bytes]]],
    manifest: Callable[[Mapping[str, FileFact]], bytes],
) -> Path:
    """Write a ticket's files to a temporary folder next to `path`, and then move this folder to `path`.

    An existing ticket is left unchanged if it has the same bytes, and replaced otherwise.

    Args:
        payloads: name and contents of every file except ticket.json; the contents are one or several byte strings. The
            iterable is consumed one file at a time.
        manifest: function that returns the contents of ticket.json, given the sizes and digests of all other files.
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
            facts[name] = _write_file(temporary / name, (data,) if isinstance(data, bytes) else data)
        _write_file(temporary / MANIFEST, (manifest(facts),))
        flush_to_disk(temporary)
        _move_into_place(temporary, target)
        flush_to_disk(target.parent)
    except OSError as error:
        raise TicketError(
            f"the ticket cannot be written to {target}: {describe_os_error(error)};"
            " make room, check the permissions, or choose another folder"
        ) from None
    finally:
        delete_tree_if_possible(temporary)
    return target


def _write_file(path: Path, pieces: Iterable[bytes]) -> FileFact:
    size, digest = 0, hashlib.sha256()
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
            size += len(piece)
    flush_to_disk(path)
    return FileFact(size, digest.hexdigest())


def _move_into_place(temporary: Path, target: Path) -> None:
    aside = temporary.with_suffix(".old")
    for tries_left in reversed(range(_TRIES)):
        try:
            if exists(target):
                if _have_same_files(temporary, target):
                    return
                _require_replaceable_ticket_folder(target)
                target.rename(aside)  # a folder cannot replace one with files
            temporary.rename(target)
            return
        except OSError:  # another process may have moved a ticket here or away
            if not tries_left:
                raise
        finally:
            _restore_or_delete_replaced_ticket(aside, target)


def _restore_or_delete_replaced_ticket(aside: Path, target: Path) -> None:
    """Move the replaced ticket from `aside` back to `target` if no new ticket is at `target`; otherwise delete it."""
    if exists(aside) and not exists(target):
        with contextlib.suppress(OSError):
            aside.rename(target)
    if exists(target):
        delete_tree_if_possible(aside)


def _have_same_files(one: Path, other: Path) -> bool:
    names = [name for name in FILES if exists(one / name)]
    if names != [name for name in FILES if exists(other / name)]:
        return False
    return all(filecmp.cmp(one / name, other / name, shallow=False) for name in names)


def _require_replaceable_ticket_folder(target: Path) -> None:
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
        return bool(_parse_json_object(read_checked_file(folder, folder, MANIFEST)).get("kind") == KIND)
    except TicketError:
        return False


def build_manifest_with_digest(values: Mapping[str, Any]) -> bytes:
    """Return the bytes of a ticket.json that contains `values` and their digest."""
    whole = {**values, _SEAL: _digest_of_json_values(values)}
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _digest_of_json_values(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path, root: Path) -> tuple[dict[str, Any], dict[str, FileFact]]:
    """Return the values in ticket.json of `folder`, and the sizes and digests of the other files.

    Links must not lead out of `root`.
    """
    if not os.path.isdir(folder):
        raise TicketError(f"there is no ticket at {folder}: a ticket is a folder with a {MANIFEST}")
    manifest: dict[str, Any] = to_json_values(_parse_json_object(read_checked_file(folder, root, MANIFEST)), MANIFEST)
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
    if (seal is not None or number > 1) and seal != _digest_of_json_values(manifest):  # format 1 had none
        raise TicketError(
            f"{folder / MANIFEST} is damaged: its contents do not match its digest; fetch the ticket anew"
        )
    facts = _parse_file_facts(manifest.get("files"), folder)
    if MODEL not in facts and os.path.lexists(folder / MODEL):
        raise TicketError(
            f"{folder} has a {MODEL} that its {MANIFEST} does not list: remove it or fetch the ticket anew"
        )
    return manifest, facts


def read_file(folder: Path, root: Path, name: str, fact: FileFact) -> bytes:
    """Return the contents of the file `name`; raise `TicketError` if its size or digest differs from `fact`.

    Links must not lead out of `root`.
    """
    data = read_checked_file(folder, root, name, fact.size)
    if hashlib.sha256(data).hexdigest() != fact.sha256:
        raise TicketError(
            f"{folder / name} is damaged: its SHA-256 is not the one in {MANIFEST}; fetch the ticket anew"
        )
    return data


def _parse_file_facts(files: object, folder: Path) -> dict[str, FileFact]:
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


def read_checked_file(folder: Path, root: Path, name: str, size: int | None = None) -> bytes:
    """Return the bytes of a regular file, which must be below `root` after resolving links.

    Memory is allocated for the actual size of the file, not for the size that ticket.json says.
    """
    path = Path(os.path.realpath(folder / name))
    if Path(os.path.realpath(root)) not in path.parents:
        raise TicketError(f"{folder / name} is a link to outside of the ticket and is not followed")
    try:
        if not is_file(path):  # a pipe or a device
            raise TicketError(f"{folder} is not a whole ticket: it has no file {name}")
        actual = path.stat().st_size
        if size is None and actual > _LARGEST_MANIFEST:
            raise TicketError(f"{folder / name} is larger than {_LARGEST_MANIFEST >> 20} MB: it is not a ticket's")
        if size is not None and actual != size:
            raise TicketError(f"{folder / name} has {actual} bytes and not the number in {MANIFEST}: fetch it anew")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else repr(error)
        raise TicketError(f"{folder / name} cannot be read: {reason}") from error


def _parse_json_object(data: bytes) -> dict[str, Any]:
    try:
        value = parse_json(data.decode(), parse_constant=_refuse_infinity_and_nan)
    except (ValueError, RecursionError) as error:
        raise TicketError(f"{MANIFEST} is not JSON ({str(error)[:80]}): the ticket is damaged") from None
    if not isinstance(value, dict):
        raise TicketError(f"{MANIFEST} is not a JSON object: the ticket is damaged")
    return value


def _refuse_infinity_and_nan(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def any_sharded(*states: Mapping[str, Tensor] | None) -> bool:
    """Return whether a tensor in the state dicts `states` is sharded over several devices."""
    return any(is_sharded(tensor) for state in states if state for tensor in state.values())


def write_folder_from_all_ranks(
    path: str | Path,
    files: Iterable[tuple[str, Callable[[], bytes] | Mapping[str, Tensor]]],
    manifest: Callable[[Mapping[str, FileFact]], bytes],
) -> Path:
    """Write a ticket's folder as `write_folder` does; all processes call this, and rank 0 writes.

    `files` has the name of each file, with a sharded state dict, or with a function that returns the contents and that
    only rank 0 calls. For `manifest` see `write_folder`.
    """
    import torch.distributed as dist

    made = {name: iterate_file_bytes(each) if isinstance(each, Mapping) else each for name, each in files}
    streams = [each for each in made.values() if not callable(each)]
    world = dist.get_world_size()
    for name, tensor in (
        (name, one) for _, state in files if isinstance(state, Mapping) for name, one in state.items()
    ):
        if is_sharded(tensor) and tensor.device_mesh.size() != world:
            raise TicketError(
                f"{name!r} lies on {tensor.device_mesh.size()} of {world} processes: a ticket is saved by all of them"
                " together, and each needs a part of it"
            )
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            write_folder(path, ((name, each() if callable(each) else each) for name, each in made.items()), manifest)
        except Exception as error:
            failure = error
    for stream in streams:  # consume the rest, so that no process waits for another
        for _ in stream:
            pass
    said = [None if failure is None else str(failure)]
    dist.broadcast_object_list(said, src=0)
    if failure is not None:
        raise failure
    if said[0] is not None:
        raise TicketError(f"rank 0 has not written the ticket: {said[0]}")
    return Path(os.path.realpath(path))


def iterate_file_bytes(
    state: Mapping[str, Tensor], to_bytes: Callable[[Mapping[str, Tensor]], bytes] = state_to_bytes
) -> Iterator[bytes]:
    """Yield the bytes of the safetensors file of a state dict, one tensor at a time.

    All processes that hold shards of the state dict must consume the iterator. `to_bytes` converts a state dict to such
    a file. It is called with empty tensors, to find the order of the tensors in the file.
    """
    hollow = to_bytes({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in state.items()})
    entries: dict[str, Any] = parse_json(hollow[8:])
    names = [name for name in entries if name != "__metadata__"]
    end = 0
    for name in names:  # sizes and offsets are those of `state`
        begin, end = end, end + state[name].numel() * state[name].element_size()
        entries[name] |= {"shape": list(state[name].shape), "data_offsets": [begin, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        tensor = state[name]
        everything = gather_shards(tensor.to_local(), tensor) if is_sharded(tensor) else tensor
        yield everything.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
