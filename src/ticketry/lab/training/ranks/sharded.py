"""Train with parameters, gradients and optimiser states sharded among the ranks: FSDP2 (`fully_shard`).

While a rank computes, it holds at most one whole block of the network. Checkpoints of unfinished segments are written
by `torch.distributed.checkpoint` as safetensors files, one part per rank. Final results are gathered one tensor at a
time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ticketry.core.scope import normal_name
from ticketry.core.sharding import reshard
from ticketry.errors import StoreError
from ticketry.lab.store import parts
from ticketry.lab.store.store import Store
from ticketry.lab.training.optimizer import load_optimizer
from ticketry.lab.training.ranks.group import Group
from ticketry.lab.training.state import select_prefix

if TYPE_CHECKING:
    from ticketry.lab.training.loop import Loop

_SMALLEST = 1 / 1024
"""Least share of the network's parameters that a block must have to be gathered on its own."""
_FILE = 64 << 20
"""Approximate bytes of tensors, in all ranks together, that are written into files with the same number."""


class ShardedGroup(Group):
    """Connects one rank, which has a part of every parameter, with the other ranks that train the network."""

    in_parts = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard the model's parameters among the ranks, and return the model."""
        mesh = init_device_mesh(self._device, (self.world,))
        for block in find_blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return this rank's shards of weights and buffers, by name, without copying them."""
        reshard(model)
        return {normal_name(name): value.detach() for name, value in model.state_dict().items()}

    def require_same_weights(self, model: nn.Module) -> None:
        """Do nothing, because ranks hold different parts of the weights."""


def find_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network whose parameters are gathered one block at a time, inner blocks first.

    Blocks are the items of each `Sequential` and `ModuleList`. Other submodules are not used as blocks, since a model
    may read their weights without calling them. Small blocks, and blocks that share parameters with others, are left
    out.
    """
    uses: dict[Tensor, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[parameter] = uses.get(parameter, 0) + 1
    least = _SMALLEST * sum(parameter.numel() for parameter in uses)
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for child in module.children():
                if not isinstance(child, (nn.ModuleList, nn.ModuleDict)) and _is_separate(child, uses, least):
                    found[child] = None
    yield from reversed(found)


def _is_separate(block: nn.Module, uses: Mapping[Tensor, int], least: float) -> bool:
    own: dict[Tensor, int] = {}
    for _, parameter in block.named_parameters(remove_duplicate=False):
        own[parameter] = own.get(parameter, 0) + 1
    size = sum(parameter.numel() for parameter in own)
    return size > 0 and size >= least and all(uses[parameter] == count for parameter, count in own.items())


# -- states inside a segment -------------------------------------------------------------------------------------------


def save_state(group: Group, store: Store, trajectory: str, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Store a checkpoint; all ranks call this together.

    Args:
        group: the ranks.
        store: the store.
        trajectory, step: key of the training, and the step of the checkpoint.
        tensors: tensors of the state by name, of which this rank writes its shards.

    Raises:
        StoreError: in all ranks, if a rank cannot write its part.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    folder = Path(group.first(str(parts.create_folder(store.paths, trajectory, step)) if group.rank == 0 else None))
    flat = {name: value.reshape(1) if value.dim() == 0 else value for name, value in tensors.items()}
    # A file is held in memory while it is written, so the state is split into several files.
    files = dict(zip(flat, itertools.accumulate(value.nbytes for value in flat.values()), strict=True))
    numbered = {name: 1 + so_far // _FILE for name, so_far in files.items()}
    numbers = {number: place for place, number in enumerate(sorted(set(numbered.values())), 1)}
    by = HuggingFaceStorageWriter(
        path=str(folder),
        fqn_to_index_mapping={name: numbers[number] for name, number in numbered.items()},
        save_distributed=True,
    )
    _run_checkpoint(folder, "save", flat, by)
    found: dict[str, str] = {}
    for each in group.gather(parts.compute_digests(folder, group.rank, group.world)):
        found |= each
    if group.rank == 0:
        parts.finish_folder(folder, store.paths, trajectory, step, found)
        store.upload_checkpoint(trajectory, step, store.paths.partial_folder(trajectory, step))


def load_state(folder: Path, loop: Loop) -> float:
    """Load this rank's part of the checkpoint in `folder` into a training loop.

    Returns:
        The seconds that training up to the checkpoint took.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    model = {f"model/{normal_name(name)}": value for name, value in loop.model.state_dict().items()}
    parameters = {f"optimizer/{name}": parameter for name, parameter in loop.model.named_parameters()}
    target: dict[str, Tensor] = {}
    for name, about in HuggingFaceStorageReader(path=str(folder)).read_metadata().state_dict_metadata.items():
        assert isinstance(about, TensorStorageMetadata)
        dtype = about.properties.dtype
        like = model.get(name, parameters.get(name.rpartition("/")[0]))
        if like is not None and like.shape == about.size:
            target[name] = torch.empty_like(like, dtype=dtype, requires_grad=False)
        else:
            target[name] = torch.empty(about.size, dtype=dtype)
    _run_checkpoint(folder, "load", target, HuggingFaceStorageReader(path=str(folder)))
    with torch.no_grad():
        for name, value in model.items():
            value.copy_(target[name].reshape(value.shape) if value.dim() == 0 else target[name])
    state = {name.partition("/")[2]: value for name, value in target.items() if name.startswith("optimizer/")}
    load_optimizer(loop.optimizer, loop.model, {name: _restore_scalar(name, value) for name, value in state.items()})
    loop.resume(select_prefix(target, "session/"), target["losses"])
    return float(target["seconds"])


def _restore_scalar(name: str, value: Tensor) -> Tensor:
    """Return a step count without the dimension that `save_state` has added; return other tensors unchanged."""
    return value.reshape(()) if name.endswith("/step") else value


def _run_checkpoint(folder: Path, what: str, tensors: dict[str, Tensor], by: Any) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        if what == "save":
            save(tensors, storage_writer=by)
        else:
            load(tensors, storage_reader=by)
    except CheckpointException as error:  # a BaseException, which no other handler catches
        rank, (why, _) = next(iter(error.failures.items()))
        raise StoreError(
            f"rank {rank} cannot {what} its part of a state in {folder}: {why}. The same command goes on from the state"
            " before"
        ) from error
