"""A ticket whose states lie in parts on several devices, saved by all their processes together: the first one writes.

One tensor at a time is gathered, so that no process ever has the whole model. The bytes are those of the same ticket
saved by one process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ticketry.core.devices.sharding import gather_shards, is_sharded
from ticketry.core.ticket.folder import FileFact, write_folder
from ticketry.core.ticket.state_dicts import state_bytes
from ticketry.errors import TicketError
from ticketry.files import parse_json

_Written = Callable[[Mapping[str, Tensor]], bytes]
"""Tensors as the bytes of a safetensors file."""


def any_in_parts(*states: Mapping[str, Tensor] | None) -> bool:
    """Whether any tensor of these states lies in parts."""
    return any(is_sharded(tensor) for state in states if state for tensor in state.values())


def save_together(
    path: str | Path,
    files: Iterable[tuple[str, Callable[[], bytes] | Mapping[str, Tensor]]],
    manifest: Callable[[Mapping[str, FileFact]], bytes],
) -> Path:
    """`write_folder`, called by all processes; the one of rank 0 writes.

    Args:
        path: the ticket's folder, as rank 0 sees it.
        files: name and what makes the contents (asked of rank 0 alone), or a state, which all have parts of.
        manifest: see `write_folder`.

    Raises:
        TicketError: in all processes, if a state lies on fewer of them than there are, or it cannot be written.
    """
    import torch.distributed as dist

    made = {name: pieces_of(each) if isinstance(each, Mapping) else each for name, each in files}
    streams = [each for each in made.values() if not callable(each)]
    for each in files:
        if isinstance(each[1], Mapping):
            _require_all_processes(each[1], dist.get_world_size())
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            write_folder(path, ((name, each() if callable(each) else each) for name, each in made.items()), manifest)
        except Exception as error:
            failure = error
    for stream in streams:  # what is left of them, so that no process waits for another
        for _ in stream:
            pass
    said = [None if failure is None else str(failure)]
    dist.broadcast_object_list(said, src=0)
    if failure is not None:
        raise failure
    if said[0] is not None:
        raise TicketError(f"rank 0 has not written the ticket: {said[0]}")
    return Path(os.path.realpath(path))


def _require_all_processes(state: Mapping[str, Tensor], world: int) -> None:
    for name, tensor in state.items():
        if is_sharded(tensor) and tensor.device_mesh.size() != world:
            raise TicketError(
                f"{name!r} lies on {tensor.device_mesh.size()} of {world} processes: a ticket is saved by all of them"
                " together, and each needs a part of it"
            )


def pieces_of(state: Mapping[str, Tensor], written: _Written = state_bytes) -> Iterator[bytes]:
    """A state as the bytes that `written` makes of a whole one, a tensor at a time.

    All processes that have parts of it go through them to the end.
    """
    names, header = _header(state, written)
    yield header
    for name in names:
        tensor = state[name]
        everything = gather_shards(tensor.to_local(), tensor) if is_sharded(tensor) else tensor
        yield everything.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _header(state: Mapping[str, Tensor], written: _Written) -> tuple[list[str], bytes]:
    """(names in the order of the file, length and JSON that a safetensors file begins with).

    The library orders by type and name: it is asked, with tensors of the same names and types without elements.
    """
    hollow = written({name: torch.empty(0, dtype=tensor.dtype) for name, tensor in state.items()})
    entries: dict[str, Any] = parse_json(hollow[8:])
    names = [name for name in entries if name != "__metadata__"]
    end = 0
    for name in names:
        begin, end = end, end + state[name].numel() * state[name].element_size()
        entries[name] = {
            "dtype": entries[name]["dtype"],
            "shape": list(state[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return names, len(text).to_bytes(8, "little") + text
