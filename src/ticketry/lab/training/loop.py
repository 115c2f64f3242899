"""Train a network step by step in plain PyTorch, and call the changes to the training (variants) at fixed places."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.devices import synchronise_norms
from ticketry.core.scope import name_without_wrappers, named_parameters
from ticketry.errors import TaskError, TrainingError
from ticketry.lab.costs.meters import FlopsByWeight, flops_by_weight, peak_bytes
from ticketry.lab.store.store import Store
from ticketry.lab.training.kernels import prepare_sparse_kernels
from ticketry.lab.training.precision import DENSE, SYNCHRONISED
from ticketry.lab.training.ranks.group import Group
from ticketry.lab.training.replays import Replays, can_replay_steps
from ticketry.lab.training.segment import Segment, replace_non_finite
from ticketry.lab.training.state import (
    Trainable,
    TrainingState,
    copy_state,
    learning_rate,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    rebuild_model,
    unsaved_buffers,
)
from ticketry.lab.training.supervised import evaluate
from ticketry.lab.training.variant import Effect, Metrics
from ticketry.tasks import task_checks
from ticketry.tasks.task import Course
from ticketry_engine import examples_to_inspect
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix_seeds

Batches = Generator[Any, None, None]

# Steps between two checks of the losses: reading a loss makes the GPU wait.
_LOOK_EVERY = 100


class Loop:
    """Trains a segment (a range of steps): `train_until` trains, and `state` returns a copy of the training state.

    In a `group`, `course` yields this process's part of each batch, and the states of the first process are stored.
    """

    def __init__(
        self, store: Store, course: Course, segment: Segment, state: TrainingState, group: Group | None = None
    ) -> None:
        self.segment, self.task, self.step = segment, segment.task, state.step
        self._course, self._device = course, segment.arithmetic.device
        self._recipe, self._group = segment.recipe, group
        self._around = around = segment.surroundings(store, course)
        self.effects = {one.name: one.effect(around) for one in segment.variants}
        effects = list(self.effects.values())
        for effect in effects:
            state, self._recipe = effect.convert_loaded_state(state), effect.recipe(self._recipe)
        self.model = segment.arithmetic.place(self._build_model(state))
        self.model.train()
        self._called = self.model if group is None else group.wrap(self.model)
        self._parameters = list(self.model.parameters())
        self.optimizer = self._build_optimizer(state.optimizer)
        self.session = course.session(segment.recipe, segment.order_seed, segment.arithmetic)
        for name, effect in self.effects.items():
            effect.begin(self, state.variants.get(name, {}))
        if group is not None and self.session.gathers:
            group.stores_together = True
        self._resume_session(state.session)
        # Only overridden methods are called, so that others cost nothing.
        self._before_step = [effect.before_step for effect in effects if _overrides_method(effect, "before_step")]
        self._losses_of = [effect.loss for effect in effects if _overrides_method(effect, "loss")]
        self._after_backward = [
            one.after_backward for one in reversed(effects) if _overrides_method(one, "after_backward")
        ]
        self._after_step = [effect.after_step for effect in effects if _overrides_method(effect, "after_step")]
        self._batches: Batches | None = None
        self._losses = torch.zeros(segment.last - segment.first, device=self._device)
        self._losses[: len(state.losses)] = state.losses
        self._looked_at = state.step
        self._lr = -1.0

    def _build_model(self, state: TrainingState) -> nn.Module:
        model = rebuild_model(self.task, state.model)
        self._unsaved = {name: buffer.clone() for name, buffer in unsaved_buffers(model).items()}
        for effect in self.effects.values():
            model = effect.build(model)
        synchronised = self._group is not None and self.segment.arithmetic.norms == SYNCHRONISED
        return synchronise_norms(model) if synchronised else model

    def _build_optimizer(self, tensors: dict[str, Tensor]) -> Optimizer:
        chosen = (effect.trained(self.model) for effect in self.effects.values())
        trained: Trainable = next((one for one in chosen if one is not None), self.model)
        optimizer = make_optimizer(self._recipe, trained)
        load_optimizer(optimizer, trained, tensors)
        return optimizer

    def train_until(self, last: int, tick: Callable[[], None]) -> None:
        """Train up to step `last`, and call `tick` after each step.

        Raise an error if a loss is not finite, or if a variant finds its condition violated, such as that removed
        weights are 0.
        """
        with private_random_state(), self._open_batches() as batches:
            while self.step < last:
                self._train_step(next(batches))
                self.step += 1
                if self.step % _LOOK_EVERY == 0:
                    self.check_losses()
                tick()
        self.check_losses()
        self.check()
        self.notify_pause()

    def _train_step(self, batch: Any) -> None:
        step = self.step
        for before in self._before_step:
            before()
        self._seed_step()
        loss = self._loss_function(batch)
        for after in self._after_backward:
            after()
        if self._recipe.clip:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.clip)
        lr = self._learning_rate(step)
        if lr != self._lr:
            self._lr = lr
            set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        for after in self._after_step:
            after()
        self._losses[step - self.segment.first] = (
            loss.detach() if self._group is None else self._group.average_loss(loss)
        )

    @cached_property
    def _kernel_context(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Function that returns a context manager, in which a forward pass uses the kernels that are chosen."""
        arithmetic = self.segment.arithmetic
        if arithmetic.kernels == DENSE:
            return contextlib.nullcontext
        examples = self._course.inputs(examples_to_inspect(self.segment.recipe.batch, arithmetic.precision))
        return prepare_sparse_kernels(self.model, self._around.mask, examples, arithmetic).running

    @cached_property
    def _loss_function(self) -> Callable[[Any], Tensor]:
        """Function that computes, for a batch, the loss and the gradients of the parameters, and returns the loss."""
        segment = self.segment
        plainly = self._device == "cuda" and self._group is None and segment.arithmetic.kernels == DENSE
        if plainly and can_replay_steps(self.task, self.session, self.model, segment.variants):
            return Replays(self._parameters, self._compute_loss_and_gradients)
        return partial(self._compute_loss_and_gradients, kernels=self._kernel_context)

    def _compute_loss_and_gradients(
        self, batch: Any, kernels: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
    ) -> Tensor:
        """Return the loss of a batch and store new gradients in all parameters; removed weights get gradients too.

        The forward pass runs in the context manager that `kernels` returns.
        """
        with kernels():
            loss = task_checks.check_loss(self.task, self._compute_loss(batch))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _seed_step(self) -> None:
        """Seed torch's random numbers, such as for dropout, by a function of the segment's seed and the step."""
        seed = mix_seeds(self.segment.order_seed, "step", self.step)
        # Not torch.manual_seed: its stack trace for unused devices costs as much as a small step.
        torch.default_generator.manual_seed(seed)
        if self._device == "cuda":
            torch.cuda.manual_seed(seed)

    def _compute_loss(self, batch: Any) -> Tensor:
        loss = partial(self.session.loss, self._called, batch)
        for effect_loss in self._losses_of:
            loss = partial(effect_loss, batch, loss)
        return loss()

    def _learning_rate(self, step: int) -> float:
        segment = self.segment
        return learning_rate(self._recipe, step, total=segment.total, per_epoch=segment.per_epoch)

    @contextlib.contextmanager
    def _open_batches(self) -> Iterator[Batches]:
        """Within a ``with`` block, yield the iterator of batches, which stays open until the segment's end."""
        if self._batches is None:
            self._batches = self.session.batches(range(self.step, self.segment.last))
        go_on = False
        try:
            yield self._batches
            go_on = self.step < self.segment.last
        finally:
            if not go_on:
                self._batches.close()
                self._batches = None

    @contextlib.contextmanager
    def _peek_next_batch(self) -> Iterator[Any]:
        """Within a ``with`` block, yield the batch of the next step, without training the step."""
        batches = self.session.batches(range(self.step, self.step + 1))
        with private_random_state(), contextlib.closing(batches):
            yield next(batches)

    def resume(self, session: dict[str, Tensor], losses: Tensor) -> None:
        """Load the state of the task's `Session` and the earlier losses into a loop that was built without them."""
        self._resume_session(session)
        self._losses[: len(losses)] = losses

    def _resume_session(self, carried: Mapping[str, Tensor]) -> None:
        if carried:
            for effect in self.effects.values():
                carried = effect.convert_loaded_session(carried)
            self.session.load_state(carried)

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of `parameters` over all processes; do nothing if there is only one process."""
        if self._group is not None:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self._group.mean(parameter.grad)

    def check(self) -> None:
        """Raise an error if the training violates a condition of a variant, such as that removed weights are 0."""
        for effect in self.effects.values():
            effect.check()
        for name, buffer in self.model.named_buffers() if self._unsaved else ():
            before = self._unsaved.get(name_without_wrappers(name))
            if before is not None and before.shape == buffer.shape and not torch.equal(before.to(buffer), buffer):
                raise TaskError(
                    f"the task {self.task.name}: training changes the buffer {name} of its model, which its state dict"
                    " leaves out, so that no checkpoint has it: register it with persistent=True"
                )
        if self._group is not None:
            self._group.require_same_weights(self.model)

    def notify_pause(self) -> None:
        """Notify the variants (changes to the training, such as a mask) that training pauses."""
        for effect in self.effects.values():
            effect.stopped()

    def check_losses(self) -> None:
        """Raise `TrainingError` if the loss of a step since the last check is not finite."""
        first = self.segment.first
        recent = self._losses[self._looked_at - first : self.step - first]
        finite = torch.isfinite(recent)
        if not bool(finite.all()):
            index = int((~finite).nonzero()[0])
            step = self._looked_at + index
            raise TrainingError(
                f"the loss is {float(recent[index])} at step {step} (epoch"
                f" {step / self.segment.per_epoch:.2f}, learning rate {self._learning_rate(step):g}): lower the"
                " learning rate, add a warm-up or clip gradients (--recipe.lr, --recipe.warmup, --recipe.clip)"
            )
        self._looked_at = self.step

    def compute_next_gradient(self) -> dict[str, Tensor]:
        """Return the gradients of the next step's loss on the CPU, by parameter, without taking the step."""
        with self._peek_next_batch() as batch:
            self._seed_step()
            self._compute_loss_and_gradients(batch)
        found = {}
        for name, parameter in self.model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if not bool(torch.isfinite(gradient).all()):
                raise TrainingError(
                    f"the gradient of {name!r} at step {self.step} is not finite: lower the learning rate, add a"
                    " warm-up or clip gradients (--recipe.lr, --recipe.warmup, --recipe.clip)"
                )
            found[name_without_wrappers(name)] = gradient.detach().to("cpu", copy=True).contiguous()
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def count_next_step_flops(self) -> FlopsByWeight:
        """Return the FLOPs of a forward and a backward pass on the next batch, without training the step."""
        with self._peek_next_batch() as batch:
            for before in self._before_step:
                before()
            return flops_by_weight(named_parameters(self.model), lambda: self._compute_loss(batch))

    def peak_bytes(self) -> int:
        """Return the peak bytes of tensors in a training step, without the data set, by training two steps."""
        with self._peek_next_batch() as batch:
            # Start at the first step, so that allocations which the second one frees are recorded.
            def train_two_steps() -> None:
                for _ in range(2):
                    self._train_step(batch)
                    self.step += 1

            held = [effect.tensors() for effect in self.effects.values()]
            return peak_bytes(train_two_steps, [batch, self.model.state_dict(), *held], self._device)

    def state(self) -> TrainingState:
        """Return a copy of the training state, in the shapes of the task's network; sharded tensors are not copied."""
        self.check_losses()
        session = self.session.state()
        in_parts = self._group is not None and self._group.in_parts
        copied = Tensor.detach if in_parts else Tensor.clone
        for effect in self.effects.values():
            session = effect.convert_session_for_store(session)
        state = TrainingState(
            step=self.step,
            model=copy_state(self.model) if self._group is None else self._group.state_for_store(self.model),
            optimizer={name: copied(value) for name, value in optimizer_tensors(self.optimizer, self.model).items()},
            losses=self._losses[: self.step - self.segment.first].cpu().clone(),
            variants={name: own for name, effect in self.effects.items() if (own := effect.state())},
            session=session,
        )
        for effect in self.effects.values():
            state = effect.convert_state_for_store(state)
        return state

    def facts(self) -> dict[str, Any]:
        """Return entries that the variants (changes to the training) add to the result's record, as JSON values."""
        return {name: fact for effect in self.effects.values() for name, fact in effect.facts().items()}

    def measured(self) -> dict[str, Metrics]:
        """Return the metrics of the network, rounded by `round_metric`, as entries of the result's record."""
        measure = self._measure_metrics
        for effect in self.effects.values():
            if _overrides_method(effect, "measured"):
                return effect.measured(measure)
        return {"metrics": measure()}

    def _measure_metrics(self) -> Metrics:
        arithmetic = self.segment.arithmetic
        model = self.model
        if self._group is not None:
            self._group.share_buffers(model)
        if arithmetic.kernels != DENSE:  # metrics have the bits of dense training
            arithmetic = replace(arithmetic, kernels=DENSE)
            model = arithmetic.place(rebuild_model(self.task, copy_state(model)))
        found = {}
        for split in ("validation", "test"):
            metrics = evaluate(self.task, self._course, model, split, arithmetic)
            task_checks.check_comparable(self.task, metrics, split)
            found[split] = {name: round_metric(value) for name, value in metrics.items()}
        return replace_non_finite(found)


def _overrides_method(effect: Effect, method: str) -> bool:
    """Return whether the class of `effect` overrides this method of `Effect`."""
    return getattr(type(effect), method) is not getattr(Effect, method)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def round_metric(value: float) -> float:
    """Return a metric rounded to 6 decimals.

    A metric between -1 and 1 is rounded to 6 significant digits instead.
    """
    return float(f"{value:.6g}") if abs(value) < 1 else round(value, 6)
