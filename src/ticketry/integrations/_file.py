"""A job's state as one safetensors file: tensors by number, and how they hang together as JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ticketry.core.mask import read_metadata
from ticketry.errors import TicketryError
from ticketry.files import content_of, parse_json, write_atomically
from ticketry_engine.support.sealed_files import sealed, unsealed

_ENTRY = "ticketry"
_TENSOR = "tensor"


def write(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts (with text as keys) and lists of tensors and plain values, whole or not at all."""
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            number = str(len(tensors))
            tensors[number] = value.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: number}
        if isinstance(value, dict):
            return {"items": {name: plain(item) for name, item in value.items()}}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    described = json.dumps(plain(state))
    write_atomically(path, sealed(save(tensors, metadata={_ENTRY: described})))


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; tuples come back as lists.

    Raises:
        TicketryError: if the file is not there or cannot be read.
    """
    try:
        data = unsealed(content_of(path))
        tensors, described = load(data), parse_json(read_metadata(data)[_ENTRY])
    except FileNotFoundError:
        raise TicketryError(
            f"{path} is missing, and training goes on from a checkpoint: take one that was written with this callback,"
            " or say where it lies with resume_from="
        ) from None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TicketryError(f"{path} cannot be read ({error}): take another checkpoint") from error

    def built(value: Any) -> Any:
        if isinstance(value, dict):
            if _TENSOR in value:
                return tensors[value[_TENSOR]]
            return {name: built(item) for name, item in value["items"].items()}
        return [built(item) for item in value] if isinstance(value, list) else value

    try:
        state = built(described)
    except (LookupError, TypeError, AttributeError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise TicketryError(f"{path} holds no state of a job: take another checkpoint")
    return state
