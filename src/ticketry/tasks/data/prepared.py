"""A data set as one safetensors file in the cache folder: unpacked once, then memory-mapped by every process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ticketry.files import replacing
from ticketry.tasks.task import Split, Splits


def prepared(name: str, *, folder: Path, make: Callable[[], Splits]) -> Splits:
    """The splits kept as `folder`/prepared/`name`.safetensors; made and kept if that is absent or damaged.

    If they cannot be kept (no room, no permission) they are returned all the same.
    """
    path = folder / "prepared" / f"{name}.safetensors"
    splits = _load(path)
    if splits is None:
        splits = make()
        if _save(splits, path):
            splits = _load(path) or splits  # memory-mapped from here on, so that processes share it
    return splits


def _save(splits: Splits, path: Path) -> bool:
    tensors = _to_tensors(splits)
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _digest(tensors)})
    except (OSError, SafetensorError):
        return False
    return True


def _load(path: Path) -> Splits | None:
    """What the file holds, or None if it is absent or its content is not that of its digest."""
    try:
        with safe_open(path, framework="pt") as file:
            wanted = (file.metadata() or {}).get("sha256")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _to_splits(tensors) if _digest(tensors) == wanted else None
    except (OSError, SafetensorError, KeyError):
        return None


def _to_tensors(splits: Splits) -> dict[str, Tensor]:
    found = {f"{name}.inputs": part.inputs for name, part in vars(splits).items()}
    return found | {f"{name}.targets": part.targets for name, part in vars(splits).items()}


def _to_splits(tensors: Mapping[str, Tensor]) -> Splits:
    parts = ("train", "validation", "test")
    return Splits(*(Split(tensors[f"{name}.inputs"], tensors[f"{name}.targets"]) for name in parts))


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.contiguous().view(-1).numpy().data)
    return found.hexdigest()
