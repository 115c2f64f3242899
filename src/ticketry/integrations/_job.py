"""What a trainer's callback does, whichever trainer calls it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ticketry.core.devices.sharding import local_shard, reshard, shard_groups, shard_like, sum_over_groups
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.leftovers import Attachment, release_leftovers
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, UsageError


class Job:
    """One way of making a model sparse while a trainer trains it, step by step of the optimiser.

    A callback calls, in this order: `begin`, with a checkpoint `load`, `go_on`; then for each step `before_step`,
    `before_update`, `after_update`; at last `end`, or `release` where training broke off.
    """

    name: ClassVar[str]
    """As a ticket's method."""
    one_optimizer: ClassVar[bool] = True
    """Whether steps can be told only where there is a single optimiser."""
    needs_length: ClassVar[bool] = True
    """Whether what it does at a step depends on the number of steps of the whole training."""
    one_process: bool = False
    """Whether it works in a single process only."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._attachment: Attachment | None = None

    @property
    def mask(self) -> Mask:
        """What is kept now."""
        raise NotImplementedError

    def begin(
        self, model: nn.Module, total: int, runs: Callable[[], bool] | None = None, *, trial: bool = False
    ) -> None:
        """Start on a model that is where it will train. A checkpoint may be loaded already, or later.

        Args:
            model: the model, or the part of it that the job is for.
            total: steps of the whole training; 0 where a job does not need to know (see `needs_length`).
            runs: whether this training still runs, for trainers that do not report where one breaks off.
            trial: whether this is a short trial run, in which any schedule is squeezed into the steps there are.
        """
        loaded, self._loaded = self._loaded, None
        self.release()
        release_leftovers(model)
        self.model = model
        if runs is not None:
            self._attachment = Attachment(
                model, self.name, is_running=runs, is_active=self._is_active, release=self.release
            )
        self._attach(model, total, trial)
        if loaded is not None:
            self._load(loaded)

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, now or when training begins."""
        if self.model is None:
            self._loaded = state
        else:
            self._load(state)

    def go_on(self, done: int) -> None:
        """Training goes on after `done` steps; everything is loaded."""

    def before_step(self, done: int) -> None:
        """Before the forward passes of a step, after `done` others."""

    def before_update(self, scaler: torch.amp.GradScaler | None) -> None:
        """The gradients of a step are there; `scaler` has scaled them, if there is one."""

    def after_update(self, done: int) -> None:
        """The optimiser has made `done` steps."""

    def end(self) -> None:
        """Training is over."""

    def release(self) -> None:
        """Take everything off the model, as it is; forget a state that was loaded for a training that never began."""
        self.model = self._loaded = None
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint: nested dicts (with text as keys) and lists of tensors and plain values."""
        raise NotImplementedError

    def _is_active(self) -> bool:
        """Return whether the job changes a step of the model at present."""
        return True

    def _attach(self, model: nn.Module, total: int, trial: bool) -> None:
        raise NotImplementedError

    def _load(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


NOT_HERE = (
    "where a trainer forks or spawns its processes (Lightning's ddp_fork, ddp_spawn, ddp_notebook), the callbacks that"
    " were called are in those: take strategy='ddp', or the mask from a checkpoint"
)
"""Why nothing may be known after a training."""


class Owner:
    """What callbacks of all trainers offer."""

    job: Job
    _trained: nn.Module | None = None

    @property
    def mask(self) -> Mask:
        """The mask: of gradual pruning and gates the final one once training is over."""
        return self.job.mask

    def ticket(self, start: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> Ticket:
        """A ticket of the mask and the trained weights.

        Args:
            start: the state dict that it starts from: of before training, or of an early step.
            info: facts to go with it; the method is told already.

        Raises:
            UsageError: if nothing has been trained yet.
            TicketError: if `start` is not of the model (or of the part of it that is pruned), or the model has weights
                of another moment than the mask, such as those of an earlier checkpoint.
        """
        if self._trained is None:
            raise UsageError(f"there is no ticket yet: train first, in this process; {NOT_HERE}")
        if stray := count_removed(self._trained, self.mask):
            raise TicketError(
                f"{stray:,} weights that the mask removes are not 0 in the model: its weights and the mask are of"
                " different moments (an earlier checkpoint was loaded, as by validate, test or predict with ckpt_path,"
                " or training has not ended). Take the ticket when training has ended and before other weights are"
                " loaded, or load a checkpoint from after the last pruning step"
            )
        state = self._trained.state_dict()
        return Ticket(self.mask, start, {"method": self.job.name, **(info or {})}, trained=state)

    def release(self) -> None:
        """Take mask or gates off the model after a training that broke off; the weights stay as they are.

        After one that ended there is nothing left to take off, and this is no error.
        """
        self.job.release()


def count_removed(model: nn.Module, mask: Mask) -> int:
    """Count the weights that `mask` removes and that are not 0 in `model`; in parts, those of all processes."""
    reshard(model)
    count = 0
    for name, parameter in mask.parameters(model).items():
        own = local_shard(parameter.detach())
        stray = ((own != 0) & ~shard_like(mask[name], parameter).to(own.device)).sum()
        count += int(sum_over_groups(stray, shard_groups(parameter)))
    return count


def part_of(model: nn.Module, module: str) -> nn.Module:
    """The submodule of that dotted name, or the model itself if it is empty."""
    try:
        return model.get_submodule(module)
    except AttributeError:
        known = ", ".join(name for name, _ in model.named_children())
        raise UsageError(f"{type(model).__name__} has no module {module!r}; it has {known}") from None


def check_surroundings(job: Job, *, optimizers: int, processes: int) -> None:
    """Raises `UsageError` where the job would do something else than it says."""
    if job.one_optimizer and optimizers > 1:
        raise UsageError(f"{job.name} counts the steps of one optimiser, and this training has {optimizers}")
    if job.one_process and processes > 1:
        raise UsageError(f"{job.name} trains in one process so far, and this training has {processes}")
