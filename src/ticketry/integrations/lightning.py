"""Provide callbacks for Lightning's Trainer.

    callback = GradualCallback(density=0.1)
    lightning.Trainer(callbacks=[callback], ...).fit(module)
    ticket = callback.ticket(early_state_dict)

The trainer's checkpoints contain the callbacks' state, so that `fit(ckpt_path=...)` gives the same result as an
uninterrupted training. The names in the module's state dict do not change. A *step* is a step of the optimiser:
batches whose gradients are accumulated count as one step.
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
    CallbackBase,
    GatesJob,
    GradualJob,
    HoldJob,
    Job,
    Kernels,
    MakeOptimizer,
    check_training_setup,
    find_submodule,
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


class _JobCallback(CallbackBase, Callback):
    """Calls the methods of a job from Lightning's hooks."""

    def __init__(self, job: Job, module: str) -> None:
        super().__init__()
        self.job = job
        self._module = module
        self._went_on = False

    @property
    def state_key(self) -> str:
        return str(self._generate_state_key(module=self._module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_training_setup(self.job, optimizers=len(trainer.optimizers), processes=trainer.world_size)
        averaging = [type(one).__name__ for one in trainer.callbacks if isinstance(one, _AVERAGING)]
        if averaging and self.job.one_optimizer:  # else the mask is always the same, and so is that of an average
            raise UsageError(
                f"{averaging[0]} would bring back removed weights, from steps before the last mask of"
                f" {self.job.name}: leave it out, or average while HoldCallback trains with that mask"
            )
        self._went_on = False
        self._trained = find_submodule(pl_module, self._module)
        total = _count_steps(trainer) if self.job.needs_length else 0
        self.job.start(self._trained, total, trial=bool(getattr(trainer, "fast_dev_run", False)))

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
        """End the job and check that removed weights are 0; Lightning calls this after all `on_train_end` hooks."""
        if self.job.model is None:
            return
        if not self._went_on:  # from a checkpoint of a complete training Lightning trains nothing, and does not say so
            self.job.resume(trainer.global_step)
        self.job.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.job.release()

    def state_dict(self) -> dict[str, Any]:
        return self.job.state()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.job.load(state_dict)


class HoldCallback(_JobCallback):
    """Enforces a mask while the module trains: removed weights are exactly 0, see `core.sparse_training.hold.hold`.

    When training ends, a removed weight that is not 0 raises `HoldError`.
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
        """Args:
        mask: the mask; its names are names of parameters of the LightningModule, or of its submodule `module`.
        module: dotted name of the submodule to prune, such as ``net`` for ``self.net``; empty for the whole module.
        kernels: dense; or sparse, which computes only with retained weights, see `tk.sparse_training`. Sparse
            kernels need a CPU, weights in float32 and one process; otherwise training raises an error when it
            begins.
        example_inputs: a tensor or a tuple, inputs of the pruned module; required by sparse kernels.
        precision: precision of sparse kernels, fp32 or bf16; choose bf16 if the trainer has
            ``precision="bf16-mixed"``.
        """
        super().__init__(HoldJob(mask, Kernels(kernels, example_inputs, precision)), module)


class GradualCallback(_JobCallback):
    """Prunes the module in many small steps while it trains, see `ticketry.gradual`; `mask` is the current mask."""

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
        """Args:
        density: share of the weights that remains at the end.
        module: dotted name of the submodule to prune; empty for the whole LightningModule.
        kernels, example_inputs, precision: as for `HoldCallback`; sparse kernels adapt to every new mask.
        options: arguments of `ticketry.gradual`: sparsity, begin, end, frequency, scope, score, distribution,
            half_rate, collapse, keep_at_least, pattern, seed. The number of steps comes from the trainer.
        """
        super().__init__(GradualJob(density, options, Kernels(kernels, example_inputs, precision)), module)


class GatesCallback(_JobCallback):
    """Trains a gate (a soft mask value) for each weight while the module trains, see `core.gates.attach`.

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
        **options: Unpack[GateOptions],
    ) -> None:
        """Args:
        penalty: coefficient of the sum of all gates in the loss; a gate counts once for each weight that it
            multiplies.
        optimizer: builds the gates' optimiser from a list of parameters, such as ``partial(torch.optim.SGD,
            lr=1.0)``; its learning rate stays constant. By default SGD with learning rate 0.1 and momentum 0.9
            (Savarese et al. 2020).
        module: dotted name of the submodule that gets gates; empty for the whole LightningModule.
        options: arguments of `core.gates.attach`: init, kind, scope, within, pattern, seed.
        """
        super().__init__(GatesJob(penalty, optimizer, options), module)
        self.job: GatesJob

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Multiply the weights by the hard gates and remove the gates, so that other callbacks see a pruned network."""
        self.job.finish_and_watch()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_end(trainer, pl_module)
        self.job.check()

    @property
    def gates(self) -> Gates:
        """The gates (soft mask values) of the module, for example to inspect their densities and temperature."""
        return self.job.gates


def _count_steps(trainer: Trainer) -> int:
    """Return the number of optimiser steps of the whole training; raise `UsageError` if the number is unknown."""
    steps = 0 if trainer.limit_train_batches == 0 else trainer.estimated_stepping_batches
    if steps == float("inf") or steps < 0:
        raise UsageError(
            "this training has no end that is known beforehand (data without a length, max_epochs=-1, or max_time"
            " alone): give the trainer max_steps, or max_epochs and data with a length"
        )
    for one in trainer.callbacks:
        if isinstance(one, callbacks.GradientAccumulationScheduler):
            steps = _count_steps_with_accumulation_schedule(trainer, one, int(steps))
    if not steps:
        raise UsageError(
            "this training has no steps (limit_train_batches=0, max_steps=0, or no data): give the trainer more, or"
            " leave the callback out"
        )
    return int(steps)


def _count_steps_with_accumulation_schedule(trainer: Trainer, scheduler: Any, steps: int) -> int:
    """Return the number of optimiser steps if the number of accumulated batches changes from epoch to epoch.

    Lightning's own estimate ignores such changes.

    Args:
        steps: Lightning's estimate, which is returned if the number of batches or epochs is unknown.
    """
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if batches == float("inf") or not epochs or epochs < 0:
        return steps
    total = sum(math.ceil(batches / scheduler.get_accumulate_grad_batches(epoch)) for epoch in range(epochs))
    return int(total if trainer.max_steps == -1 else min(total, trainer.max_steps))
