"""Define the jobs that callbacks run during a trainer's training: hold a mask, prune gradually or train gates."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.choices import check_choice
from ticketry.core.gates import Gates, Moment, attach
from ticketry.core.gates.attach import BlockGates, GateOptions
from ticketry.core.mask import Mask, read_metadata
from ticketry.core.sharding import local_shard, reshard, shard_groups, shard_like, sum_over_process_groups
from ticketry.core.sparse_training.gradual import Gradual, GradualOptions, PruneOptions, gradual
from ticketry.core.sparse_training.hold import Attachment, Hold, hold, release_interrupted_trainings
from ticketry.core.structure.pattern import check_density
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import LayerCollapseError, MaskError, TicketError, TicketryError, UsageError
from ticketry.files import parse_json, read_bytes, write_atomically
from ticketry.step import Step
from ticketry_engine.support.files import append_digest, verify_and_strip_digest

if TYPE_CHECKING:
    from ticketry_engine import SparseTraining


class Job:
    """Makes a model sparse while a trainer trains it, one optimiser step after another.

    A callback calls these methods in order: `start`, then `load` and `resume` if a checkpoint is resumed;
    `before_step`, `before_update` and `after_update` for each step; finally `finish`, or `release` if training was
    interrupted.
    """

    name: ClassVar[str]
    """Name of the job; tickets record it as the method that found them."""
    one_optimizer: ClassVar[bool] = True
    """Whether the training must have exactly one optimiser, whose steps the job counts."""
    needs_length: ClassVar[bool] = True
    """Whether the job must know the number of steps of the whole training."""
    one_process: bool = False
    """Whether training must run in a single process."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None
        self._attachment: Attachment | None = None

    @property
    def mask(self) -> Mask:
        """The mask at the current step of the training."""
        raise NotImplementedError

    def start(
        self, model: nn.Module, total: int, is_running: Callable[[], bool] | None = None, *, trial: bool = False
    ) -> None:
        """Prepare a model for training; `load` may be called before or after this method.

        Args:
            model: the model, or the part of a model that the job prunes, on its device.
            total: number of optimiser steps of the whole training; 0 if the job does not need it (see `needs_length`).
            is_running: returns whether this training is still running; needed only for trainers that do not report an
                interruption.
            trial: whether this is a short trial run, in which the schedule is compressed into the available steps.
        """
        loaded, self._loaded = self._loaded, None
        self.release()
        release_interrupted_trainings(model)
        self.model = model
        if is_running is not None:
            self._attachment = Attachment(
                model, self.name, is_running=is_running, is_active=self._is_active, release=self.release
            )
        self._attach_to_model(model, total, trial)
        if loaded is not None:
            self._load_state(loaded)

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a result of the method `state`; if `start` was not called yet, `start` restores the result."""
        if self.model is None:
            self._loaded = state
        else:
            self._load_state(state)

    def resume(self, done: int) -> None:
        """Continue a training after `done` optimiser steps; the states of model and job must have been loaded."""

    def before_step(self, done: int) -> None:
        """Prepare the model for the forward passes of the next step; `done` is the number of earlier steps."""

    def before_update(self, scaler: torch.amp.GradScaler | None) -> None:
        """Use or change the gradients of a step before the optimiser uses them.

        Args:
            scaler: the gradient scaler of mixed-precision training that has scaled the gradients; None without one.
        """

    def after_update(self, done: int) -> None:
        """Change the weights or the mask after an optimiser step; `done` is the number of steps so far."""

    def finish(self) -> None:
        """End the job after the last step: check that removed weights are 0, and remove hooks from the model."""

    def release(self) -> None:
        """Remove everything that the job attached to the model, and forget a state loaded before `start`."""
        self.model = self._loaded = None
        if self._attachment is not None:
            self._attachment.unregister()
            self._attachment = None

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: nested dicts (with string keys) and lists of tensors and plain values."""
        raise NotImplementedError

    def _is_active(self) -> bool:
        """Return whether the job has any effect on the next training step."""
        return True

    def _attach_to_model(self, model: nn.Module, total: int, trial: bool) -> None:
        raise NotImplementedError

    def _load_state(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError


_OTHER_PROCESS = (
    "where a trainer forks or spawns its processes (Lightning's ddp_fork, ddp_spawn, ddp_notebook), the callbacks that"
    " were called are in those: take strategy='ddp', or the mask from a checkpoint"
)
"""Part of error messages: why a training may have run in another process than this one."""


class CallbackBase:
    """Base class of the callbacks for all trainers; it gives access to the mask and the ticket."""

    job: Job
    _trained: nn.Module | None = None

    @property
    def mask(self) -> Mask:
        """The current mask; gradual pruning and gates change the mask until training ends."""
        return self.job.mask

    def ticket(self, start: Mapping[str, Tensor], info: Mapping[str, Any] | None = None) -> Ticket:
        """Return a ticket with the mask and the trained weights.

        Args:
            start: the state dict from which the ticket is to be trained again: that of the model before training, or
                after a few steps.
            info: further entries for the ticket's `info`, which always contains the method.

        Raises:
            UsageError: if nothing has been trained yet.
            TicketError: if `start` does not belong to the model (or to its pruned part), or if the model's weights and
                the mask belong to different steps, for example after loading an earlier checkpoint.
        """
        if self._trained is None:
            raise UsageError(f"there is no ticket yet: train first, in this process; {_OTHER_PROCESS}")
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
        """Remove the mask or the gates from the model after an interrupted training, without changing the weights.

        After a completed training there is nothing to remove.
        """
        self.job.release()


def count_removed(model: nn.Module, mask: Mask) -> int:
    """Return how many weights of `model` are not 0 although `mask` removes them, summed over all processes."""
    reshard(model)
    count = 0
    for name, parameter in mask.parameters(model).items():
        own = local_shard(parameter.detach())
        stray = ((own != 0) & ~shard_like(mask[name], parameter).to(own.device)).sum()
        count += int(sum_over_process_groups(stray, shard_groups(parameter)))
    return count


def find_submodule(model: nn.Module, module: str) -> nn.Module:
    """Return the submodule with this dotted name, or the model itself if the name is empty."""
    try:
        return model.get_submodule(module)
    except AttributeError:
        known = ", ".join(name for name, _ in model.named_children())
        raise UsageError(f"{type(model).__name__} has no module {module!r}; it has {known}") from None


def check_training_setup(job: Job, *, optimizers: int, processes: int) -> None:
    """Raise `UsageError` if the job does not support this number of optimisers or processes."""
    if job.one_optimizer and optimizers > 1:
        raise UsageError(f"{job.name} counts the steps of one optimiser, and this training has {optimizers}")
    if job.one_process and processes > 1:
        raise UsageError(f"{job.name} trains in one process so far, and this training has {processes}")


KERNELS = ("dense", "sparse")
PRECISIONS = ("fp32", "bf16")


class Kernels:
    """Switches sparse kernels on and off for the training steps of a model; does nothing if ``kernels="dense"``.

    Args:
        kernels: dense or sparse.
        example_inputs: inputs with which sparse kernels trace the model, see `tk.sparse_training`; None for dense.
        precision: fp32, or for sparse kernels also bf16.

    Raises:
        UsageError: for an unknown value, for sparse kernels without example inputs, for example inputs without sparse
            kernels, or for bf16 without sparse kernels.
    """

    def __init__(self, kernels: str, example_inputs: Any, precision: str = "fp32") -> None:
        check_choice("kernels", kernels, KERNELS)
        check_choice("precision", precision, PRECISIONS)
        if (kernels == "sparse") != (example_inputs is not None):
            raise UsageError(
                "sparse kernels follow the model on an example: give the callback kernels='sparse' and"
                " example_inputs=(a tensor, or a tuple of arguments, the batch first) together"
            )
        if precision != "fp32" and kernels == "dense":
            raise UsageError(
                "precision is that of sparse kernels, and the callback has kernels='dense': give the trainer its own"
                " precision, or the callback kernels='sparse' too"
            )
        self.sparse, self._example, self._precision = kernels == "sparse", example_inputs, precision
        self._fast: SparseTraining | None = None
        self._step = contextlib.ExitStack()

    def attach(self, model: nn.Module, mask: Mask) -> None:
        """Create kernels for a model in which the caller enforces `mask`; for errors see `tk.sparse_training`."""
        if self.sparse:
            # llvmlite is an extra, and only these kernels need it.
            from ticketry_engine import train

            self._fast = train(model, mask, self._example, precision=self._precision)

    def update_mask(self, mask: Mask) -> None:
        """Adapt the kernels to `mask` if the mask has changed."""
        if self._fast is not None and self._fast.mask is not mask:
            self._fast.update(mask)

    def switch_on(self) -> None:
        """Switch the kernels on for a step."""
        self.switch_off()
        if self._fast is not None:
            self._step.enter_context(self._fast.running())

    def switch_off(self) -> None:
        """Switch the kernels off after a step, or when a step is interrupted."""
        self._step.close()

    def release(self) -> None:
        """Remove the kernels from the model."""
        self.switch_off()
        if self._fast is not None:
            self._fast.release()
            self._fast = None


T = TypeVar("T")
_OTHER_STEPS = (
    "the trainer was stopped early (EarlyStopping, a limit of time), or its loop takes fewer steps of the optimiser"
    " than it told beforehand (manual optimisation that accumulates gradients, a data set that ends early)"
)
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]


class HoldJob(Job):
    """Sets the weights that a mask removes to exactly 0 after every step."""

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
        self._kernels.switch_on()

    def after_update(self, done: int) -> None:
        self._kernels.switch_off()

    def finish(self) -> None:
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

    def _attach_to_model(self, model: nn.Module, total: int, trial: bool) -> None:
        self._kernels.attach(model, self._mask)
        self._hold = hold(model, self._mask)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        if state.get("mask") != self._mask.digest:
            raise MaskError("the checkpoint was trained under another mask: give the callback that one, or start anew")


class GradualJob(Job):
    """Prunes the model in many small steps while a trainer trains it, see `ticketry.gradual`."""

    name = "gradual"

    def __init__(self, density: float | None, options: GradualOptions, kernels: Kernels | None = None) -> None:
        super().__init__()
        self._density, self._options, self._kernels = density, options, kernels or Kernels("dense", None)
        self.one_process = self._kernels.sparse
        self._gradual: Gradual | None = None
        self._fresh = True

    @property
    def mask(self) -> Mask:
        return _require_started(self._gradual).mask

    def resume(self, done: int) -> None:
        pruning = _require_started(self._gradual)
        if not self._fresh:
            if pruning.done > done:
                raise MaskError(
                    f"the state of gradual pruning is of step {pruning.done}, and training resumes at step {done}:"
                    " resume from a checkpoint whose weights and state are of the same step"
                )
            self._prune_up_to(done)  # a checkpoint may be written within a batch, after the optimiser's step
        elif done >= min(pruning.cuts):
            raise UsageError(
                f"training continues at step {done}, where pruning has begun, but the checkpoint has no state of it:"
                " continue from a checkpoint that was written with this callback, or begin later"
            )
        pruning.done = done

    def before_step(self, done: int) -> None:
        self._kernels.update_mask(self.mask)
        self._kernels.switch_on()

    def after_update(self, done: int) -> None:
        self._kernels.switch_off()
        self._prune_up_to(done)

    def _prune_up_to(self, done: int) -> None:
        pruning = _require_started(self._gradual)
        while pruning.done < done:
            pruning.step()

    def finish(self) -> None:
        pruning = _require_started(self._gradual)
        try:
            pruning.check()  # before the release, after which the mask is unknown
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

    def _attach_to_model(self, model: nn.Module, total: int, trial: bool) -> None:
        if trial:  # prunes to the final density after the last step
            for point in ("begin", "end", "frequency"):
                Step.parse(self._options.get(point, "0"))  # type: ignore[arg-type]
            density = check_density(self._density, self._options.get("sparsity"))
            choice = {name: value for name, value in self._options.items() if name not in _SCHEDULE_OPTIONS}
            self._gradual = Gradual(model, {total: density}, steps=total, **choice)  # type: ignore[arg-type]
        else:
            self._gradual = gradual(model, self._density, steps=total, **self._options)
        self._fresh = True
        self._kernels.attach(model, self.mask)

    def _load_state(self, state: Mapping[str, Any]) -> None:
        pruning = _require_started(self._gradual)
        stored, model = state.get("mask"), self.model
        if model is not None and isinstance(stored, Mapping) and (stray := count_removed(model, Mask(stored))):
            raise MaskError(
                f"{stray:,} weights that the checkpoint's mask removes are not 0 in the model: the weights are of"
                " another checkpoint than the state of gradual pruning; resume from one that has both"
            )
        pruning.load_state_dict(state)
        self._fresh = False


_SCHEDULE_OPTIONS = GradualOptions.__annotations__.keys() - PruneOptions.__annotations__.keys()
"""Names of the options of gradual pruning that determine when and how far it prunes, but not which weights."""


class GatesJob(Job):
    """Trains gates (soft mask values) together with the weights; the gates have their own optimiser."""

    name = "gates"
    one_process = True

    def __init__(self, penalty: float, optimizer: MakeOptimizer | None, options: GateOptions) -> None:
        super().__init__()
        # By default SGD with the settings of Savarese et al. (2020).
        self._make_optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self._penalty, self._within = penalty, options.get("within")
        self._options = options
        self._steps = self._done = 0
        self._total = 0
        """Number of steps of the temperature schedule, from this training or the one that wrote the checkpoint."""
        self._applied = False
        """Whether the weights were already multiplied by the hard gates, which happens once, at the end of training."""
        self._gates: Gates | None = None
        self._optimizer: Optimizer | None = None
        self._hard: Hold | None = None
        self._fresh = True

    @property
    def gates(self) -> Gates:
        return _require_started(self._gates)

    @property
    def mask(self) -> Mask:
        return self.gates.harden()

    def resume(self, done: int) -> None:
        if self._fresh and done:
            raise UsageError(
                f"training continues at step {done}, but the checkpoint has no state of gates: continue from a"
                " checkpoint that was written with this callback"
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
        elif self._annealing_progress(done) < self.gates.progress:
            raise MaskError(
                f"the checkpoint's gates are at {self.gates.progress:.1%} of their schedule, and this training resumes"
                f" at step {done:,} of {self._total:,}, where their temperature would fall back: resume with as many"
                " steps as the training of the checkpoint had"
            )
        self._done = done

    def _annealing_progress(self, done: int) -> float:
        """Return which share (0 to 1) of the gates' temperature schedule is completed after `done` steps."""
        return min(done / self._total, 1.0) if self._total else 1.0

    def before_step(self, done: int) -> None:
        self.gates.anneal(self._annealing_progress(done))
        self.gates.set_step(done)

    def before_update(self, scaler: torch.amp.GradScaler | None) -> None:
        optimizer = _require_started(self._optimizer)
        if all(logits.grad is None for logits in self.gates.parameters()):
            return  # a step that the trainer's user has left out
        if scaler is not None and scaler.is_enabled():
            scaler.unscale_(optimizer)
            self._add_penalty_gradient()
            scaler.step(optimizer)
        else:
            self._add_penalty_gradient()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def after_update(self, done: int) -> None:
        self._done = done

    def finish(self) -> None:
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

    def finish_and_watch(self) -> None:
        """Call `finish`, then watch the removed weights, so that `check` finds those that are changed later."""
        model = self.model
        self.finish()
        if model is not None:
            with suppress(LayerCollapseError):  # told where the mask is asked for
                self._hard = hold(model, self.mask)

    def check(self) -> None:
        """Raise `HoldError` if a removed weight is not 0 because it was written after `finish_and_watch`."""
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

    def _attach_to_model(self, model: nn.Module, total: int, trial: bool) -> None:
        self._steps = self._total = total
        self._done, self._fresh, self._applied = 0, True, False
        self._gates = attach(model, **self._options)
        self._optimizer = self._make_optimizer(self._gates.parameters())

    def _load_state(self, state: Mapping[str, Any]) -> None:
        if not {"gates", "optimizer"} <= state.keys():
            raise MaskError("the checkpoint has no state of gates: it was written with another callback")
        total = self._schedule_length_on_resume(int(state.get("total", self._total)), int(state.get("done", 0)))
        self.gates.load_state_dict(state["gates"])
        of_optimizer = deepcopy(state["optimizer"])  # the optimiser keeps these tensors
        entries = {int(number): entries for number, entries in of_optimizer["state"].items()}
        _require_started(self._optimizer).load_state_dict(
            {"state": entries, "param_groups": of_optimizer["param_groups"]}
        )
        self._total, self._fresh, self._applied = total, False, bool(state.get("applied", False))

    def _schedule_length_on_resume(self, total: int, done: int) -> int:
        """Return the number of steps of the gates' temperature schedule when training resumes from a checkpoint.

        Args:
            total: number of steps of the training that wrote the checkpoint.
            done: number of steps of that training before the checkpoint.
        """
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

    def _add_penalty_gradient(self) -> None:
        """Add the gradient of the gates' penalty to the gates' gradients; the trainer's loss lacks the penalty."""
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


def _require_started(thing: T | None) -> T:
    if thing is None:
        raise UsageError(f"training has not begun in this process, so that there is no result yet; {_OTHER_PROCESS}")
    return thing


_ENTRY = "ticketry"
_TENSOR = "tensor"


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Write a job's state to a file: nested dicts (with string keys) and lists of tensors and plain values."""
    tensors: dict[str, Tensor] = {}

    def encode_tensors(value: Any) -> Any:
        if isinstance(value, Tensor):
            number = str(len(tensors))
            tensors[number] = value.detach().to("cpu", copy=True).contiguous()
            return {_TENSOR: number}
        if isinstance(value, dict):
            return {"items": {name: encode_tensors(item) for name, item in value.items()}}
        if isinstance(value, list | tuple):
            return [encode_tensors(item) for item in value]
        return value

    described = json.dumps(encode_tensors(state))
    write_atomically(path, append_digest(save(tensors, metadata={_ENTRY: described})))


def read_state(path: Path) -> dict[str, Any]:
    """Return the state that `write_state` wrote to a file; tuples come back as lists."""
    try:
        data = verify_and_strip_digest(read_bytes(path))
        tensors, described = load(data), parse_json(read_metadata(data)[_ENTRY])
    except FileNotFoundError:
        raise TicketryError(
            f"{path} is missing, and training continues from a checkpoint: take one that was written with this"
            " callback, or name its folder with resume_from="
        ) from None
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, RuntimeError) as error:
        raise TicketryError(f"{path} cannot be read ({error}): take another checkpoint") from error

    def from_json(value: Any) -> Any:
        if isinstance(value, dict):
            if _TENSOR in value:
                return tensors[value[_TENSOR]]
            return {name: from_json(item) for name, item in value["items"].items()}
        return [from_json(item) for item in value] if isinstance(value, list) else value

    try:
        state = from_json(described)
    except (LookupError, TypeError, AttributeError, RecursionError):
        state = None
    if not isinstance(state, dict):
        raise TicketryError(f"{path} has no state of a job: take another checkpoint")
    return state
