"""Let the processes (ranks) that train one network together communicate."""

from __future__ import annotations

import datetime
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ticketry.core.scope import name_without_wrappers
from ticketry.core.sharding import reshard
from ticketry.errors import TrainingError
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.ranks.batch_parts import Draws
from ticketry.lab.training.state import copy_state
from ticketry.tasks.task import PartOfBatch

_PATIENCE = datetime.timedelta(minutes=30)
"""Maximum time that a rank waits for another rank; if a rank is lost, the parent process ends all ranks earlier."""
_SMALLEST = 1 / 1024
"""Least share of the network's parameters that a block must have to be gathered on its own."""
_GPU_LOOKS = 16
"""Number of steps on a GPU between two checks whether to store a state, because a check makes the GPU wait."""


class Group:
    """Connects one rank (a training process with the whole network) with the others; all call the same methods."""

    in_parts = False
    """Whether each rank has only a part of each parameter."""

    def __init__(self, rank: int, arithmetic: Arithmetic, meet: Path) -> None:
        """Connect to the other ranks through the file `meet` on this machine, with NCCL on GPUs and otherwise gloo."""
        self.rank, self.world = rank, arithmetic.ranks
        self._device = arithmetic.device
        self.stores_together = self.in_parts
        """Whether all ranks must copy their state at the same step."""
        self._wish = self._heard = False
        self._steps = 0
        if arithmetic.device == "cuda":
            torch.cuda.set_device(rank)
        elif sys.platform == "linux":  # otherwise gloo resolves this machine's host name, which may be wrong
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if arithmetic.device == "cuda" else "gloo",
            init_method=f"file://{meet}",
            rank=rank,
            world_size=arithmetic.ranks,
            timeout=_PATIENCE,
        )

    def disconnect(self) -> None:
        """Wait until all ranks have finished, then disconnect."""
        dist.barrier()
        dist.destroy_process_group()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a module to call instead of `model`, which averages gradients over all ranks.

        Unused parameters get no gradients, as in one process. Buffers are not synchronised, as only rank 0 stores them.
        Gradients are added in the order of parameters, so that a resumed training has the same bits.
        """
        return DistributedDataParallel(
            model, find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def share_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def state_for_store(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a copy of the model's weights and buffers for the store, by name."""
        return copy_state(model)

    def agree_to_store(self, wish: bool) -> bool:
        """Return whether this rank stores a state now; `wish` is whether it wants to. All ranks call this every step.

        If the first rank stores states alone, the answer is `wish`. If all ranks store their parts together, all get
        the same answer, which becomes True a step or more after one rank's `wish`.
        """
        if not self.stores_together:
            return wish
        self._wish = wish and not self._heard
        return self._heard

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of `value` over all ranks (training processes)."""
        total = value.detach() / self.world
        dist.all_reduce(total)
        return total

    def average_loss(self, value: Tensor) -> Tensor:
        """Return the mean of the losses of all ranks, and learn if a rank wants to store; call this once per step."""
        if not self.stores_together:
            return self.mean(value)
        both = torch.stack([value.detach() / self.world, value.new_tensor(float(self._wish))])
        dist.all_reduce(both)
        self._steps += 1
        looks = self._device == "cpu" or self._steps % _GPU_LOOKS == 0
        self._heard = looks and bool(both[1] > 0)
        return both[0]

    def drawing(self, place: PartOfBatch) -> Draws:
        """Return a context manager in which this rank's examples get the random numbers of the whole batch."""
        return Draws(place)

    def gather(self, value: Any) -> list[Any]:
        """Return a list with the `value` of each rank, in the order of ranks."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def value_of_first_rank(self, value: Any) -> Any:
        """Return, in all ranks, the `value` of the first rank."""
        return self.gather(value)[0]

    def require_same(self, what: str, value: Any) -> None:
        """Raise `TrainingError` in all ranks unless all have the same `value`, which the message calls `what`."""
        found = self.gather(value)
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise TrainingError(
                f"rank {others[0]} of {self.world} has {what} other than rank 0: they do not train the same network"
            )

    def require_same_weights(self, model: nn.Module) -> None:
        """Raise `TrainingError` in all ranks unless the model's parameters have the same bits in all ranks."""
        found = hashlib.sha256()
        for parameter in model.parameters():
            raw = parameter.detach().to("cpu").contiguous().flatten()
            found.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
        self.require_same("weights", found.hexdigest())


class ShardedGroup(Group):
    """Connects one rank (a training process with a part of every parameter) with the other ranks."""

    in_parts = True

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard the model's parameters among the ranks, and return the model."""
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self._device, (self.world,))
        for block in find_blocks_to_shard(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def state_for_store(self, model: nn.Module) -> dict[str, Tensor]:
        """Return this rank's shards of weights and buffers, by name, without copying them."""
        reshard(model)
        return {name_without_wrappers(name): value.detach() for name, value in model.state_dict().items()}

    def require_same_weights(self, model: nn.Module) -> None:
        """Do nothing, because ranks hold different parts of the weights."""


def find_blocks_to_shard(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a network whose parameters are gathered one block at a time, inner blocks first.

    Blocks are items of `Sequential` and `ModuleList`; a model may read the weights of other submodules without calling
    them. Small blocks, and blocks that share parameters with other modules, are left out.
    """
    uses: dict[Tensor, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[parameter] = uses.get(parameter, 0) + 1
    least = _SMALLEST * sum(parameter.numel() for parameter in uses)
    found: dict[nn.Module, None] = {}
    for module in model.modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            for child in module.children():
                if not isinstance(child, (nn.ModuleList, nn.ModuleDict)) and _is_shardable_separately(
                    child, uses, least
                ):
                    found[child] = None
    yield from reversed(found)


def _is_shardable_separately(block: nn.Module, uses: Mapping[Tensor, int], least: float) -> bool:
    own: dict[Tensor, int] = {}
    for _, parameter in block.named_parameters(remove_duplicate=False):
        own[parameter] = own.get(parameter, 0) + 1
    size = sum(parameter.numel() for parameter in own)
    return size > 0 and size >= least and all(uses[parameter] == count for parameter, count in own.items())
