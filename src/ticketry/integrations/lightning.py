"""Callbacks for Lightning's Trainer.

    callback = GradualCallback(density=0.1)
    lightning.Trainer(callbacks=[callback], ...).fit(module)
    ticket = callback.ticket(early_state_dict)

Their state goes into the trainer's checkpoints, so that `fit(ckpt_path=...)` continues as if it had not been
interrupted. The module's state dict keeps its plain names. A *step* is one of the optimiser: batches that are
accumulated count once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from ticketry.core.gates import Gates
from ticketry.core.gates.attach import GateOptions
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.gradual import GradualOptions
from ticketry.errors import MissingExtraError, UsageError
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
)

try:
    from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
except ImportError as error:
    raise MissingExtraError("lightning", "lightning", "a callback for Lightning") from error

__all__ = ["GatesCallback", "GradualCallback", "HoldCallback"]

# The second is younger than the oldest Lightning that this works with.
_AVERAGING = tuple(
    getattr(callbacks, name) for name in ("StochasticWeightAveraging", "WeightAveraging") if hasattr(callbacks, name)
)


class _JobCallback(Owner, Callback):
    """Calls a job where Lightning calls its callbacks."""

    def __init__(self, job: Job, module: str) -> None:
        super().__init__()
        self.job = job
        self._module = module
        self._went_on = False

    @property
    def state_key(self) -> str:
        return str(self._generate_state_key(module=self._module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_surroundings(self.job, optimizers=len(trainer.optimizers), processes=trainer.world_size)
        self._check_averages(trainer)
        self._went_on = False
        self._trained = find_part(pl_module, self._module)
        total = _steps(trainer) if self.job.needs_length else 0
        self.job.begin(self._trained, total, trial=bool(getattr(trainer, "fast_dev_run", False)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._went_on = True
        self.job.resume(trainer.global_step)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.job.before_step(trainer.global_step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.job.before_update(getattr(trainer.precision_plugin, "scaler", None))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.job.after_update(trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After `on_train_end` of all callbacks, where some write weights: what they wrote is looked at too."""
        if self.job.model is None:
            return
        if not self._went_on:  # from a checkpoint of a complete training Lightning trains nothing, and does not say so
            self.job.resume(trainer.global_step)
        self.job.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.job.release()

    def state_dict(self) -> dict[str, Any]:
        return self.job.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.job.load(state_dict)

    def _check_averages(self, trainer: Trainer) -> None:
        if not self.job.one_optimizer:
            return  # the mask that it holds is the same all along, and so is that of an average
        for other in trainer.callbacks:
            if isinstance(other, _AVERAGING):
                raise UsageError(
                    f"{type(other).__name__} would bring back removed weights, from steps before the last mask of"
                    f" {self.job.name}: leave it out, or average while HoldCallback trains with that mask"
                )


class HoldCallback(_JobCallback):
    """Keeps the weights that a mask removes at exactly 0 while the module trains, see `core.sparse_training.hold.hold`.

    The mask is checked when training ends: `HoldError` if a removed weight is not 0.
    """

    def __init__(
        self,
        mask: Mask,
        *,
        module: str = "",
        kernels: str = "dense",
        example_inputs: Any = None,
        precision: str = "fp32",
    ) -> None:
        """
        Args:
            mask: by names of parameters of the LightningModule, or of the part of it that `module` names.
            module: dotted name of that part, such as ``net`` for ``self.net``.
            kernels: dense; or sparse: steps compute only what is kept, in the kernels of `tk.sparse_training`, whose
                errors come when training begins. On a CPU, with weights in float32, in one process.
            example_inputs: of the model or that part of it, for sparse kernels: a tensor, or a tuple of arguments.
            precision: of sparse kernels, fp32 or bf16, as of `tk.sparse_training`: bf16 where the trainer
                has ``precision="bf16-mixed"``.
        """
        super().__init__(HoldJob(mask, Kernels(kernels, example_inputs, precision)), module)


class GradualCallback(_JobCallback):
    """Prunes the module gradually while it trains, see `ticketry.gradual`; `mask` is what is kept at the time."""

    def __init__(
        self,
        density: float | None = None,
        *,
        module: str = "",
        kernels: str = "dense",
        example_inputs: Any = None,
        precision: str = "fp32",
        **options: Unpack[GradualOptions],
    ) -> None:
        """
        Args:
            density: fraction of weights kept at the end.
            module: dotted name of the part of the LightningModule that is pruned; all of it if empty.
            kernels, example_inputs, precision: as of `HoldCallback`; kernels follow the mask.
            options: sparsity, begin, end, frequency, scope, score, distribution, half_rate, collapse,
                keep_at_least, pattern, seed: see
                `ticketry.gradual`; the length of the training is the trainer's.
        """
        super().__init__(GradualJob(density, options, Kernels(kernels, example_inputs, precision)), module)


class GatesCallback(_JobCallback):
    """Trains gates with the weights, see `core.gates.attach`: soft masks that harden while the module trains.

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
        **options: Unpack[GateOptions],
    ) -> None:
        """
        Args:
            penalty: lambda, times the sum of all gates (each as often as it multiplies weights).
            optimizer: makes the gates' own from a list of parameters, such as ``partial(torch.optim.SGD, lr=1.0)``; by
                default SGD with learning rate 0.1 and momentum 0.9 (Savarese et al. 2020). It stays at its rate.
            module: dotted name of the part of the LightningModule that gets gates; all of it if empty.
            options: init, kind, scope, within, pattern, seed: see `core.gates.attach`.
        """
        super().__init__(GatesJob(penalty, optimizer, options), module)
        self.job: GatesJob

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gates come off here, so that the module is the hard network wherever training is over."""
        self.job.end_and_watch()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        self.job.check()

    @property
    def gates(self) -> Gates:
        """To look at: densities, histogram, temperature."""
        return self.job.gates


def _steps(trainer: Trainer) -> int:
    """Return the number of optimiser steps of the whole training; `UsageError` if the trainer does not know it."""
    steps = 0 if trainer.limit_train_batches == 0 else trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 0:
        raise UsageError(
            "this training has no end that is known beforehand (data without a length, max_epochs=-1, or max_time"
            " alone): give the trainer max_steps, or max_epochs and data with a length"
        )
    for one in trainer.callbacks:
        if isinstance(one, callbacks.GradientAccumulationScheduler):
            steps = _steps_scheduled(trainer, one, int(steps))
    if not steps:
        raise UsageError(
            "this training has no steps (limit_train_batches=0, max_steps=0, or no data): give the trainer more, or"
            " leave the callback out"
        )
    return int(steps)


def _steps_scheduled(trainer: Trainer, scheduler: Any, steps: int) -> int:
    """Return the number of steps where batches are accumulated by a schedule, which Lightning does not look at."""
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if batches == float("inf") or not epochs or epochs < 0:
        return steps
    total = sum(math.ceil(batches / scheduler.get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
    return int(total if trainer.max_steps == -1 else min(total, trainer.max_steps))
