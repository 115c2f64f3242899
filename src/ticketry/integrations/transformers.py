"""Callbacks for the Trainer of transformers.

    callback = GradualCallback(density=0.1)
    transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    ticket = callback.ticket(early_state_dict)

Their state is a safetensors file in each of the trainer's checkpoints, so that `train(resume_from_checkpoint=...)` goes
on as if it had not been interrupted. The model's state dict keeps its plain names. A *step* is one of the optimiser:
batches that are accumulated count once.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from typing_extensions import Unpack

from ticketry.core.gates import Gates
from ticketry.core.gates.attach import GateOptions
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.gradual import GradualOptions
from ticketry.errors import MaskError, MissingExtraError, UsageError
from ticketry.integrations.jobs import (
    GatesJob,
    GradualJob,
    HoldJob,
    Job,
    Kernels,
    MakeOptimizer,
    Owner,
    check_surroundings,
    find_part,
    read_state,
    write_state,
)

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
except ImportError as error:
    raise MissingExtraError("transformers", "transformers", "a callback for the Trainer of transformers") from error

__all__ = ["GatesCallback", "GradualCallback", "HoldCallback"]

_STEP = "step"
"""Entry of a state's file: the trainer's step when it was written."""


class _JobCallback(Owner, TrainerCallback):
    """Calls a job where the Trainer calls its callbacks."""

    def __init__(self, job: Job, module: str, resume_from: str | Path | None) -> None:
        self.job = job
        self._module = module
        self._resume_from = resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        check_surroundings(self.job, optimizers=1, processes=args.world_size)
        if args.load_best_model_at_end and self.job.one_optimizer:
            raise UsageError(
                f"load_best_model_at_end would bring back weights of another step than the mask of {self.job.name}:"
                " leave it out"
            )
        if self.job.needs_length and state.max_steps < 1:
            raise UsageError(
                f"this training has {state.max_steps} steps: give TrainingArguments max_steps or num_train_epochs above"
                " 0, or leave the callback out"
            )
        self._trained = find_part(more["model"], self._module)
        try:
            self.job.begin(self._trained, state.max_steps, _runs(state))
            if state.global_step:
                self.job.load(self._stored(args, state))
            self.job.resume(state.global_step)
        except BaseException:
            self.job.release()
            raise

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self.job.before_step(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        self.job.before_update(getattr(more.get("optimizer"), "scaler", None))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self.job.after_update(state.global_step)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        if state.is_world_process_zero:
            write_state(self._written(args, state) / self._file, {**self.job.state(), _STEP: state.global_step})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self.job.end()

    @property
    def _file(self) -> str:
        of = f"-{self._module}" if self._module else ""
        return f"ticketry-{self.job.name}{of}.safetensors"

    def _stored(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Read the state from the checkpoint that is resumed; `MaskError` if it is of another step than the weights."""
        folder = Path(self._resume_from or _resumed(state) or self._written(args, state))
        found = read_state(folder / self._file)
        step = found.pop(_STEP, state.global_step)  # older files do not have it
        if step != state.global_step:
            raise MaskError(
                f"{folder / self._file} is of step {step}, and training resumes at step {state.global_step}: give the"
                " folder of the checkpoint that is resumed with resume_from="
            )
        return found

    @staticmethod
    def _written(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class HoldCallback(_JobCallback):
    """Keeps the weights that a mask removes at exactly 0 while the model trains, see `core.sparse_training.hold.hold`.

    The mask is checked when training ends: `HoldError` if a removed weight is not 0.
    """

    def __init__(
        self,
        mask: Mask,
        *,
        module: str = "",
        resume_from: str | Path | None = None,
        kernels: str = "dense",
        example_inputs: Any = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            mask: by names of parameters of the model, or of the part of it that `module` names.
            module: dotted name of that part, such as ``bert``.
            resume_from: the checkpoint that training is resumed from, if it is not in the trainer's output_dir.
            kernels: dense; or sparse: steps compute only what is kept, in the kernels of `tk.sparse_training`, whose
                errors come when training begins. On a CPU, with weights in float32, in one process.
            example_inputs: of the model or that part of it, for sparse kernels: a tensor, or a tuple of arguments.
            precision: of sparse kernels, fp32 or bf16, as of `tk.sparse_training`: bf16 where the trainer
                has ``bf16=True``.
        """
        super().__init__(HoldJob(mask, Kernels(kernels, example_inputs, precision)), module, resume_from)


class GradualCallback(_JobCallback):
    """Prunes the model gradually while it trains, see `ticketry.gradual`; `mask` is what is kept at the time."""

    def __init__(
        self,
        density: float | None = None,
        *,
        module: str = "",
        resume_from: str | Path | None = None,
        kernels: str = "dense",
        example_inputs: Any = None,
        precision: str = "fp32",
        **options: Unpack[GradualOptions],
    ) -> None:
        """
        Args:
            density: fraction of weights kept at the end.
            module: dotted name of the part of the model that is pruned; all of it if empty.
            resume_from: the checkpoint that training is resumed from, if it is not in the trainer's output_dir.
            kernels, example_inputs, precision: as of `HoldCallback`; kernels follow the mask.
            options: sparsity, begin, end, frequency, scope, score, distribution, half_rate, collapse,
                keep_at_least, pattern, seed: see
                `ticketry.gradual`; the length of the training is the trainer's.
        """
        super().__init__(GradualJob(density, options, Kernels(kernels, example_inputs, precision)), module, resume_from)


class GatesCallback(_JobCallback):
    """Trains gates with the weights, see `core.gates.attach`: soft masks that harden while the model trains.

    The penalty is not part of the loss that is logged: its gradient is added to that of the gates before each step.
    Gates are not clipped. When training ends, the weights are multiplied by the hard gates and the gates come off:
    removed weights are exactly 0 (where no gate of a layer is on, `mask` raises `LayerCollapseError`; see
    `Gates.harden`). Checkpoints written before hold the weights alone, and the gates beside them. One process only.
    """

    def __init__(
        self,
        *,
        penalty: float = 1e-8,
        optimizer: MakeOptimizer | None = None,
        module: str = "",
        resume_from: str | Path | None = None,
        **options: Unpack[GateOptions],
    ) -> None:
        """
        Args:
            penalty: lambda, times the sum of all gates (each as often as it multiplies weights).
            optimizer: makes the gates' own from a list of parameters, such as ``partial(torch.optim.SGD, lr=1.0)``; by
                default SGD with learning rate 0.1 and momentum 0.9 (Savarese et al. 2020). It stays at its rate.
            module: dotted name of the part of the model that gets gates; all of it if empty.
            resume_from: the checkpoint that training is resumed from, if it is not in the trainer's output_dir.
            options: init, kind, scope, within, pattern, seed: see `core.gates.attach`.
        """
        super().__init__(GatesJob(penalty, optimizer, options), module, resume_from)
        self.job: GatesJob

    @property
    def gates(self) -> Gates:
        """To look at: densities, histogram, temperature."""
        return self.job.gates


def _runs(state: TrainerState) -> Callable[[], bool]:
    """Whether the `train` of this state still runs: the Trainer calls no callback when an exception ends it.

    It is looked for among the calls that are under way in all threads: objects live on in tracebacks. Each `train` has
    its own state. If no `train` is found, other code calls the callbacks, and the training never counts as finished.
    """
    known = weakref.ref(state)

    def runs() -> bool:
        return next(_trainings(known()), None) is not None

    return runs if runs() else lambda: True


def _resumed(state: TrainerState) -> str | None:
    """Return the checkpoint that the `train` of this state resumes from, unseen by callbacks; None if unknown."""
    training = next(_trainings(state), None)
    found = training.f_locals.get("resume_from_checkpoint") if training is not None else None
    return found if isinstance(found, str) else None


def _trainings(state: TrainerState | None) -> Iterator[FrameType]:
    """The calls of a trainer's `train`, at this state, among all threads."""
    for frame in sys._current_frames().values():
        for caller in _outwards(frame):
            if _trains(caller, state):
                yield caller


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _trains(frame: FrameType, state: TrainerState | None) -> bool:
    """Whether this is the call of a trainer's `train`, at this state."""
    if state is None or frame.f_code.co_name != "train":
        return False
    return getattr(frame.f_locals.get("self"), "__dict__", {}).get("state") is state
