"""Communication among the processes (ranks) that train one network together."""

from __future__ import annotations

import datetime
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ticketry.core.devices import synchronise_norms
from ticketry.errors import TrainingError
from ticketry.lab.training.precision import SYNCHRONISED, Arithmetic
from ticketry.lab.training.ranks.batch_parts import Draws
from ticketry.lab.training.state import copy_state
from ticketry.tasks.task import PartOfBatch

_PATIENCE = datetime.timedelta(minutes=30)
"""Timeout of ranks that wait for one another. The parent ends all of them as soon as one is gone."""
_GPU_LOOKS = 16
"""Number of GPU steps between two checks whether to store a state, since a check makes the GPU wait."""


class Group:
    """One rank, which has the whole network. All ranks call the same methods in the same order.

    Args:
        arithmetic: the segment's arithmetic, which includes the number of ranks, their device and their norms.
    """

    in_parts = False
    """Whether parameters are sharded among the ranks."""

    def __init__(self, rank: int, arithmetic: Arithmetic) -> None:
        self.rank, self.world = rank, arithmetic.ranks
        self._norms, self._device = arithmetic.norms, arithmetic.device
        self.together = self.in_parts
        """Whether all ranks take part in copying a state, so that they must agree when."""
        self._wish = self._heard = False
        self._steps = 0

    @classmethod
    def join(cls, rank: int, arithmetic: Arithmetic, meet: Path) -> Group:
        """Connect to the other ranks on this machine through the file `meet`: with NCCL if each has a GPU, otherwise
        with gloo.
        """
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
        return cls(rank, arithmetic)

    def disconnect(self) -> None:
        """Disconnect when all ranks have finished."""
        dist.barrier()
        dist.destroy_process_group()

    # -- the network -------------------------------------------------------------------------------------------------

    def convert_norms(self, model: nn.Module) -> nn.Module:
        """Return the network with synchronised or own batch norms, as the arithmetic says."""
        return synchronise_norms(model) if self._norms == SYNCHRONISED else model

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a module to call instead of `model`; it averages gradients over all ranks.

        As in one process, unused parameters get no gradients. Finding them costs a traversal of the graph, and makes
        every step add gradients in the order of parameters, so that a resumed training has the bits of an uninterrupted
        one. Buffers are not broadcast in each step, since only those of the first rank are stored and measured.
        """
        return DistributedDataParallel(
            model, find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the first rank's buffers to all ranks."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a copy of weights and buffers for the store, by normalised name."""
        return copy_state(model)

    def agree_to_store(self, wish: bool) -> bool:
        """Return, after each step, whether to store a state now; `wish` says whether the first rank wants to.

        If the first rank stores alone, it does so at once. If all ranks take part, they do so when all have received
        the wish by the end of the previous step, and all get the same answer.
        """
        if not self.together:
            return wish
        self._wish = wish and not self._heard
        return self._heard

    # -- values ------------------------------------------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a value over all ranks."""
        total = value.detach() / self.world
        dist.all_reduce(total)
        return total

    def loss_of_step(self, value: Tensor) -> Tensor:
        """Return the mean loss over all ranks, once per step; the same message carries the ranks' wishes to store."""
        if not self.together:
            return self.mean(value)
        both = torch.stack([value.detach() / self.world, value.new_tensor(float(self._wish))])
        dist.all_reduce(both)
        self._steps += 1
        looks = self._device == "cpu" or self._steps % _GPU_LOOKS == 0
        self._heard = looks and bool(both[1] > 0)
        return both[0]

    def drawing(self, place: PartOfBatch) -> Draws:
        """Return a context manager in which examples have the random numbers that they have in the whole batch."""
        return Draws(place)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in the order of ranks."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first(self, value: Any) -> Any:
        """Return the first rank's value in all ranks."""
        return self.gather(value)[0]

    def require_same(self, what: str, value: Any) -> None:
        """Raise `TrainingError` in all ranks if their values differ."""
        found = self.gather(value)
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise TrainingError(
                f"rank {others[0]} of {self.world} has {what} other than rank 0: they do not train the same network"
            )

    def require_same_weights(self, model: nn.Module) -> None:
        """Raise `TrainingError` in all ranks if any bit of their parameters differs."""
        found = hashlib.sha256()
        for parameter in model.parameters():
            raw = parameter.detach().to("cpu").contiguous().flatten()
            found.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
        self.require_same("weights", found.hexdigest())
