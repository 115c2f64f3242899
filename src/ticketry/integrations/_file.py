"""A job's state as one safetensors file: tensors by number, and how they hang together as JSON beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ticketry.errors import TicketryError

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
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={_ENTRY: described})
    os.replace(part, path)


def read(path: Path) -> dict[str, Any]:
    """What `write` wrote; tuples come back as lists.

    Raises:
        TicketryError: if the file is not there or cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            described = json.loads((file.metadata() or {})[_ENTRY])
    except FileNotFoundError:
        raise TicketryError(
            f"{path} is missing, and training goes on from a checkpoint: take one that was written with this callback,"
            " or say where it lies with resume_from="
        ) from None
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise TicketryError(f"{path} cannot be read ({error}): take another checkpoint") from error

    def built(value: Any) -> Any:
        if isinstance(value, dict):
            if _TENSOR in value:
                return tensors[value[_TENSOR]]
            return {name: built(item) for name, item in value["items"].items()}
        return [built(item) for item in value] if isinstance(value, list) else value

    state: dict[str, Any] = built(described)
    return state
