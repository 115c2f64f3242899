"""The processes that train one network together, as one of them sees them."""

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
from ticketry.lab.training.state import state_of
from ticketry.tasks.ranks import PartOfBatch

_PATIENCE = datetime.timedelta(minutes=30)
"""How long ranks wait for one another. Whoever started them ends all as soon as one is gone."""
_GPU_LOOKS = 16
"""Steps on a GPU after which ranks look whether a state is to be stored, for which it has to be waited for."""


class Group:
    """One rank among others, which all call the same methods in the same order. Each has the whole network.

    Args:
        arithmetic: of the segment: how many ranks there are, on what, and what their norms are.
    """

    in_parts = False
    """Whether each rank has a part of every parameter."""

    def __init__(self, rank: int, arithmetic: Arithmetic) -> None:
        self.rank, self.world = rank, arithmetic.ranks
        self._norms, self._device = arithmetic.norms, arithmetic.device
        self.together = self.in_parts
        """Whether all of them take part in taking a state out, so that they have to know when."""
        self._wish = self._heard = False
        self._steps = 0

    @classmethod
    def joined(cls, rank: int, arithmetic: Arithmetic, meet: Path) -> Group:
        """Meet the others by a file, on this machine: over NCCL on GPUs, one for each rank, else over gloo."""
        if arithmetic.device == "cuda":
            torch.cuda.set_device(rank)
        elif sys.platform == "linux":  # else gloo looks up this machine's name, which may stand for anything
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            "nccl" if arithmetic.device == "cuda" else "gloo",
            init_method=f"file://{meet}",
            rank=rank,
            world_size=arithmetic.ranks,
            timeout=_PATIENCE,
        )
        return cls(rank, arithmetic)

    def leave(self) -> None:
        """When all have come so far."""
        dist.barrier()
        dist.destroy_process_group()

    # -- the network -------------------------------------------------------------------------------------------------

    def prepared(self, model: nn.Module) -> nn.Module:
        """The network with the norms that were asked for."""
        return synchronise_norms(model) if self._norms == SYNCHRONISED else model

    def called(self, model: nn.Module) -> nn.Module:
        """What is called in the place of `model`: afterwards its gradients are the mean over all ranks.

        Parameters that nothing depends on keep none, as in one process. To know them costs a look at the graph; with
        it the order in which gradients are added up is that of the parameters, in the first step as in all others, so
        that a training which goes on from a state has the bits of one that was never stopped. Buffers are not sent each
        step: training reads none of another rank's, and those that are stored, or measured with, are the first rank's.
        """
        return DistributedDataParallel(
            model, find_unused_parameters=True, gradient_as_bucket_view=True, broadcast_buffers=False
        )

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the buffers of the first, which are those that are stored."""
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def state_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Weights and buffers as they are to be stored, by normalised name."""
        return state_of(model)

    def agreed(self, wish: bool) -> bool:
        """Called after each step: whether a state is to be stored now.

        The first rank asks. It stores it alone, at once; or all do together, once all have heard of the wish, by the
        end of the step before: all get the same answer.
        """
        if not self.together:
            return wish
        self._wish = wish and not self._heard
        return self._heard

    # -- values ------------------------------------------------------------------------------------------------------

    def mean(self, value: Tensor) -> Tensor:
        """Over all ranks."""
        total = value.detach() / self.world
        dist.all_reduce(total)
        return total

    def loss_of_step(self, value: Tensor) -> Tensor:
        """The mean over all ranks, asked for once a step; what they wish for goes along."""
        if not self.together:
            return self.mean(value)
        both = torch.stack([value.detach() / self.world, value.new_tensor(float(self._wish))])
        dist.all_reduce(both)
        self._steps += 1
        looks = self._device == "cpu" or self._steps % _GPU_LOOKS == 0
        self._heard = looks and bool(both[1] > 0)
        return both[0]

    def drawing(self, place: PartOfBatch) -> Draws:
        """Around what draws random numbers for the examples of a part: they are those of the whole batch."""
        return Draws(place)

    def gather(self, value: Any) -> list[Any]:
        """What each rank has, in order."""
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def first(self, value: Any) -> Any:
        """What the first rank has."""
        return self.gather(value)[0]

    def require_same(self, what: str, value: Any) -> None:
        """
        Raises:
            TrainingError: in all ranks, if it is not the same in all.
        """
        found = self.gather(value)
        others = [rank for rank, each in enumerate(found) if each != found[0]]
        if others:
            raise TrainingError(
                f"rank {others[0]} of {self.world} has {what} other than rank 0: they do not train the same network"
            )

    def require_same_weights(self, model: nn.Module) -> None:
        """
        Raises:
            TrainingError: in all ranks, if parameters are not the same in all, to the bit.
        """
        found = hashlib.sha256()
        for parameter in model.parameters():
            raw = parameter.detach().to("cpu").contiguous().flatten()
            found.update(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"")
        self.require_same("weights", found.hexdigest())
