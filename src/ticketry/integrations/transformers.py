"""Provide callbacks for the Trainer of transformers.

    callback = GradualCallback(density=0.1)
    transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
    ticket = callback.ticket(early_state_dict)

Each of the trainer's checkpoints contains a safetensors file with the callbacks' state, so that
`train(resume_from_checkpoint=...)` gives the same result as an uninterrupted training. The names in the model's state
dict do not change. A *step* is a step of the optimiser: batches whose gradients are accumulated count as one step.
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
    CallbackBase,
    GatesJob,
    GradualJob,
    HoldJob,
    Job,
    Kernels,
    MakeOptimizer,
    check_training_setup,
    find_submodule,
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
"""Entry of a state file: the trainer's step at which it was written."""


class _JobCallback(CallbackBase, TrainerCallback):
    """Calls the methods of a job from the Trainer's hooks."""

    def __init__(self, job: Job, module: str, resume_from: str | Path | None) -> None:
        self.job = job
        self._module = module
        self._resume_from = resume_from

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        check_training_setup(self.job, optimizers=1, processes=args.world_size)
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
        self._trained = find_submodule(more["model"], self._module)
        try:
            self.job.start(self._trained, state.max_steps, _make_is_running(state))
            if state.global_step:
                self.job.load(self._read_checkpoint_state(args, state))
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
            write_state(
                self._checkpoint_folder(args, state) / self._file, {**self.job.state(), _STEP: state.global_step}
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        self.job.finish()

    @property
    def _file(self) -> str:
        of = f"-{self._module}" if self._module else ""
        return f"ticketry-{self.job.name}{of}.safetensors"

    def _read_checkpoint_state(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Return the job's state in the checkpoint from which training resumes."""
        folder = Path(self._resume_from or _find_resumed_checkpoint(state) or self._checkpoint_folder(args, state))
        found = read_state(folder / self._file)
        step = found.pop(_STEP, state.global_step)  # older files do not have it
        if step != state.global_step:
            raise MaskError(
                f"{folder / self._file} is of step {step}, and training resumes at step {state.global_step}: give the"
                " folder of the checkpoint that is resumed with resume_from="
            )
        return found

    @staticmethod
    def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
        return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


class HoldCallback(_JobCallback):
    """Enforces a mask while the model trains: removed weights are exactly 0, see `core.sparse_training.hold.hold`.

    When training ends, a removed weight that is not 0 raises `HoldError`.
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
        """Args:
        mask: the mask; its names are names of parameters of the model, or of its submodule `module`.
        module: dotted name of the submodule to prune, such as ``bert``; empty for the whole model.
        resume_from: the checkpoint from which training resumes, if it is not in the trainer's output_dir.
        kernels: dense; or sparse, which computes only with retained weights, see `tk.sparse_training`. Sparse
            kernels need a CPU, weights in float32 and one process; otherwise training raises an error when it
            begins.
        example_inputs: a tensor or a tuple, inputs of the pruned module; required by sparse kernels.
        precision: precision of sparse kernels, fp32 or bf16; choose bf16 if the trainer has ``bf16=True``.
        """
        super().__init__(HoldJob(mask, Kernels(kernels, example_inputs, precision)), module, resume_from)


class GradualCallback(_JobCallback):
    """Prunes the model in many small steps while it trains, see `ticketry.gradual`; `mask` is the current mask."""

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
        """Args:
        density: share of the weights that remains at the end.
        module: dotted name of the submodule to prune; empty for the whole model.
        resume_from: the checkpoint from which training resumes, if it is not in the trainer's output_dir.
        kernels, example_inputs, precision: as for `HoldCallback`; sparse kernels adapt to every new mask.
        options: arguments of `ticketry.gradual`: sparsity, begin, end, frequency, scope, score, distribution,
            half_rate, collapse, keep_at_least, pattern, seed. The number of steps comes from the trainer.
        """
        super().__init__(GradualJob(density, options, Kernels(kernels, example_inputs, precision)), module, resume_from)


class GatesCallback(_JobCallback):
    """Trains a gate (a soft mask value) for each weight while the model trains, see `core.gates.attach`.

    The gates become hard, 0 or 1, during training. When training ends, the weights are multiplied by the hard gates and
    the gates are removed, so that removed weights are exactly 0. Checkpoints written before the end contain weights and
    gates separately.

    The logged loss does not include the penalty on the gates; its gradient is added before each step. Gradients of
    gates are not clipped. If all gates of a layer are 0, `mask` raises `LayerCollapseError`, see `Gates.harden`.
    Training must run in one process.
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
        """Args:
        penalty: coefficient of the sum of all gates in the loss; a gate counts once for each weight that it
            multiplies.
        optimizer: builds the gates' optimiser from a list of parameters, such as ``partial(torch.optim.SGD,
            lr=1.0)``; its learning rate stays constant. By default SGD with learning rate 0.1 and momentum 0.9
            (Savarese et al. 2020).
        module: dotted name of the submodule that gets gates; empty for the whole model.
        resume_from: the checkpoint from which training resumes, if it is not in the trainer's output_dir.
        options: arguments of `core.gates.attach`: init, kind, scope, within, pattern, seed.
        """
        super().__init__(GatesJob(penalty, optimizer, options), module, resume_from)
        self.job: GatesJob

    @property
    def gates(self) -> Gates:
        """The gates (soft mask values) of the model, for example to inspect their densities and temperature."""
        return self.job.gates


def _make_is_running(state: TrainerState) -> Callable[[], bool]:
    """Return a function that returns whether the `Trainer.train` call to which `state` belongs is still running.

    The Trainer calls no callback when an exception ends a training. So the function searches the stacks of all threads
    for the call of `train` whose trainer has this state. If no such call exists when the function is
    created, the function always returns True.
    """
    known = weakref.ref(state)

    def is_training_running() -> bool:
        return next(_find_train_calls(known()), None) is not None

    return is_training_running if is_training_running() else lambda: True


def _find_resumed_checkpoint(state: TrainerState) -> str | None:
    """Return the checkpoint from which the `Trainer.train` call with this `state` resumes; None if unknown."""
    training = next(_find_train_calls(state), None)
    found = training.f_locals.get("resume_from_checkpoint") if training is not None else None
    return found if isinstance(found, str) else None


def _find_train_calls(state: TrainerState | None) -> Iterator[FrameType]:
    """Yield the stack frames, in all threads, of calls of `Trainer.train` whose trainer has this state."""
    for thread in sys._current_frames().values():
        frame: FrameType | None = thread
        while frame is not None:
            of_trainer = getattr(frame.f_locals.get("self"), "__dict__", {}) if frame.f_code.co_name == "train" else {}
            if state is not None and of_trainer.get("state") is state:
                yield frame
            frame = frame.f_back
