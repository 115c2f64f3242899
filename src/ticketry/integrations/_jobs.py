"""The three jobs: hold a mask, prune gradually, train gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim import Optimizer

from ticketry.core.gates import Gates, Moment, attach
from ticketry.core.gates.attach import GateOptions
from ticketry.core.gates.block_gates import BlockGates
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.gradual import Choice, Gradual, Schedule, gradual
from ticketry.core.sparse_training.hold import Hold, hold
from ticketry.core.structure.pattern import check_density
from ticketry.errors import LayerCollapseError, MaskError, UsageError
from ticketry.integrations._job import NOT_HERE, Job, count_removed
from ticketry.integrations._kernels import Kernels
from ticketry.step import Step

T = TypeVar("T")
_OTHER_STEPS = (
    "the trainer was stopped early (EarlyStopping, a limit of time), or its loop takes fewer steps of the optimiser"
    " than it told beforehand (manual optimisation that accumulates gradients, a data set that ends early)"
)
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


class Holding(Job):
    """Keeps the weights that a mask removes at exactly 0."""

    name = "hold"
    one_optimizer = False
    needs_length = False

    def __init__(self, mask: Mask, kernels: Kernels | None = None) -> None:
        super().__init__()
        self._mask, self._kernels = mask, kernels or Kernels("dense", None)
        self.one_process = self._kernels.sparse
        self._hold: Hold | None = None

    @property
    def mask(self) -> Mask:
        return self._mask

    def before_step(self, done: int) -> None:
        self._kernels.enter()

    def after_update(self, done: int) -> None:
        self._kernels.leave()

    def end(self) -> None:
        try:
            if self._hold:
                self._hold.check()
        finally:
            self.release()

    def release(self) -> None:
        super().release()
        self._kernels.release()
        if self._hold:
            self._hold.release()
            self._hold = None

    def state(self) -> dict[str, Any]:
        return {"mask": self._mask.digest}

    def _attach(self, model: nn.Module, total: int, trial: bool) -> None:
        self._kernels.attach(model, self._mask)
        self._hold = hold(model, self._mask)

    def _load(self, state: Mapping[str, Any]) -> None:
        if state.get("mask") != self._mask.digest:
            raise MaskError("the checkpoint was trained under another mask: give the callback that one, or start anew")


class Pruning(Job):
    """Prunes gradually, see `ticketry.gradual`."""

    name = "gradual"

    def __init__(self, density: float | None, options: Schedule, kernels: Kernels | None = None) -> None:
        super().__init__()
        self._density, self._options, self._kernels = density, options, kernels or Kernels("dense", None)
        self.one_process = self._kernels.sparse
        self._gradual: Gradual | None = None
        self._fresh = True

    @property
    def mask(self) -> Mask:
        return _begun(self._gradual).mask

    def go_on(self, done: int) -> None:
        pruning = _begun(self._gradual)
        if not self._fresh:
            if pruning.done > done:
                raise MaskError(
                    f"the state of gradual pruning is of step {pruning.done}, and training resumes at step {done}:"
                    " resume from a checkpoint whose weights and state are of the same step"
                )
            self._follow(done)  # a checkpoint may be written within a batch, after the optimiser's step
        elif done >= min(pruning.cuts):
            raise UsageError(
                f"training goes on at step {done}, where pruning has begun, but the checkpoint has no state of it:"
                " go on from a checkpoint that was written with this callback, or begin later"
            )
        pruning.done = done

    def before_step(self, done: int) -> None:
        self._kernels.follow(self.mask)
        self._kernels.enter()

    def after_update(self, done: int) -> None:
        self._kernels.leave()
        self._follow(done)

    def _follow(self, done: int) -> None:
        """Make the pruning steps up to `done` steps of the optimiser."""
        pruning = _begun(self._gradual)
        while pruning.done < done:
            pruning.step()

    def end(self) -> None:
        pruning = _begun(self._gradual)
        try:
            pruning.check()  # before it is let go of: after that it knows nothing to look for
        finally:
            self.release()
        if early := pruning.describe_early_end():
            warnings.warn(
                f"{early}: {_OTHER_STEPS}. Let pruning end earlier (end=), or give the trainer the true number of steps"
                " (max_steps)",
                stacklevel=2,
            )

    def release(self) -> None:
        super().release()
        self._kernels.release()
        if self._gradual:
            self._gradual.release()

    def state(self) -> dict[str, Any]:
        return self._gradual.state_dict() if self._gradual else {}

    def _is_active(self) -> bool:
        return self._kernels.sparse or self.mask.kept < self.mask.total

    def _attach(self, model: nn.Module, total: int, trial: bool) -> None:
        made = self._trial(model, total) if trial else gradual(model, self._density, steps=total, **self._options)
        self._gradual, self._fresh = made, True
        self._kernels.attach(model, self.mask)

    def _trial(self, model: nn.Module, total: int) -> Gradual:
        """Gradual pruning of a trial run: to the last density, in one pruning step after the last step."""
        for point in ("begin", "end", "frequency"):
            Step.parse(self._options.get(point, "0"))  # type: ignore[arg-type]
        density = check_density(self._density, self._options.get("sparsity"))
        choice = {name: value for name, value in self._options.items() if name not in _WHEN}
        return Gradual(model, {total: density}, steps=total, **choice)  # type: ignore[arg-type]

    def _load(self, state: Mapping[str, Any]) -> None:
        pruning = _begun(self._gradual)
        stored, model = state.get("mask"), self.model
        if model is not None and isinstance(stored, Mapping) and (stray := count_removed(model, Mask(stored))):
            raise MaskError(
                f"{stray:,} weights that the checkpoint's mask removes are not 0 in the model: the weights are of"
                " another checkpoint than the state of gradual pruning; resume from one that has both"
            )
        pruning.load_state_dict(state)
        self._fresh = False


_WHEN = Schedule.__annotations__.keys() - Choice.__annotations__.keys()
"""Options of gradual pruning that say when and how far it prunes, not which weights."""


class Gating(Job):
    """Trains gates with the weights, by an optimiser of their own."""

    name = "gates"
    one_process = True

    def __init__(self, penalty: float, optimizer: MakeOptimizer | None, options: GateOptions) -> None:
        super().__init__()
        self._make_optimizer = optimizer or _paper_optimizer
        self._penalty, self._within = penalty, options.get("within")
        self._options = options
        self._steps = self._done = 0
        self._total = 0
        """Length of the schedule: of this training, or of the one that a checkpoint comes from."""
        self._applied = False
        """Whether the weights are multiplied by the hard gates, which is how training ends."""
        self._gates: Gates | None = None
        self._optimizer: Optimizer | None = None
        self._hard: Hold | None = None
        self._fresh = True

    @property
    def gates(self) -> Gates:
        return _begun(self._gates)

    @property
    def mask(self) -> Mask:
        return self.gates.harden()

    def go_on(self, done: int) -> None:
        if self._fresh and done:
            raise UsageError(
                f"training goes on at step {done}, but the checkpoint has no state of gates: go on from a checkpoint"
                " that was written with this callback"
            )
        if self._applied:
            if done < self._steps:
                raise MaskError(
                    "the checkpoint was written after training had ended, when its gates were multiplied into the"
                    f" weights, and this training would continue at step {done:,} of {self._steps:,}: train on at the"
                    " mask with HoldCallback, or resume from a checkpoint written during training"
                )
            Job.release(self)
            self.gates.detach()
        elif self._progress(done) < self.gates.progress:
            raise MaskError(
                f"the checkpoint's gates are at {self.gates.progress:.1%} of their schedule, and this training resumes"
                f" at step {done:,} of {self._total:,}, where their temperature would fall back: resume with as many"
                " steps as the training of the checkpoint had"
            )
        self._done = done

    def _progress(self, done: int) -> float:
        """The share of the schedule that is over after `done` steps."""
        return min(done / self._total, 1.0) if self._total else 1.0

    def before_step(self, done: int) -> None:
        self.gates.anneal(self._progress(done))
        self.gates.set_step(done)

    def before_update(self, scaler: torch.amp.GradScaler | None) -> None:
        optimizer = _begun(self._optimizer)
        if all(logits.grad is None for logits in self.gates.parameters()):
            return  # a step that the trainer's user has left out
        if scaler is not None and scaler.is_enabled():
            scaler.unscale_(optimizer)
            self._add_penalty()
            scaler.step(optimizer)
        else:
            self._add_penalty()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def after_update(self, done: int) -> None:
        self._done = done

    def end(self) -> None:
        early = self.model is not None and self._done < self._total
        self.gates.anneal(1.0)
        self.release(apply=True)
        if early:
            warnings.warn(
                f"gates are left after {self._done:,} of {self._total:,} steps, before their temperature reached its"
                " end, so that the network with hard gates may differ from the one that was trained:"
                f" {_OTHER_STEPS}. Give the trainer the true number of steps (max_steps)",
                stacklevel=2,
            )

    def end_and_watch(self) -> None:
        """`end`, and `check` looks at what others write from here on; only where that is called."""
        model = self.model
        self.end()
        if model is not None:
            with suppress(LayerCollapseError):  # told where the mask is asked for
                self._hard = hold(model, self.mask)

    def check(self) -> None:
        """Make sure that nobody has written removed weights since `end_and_watch`: `HoldError` if one is not 0."""
        try:
            if self._hard:
                self._hard.check()
        finally:
            self.release()

    def release(self, *, apply: bool = False) -> None:
        if self._hard:
            self._hard.release()
            self._hard = None
        attached = self.model is not None
        super().release()
        if attached and self._gates:
            self._gates.detach(apply=apply)
            self._applied = apply

    def state(self) -> dict[str, Any]:
        if self._gates is None or self._optimizer is None:
            return {}
        of_optimizer = deepcopy(self._optimizer.state_dict())  # which shares memory with the optimiser
        return {
            "gates": self._gates.state_dict(),
            "total": self._total,
            "done": self._done,
            "applied": self._applied,
            "optimizer": {
                "state": {str(number): entries for number, entries in of_optimizer["state"].items()},
                "param_groups": of_optimizer["param_groups"],
            },
        }

    def _attach(self, model: nn.Module, total: int, trial: bool) -> None:
        self._steps = self._total = total
        self._done, self._fresh, self._applied = 0, True, False
        self._gates = attach(model, **self._options)
        self._optimizer = self._make_optimizer(self._gates.parameters())

    def _load(self, state: Mapping[str, Any]) -> None:
        if not {"gates", "optimizer"} <= state.keys():
            raise MaskError("the checkpoint has no state of gates: it was written with another callback")
        total = self._resumed_total(int(state.get("total", self._total)), int(state.get("done", 0)))
        self.gates.load_state_dict(state["gates"])
        of_optimizer = deepcopy(state["optimizer"])  # the optimiser takes the tensors as they are
        entries = {int(number): entries for number, entries in of_optimizer["state"].items()}
        _begun(self._optimizer).load_state_dict({"state": entries, "param_groups": of_optimizer["param_groups"]})
        self._total, self._fresh, self._applied = total, False, bool(state.get("applied", False))

    def _resumed_total(self, total: int, done: int) -> int:
        """Return the length of the gates' schedule, of a state that was trained for `done` of `total` steps."""
        if not done or total == self._total:
            return self._total
        if done < total and total > self._total:
            raise MaskError(
                f"the checkpoint's gates were annealed for a training of {total:,} steps, of which {done:,} are done,"
                f" and this training has only {self._total:,}: resume with at least {total:,} steps, or start anew"
            )
        if total < self._total:
            warnings.warn(
                f"the checkpoint's gates were annealed for a training of {total:,} steps, and this training has"
                f" {self._total:,}. Their temperature continues along that schedule, and stays at its end from step"
                f" {total:,} on",
                stacklevel=2,
            )
        return total

    def _add_penalty(self) -> None:
        """Add the penalty's gradient to that of s: the loss is the trainer's, and has gone through backward already."""
        if not self._penalty:
            return
        gates = self.gates
        moment = Moment(gates.init, gates.beta)
        with torch.enable_grad():
            if isinstance(gates, BlockGates):  # which keep no sums of a pass whose graph is gone
                gates.penalty(self._penalty).backward()  # type: ignore[no-untyped-call]
                return
            for name, logits in gates.named_parameters():
                opened = gates.kind.open(logits, moment)
                if self._within is not None:
                    opened = opened * self._within[name].to(opened.device)
                (self._penalty * opened.sum()).backward()  # type: ignore[no-untyped-call]


def _paper_optimizer(gates: list[nn.Parameter]) -> Optimizer:
    """SGD as of Savarese et al. (2020): learning rate 0.1, momentum 0.9."""
    return torch.optim.SGD(gates, lr=0.1, momentum=0.9)


def _begun(thing: T | None) -> T:
    if thing is None:
        raise UsageError(f"training has not begun in this process, so that there is nothing to tell; {NOT_HERE}")
    return thing
