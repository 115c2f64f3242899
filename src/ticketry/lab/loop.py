"""The training loop: plain PyTorch, with no work a dense loop would not do but the mask."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.gates import Gates
from ticketry.core.hold import Hold
from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters, normal_name
from ticketry.core.seeds import mix
from ticketry.core.state import load_state
from ticketry.errors import TrainingError
from ticketry.lab.meters.flops import FlopsByWeight, flops_by_weight
from ticketry.lab.meters.memory import height
from ticketry.lab.optimizer import load_optimizer, make_optimizer, optimizer_tensors
from ticketry.lab.schedules import learning_rate
from ticketry.lab.segment import Segment
from ticketry.tasks.base import Task
from ticketry.tasks.course import Course, Session

Batches = Generator[Any, None, None]

# Losses are looked at this often: reading one makes a GPU wait.
_LOOK_EVERY = 100


@dataclass
class TrainingState:
    """All that training needs to go on: data order, augmentation and dropout are functions of the step."""

    step: int
    model: dict[str, Tensor]
    """Weights and buffers, by normalised name."""
    optimizer: dict[str, Tensor]
    losses: Tensor
    """float32 [step - first]: the loss of each iteration so far."""
    gates: dict[str, Tensor] = field(default_factory=dict)
    """Where there are gates: ``s/name``, ``round``, ``optimizer/name/entry``, and ``kept``, int64 [looks, parameters]:
    how many were on, some hundred times a schedule."""
    session: dict[str, Tensor] = field(default_factory=dict)
    """What the session carries from step to step, see `Session.state`; empty for most tasks."""


class Loop:
    """One segment in training. `train_until` advances it, `state` takes its state out."""

    gates: Gates | None = None

    def __init__(self, course: Course, segment: Segment, state: TrainingState, mask: Mask | None) -> None:
        self.segment, self.task, self.step = segment, segment.task, state.step
        self._device = segment.arithmetic.device
        self.model = segment.arithmetic.place(self._built(state.model))
        self.model.train()
        self._optimizer = self._made_optimizer(state.optimizer)
        self._parameters = list(self.model.parameters())
        self._penalised = segment.penalty.on(self.model) if segment.penalty else None
        # The loop masks gradients itself, in one call for all, which costs less than a hook a parameter.
        self._hold = Hold(self.model, mask, hooks=False) if mask is not None else None
        if self._hold:
            self._hold.mask_state(self._optimizer)
        self._session = self._begun(course)
        if state.session:
            carried = _without_removed(state.session, self._session.copies, mask) if mask else state.session
            self._session.load_state(self._carried_in(carried))
        self._batches: Batches | None = None
        self._losses = torch.zeros(*state.losses.shape[:-1], segment.last - segment.first, device=self._device)
        self._losses[..., : state.losses.shape[-1]] = state.losses
        self._looked_at = state.step
        self._lr = -1.0

    def train_until(self, last: int, tick: Callable[[], None]) -> None:
        """Train up to iteration `last`, calling `tick` after each.

        Raises:
            TrainingError: if a loss is not a finite number.
            HoldError: if a pruned weight is not 0.
            TicketryError: if examples cannot be read from disk.
        """
        with torch.random.fork_rng(), self._reading() as batches:
            while self.step < last:
                self._one_step(next(batches))
                self.step += 1
                if self.step % _LOOK_EVERY == 0:
                    self._look_at_losses()
                tick()
        self._look_at_losses()
        self.check()

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the loss of the next step's batch, of all parameters by normalised name, on the CPU.

        Also of weights that the mask removes. Nothing is trained, and the step stays to be done.

        Raises:
            TrainingError: if it is not finite.
        """
        with torch.random.fork_rng(), contextlib.closing(self._batches_of(range(self.step, self.step + 1))) as batches:
            self._differentiated(next(batches))
        found = {}
        for name, parameter in self.model.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if not bool(torch.isfinite(gradient).all()):
                raise TrainingError(
                    f"the gradient of {name!r} at step {self.step} is not finite: lower the learning rate, add a"
                    " warm-up or clip gradients (--recipe.lr, --recipe.warmup, --recipe.clip)"
                )
            found[normal_name(name)] = gradient.detach().to("cpu", copy=True).contiguous()
        self._optimizer.zero_grad(set_to_none=True)
        return found

    def flops(self) -> FlopsByWeight:
        """Of the forward and the backward pass of the next step's batch; nothing is trained."""
        with torch.random.fork_rng(), contextlib.closing(self._batches_of(range(self.step, self.step + 1))) as batches:
            batch = next(batches)
            self._ready()
            return flops_by_weight(named_parameters(self.model), lambda: self._loss(batch))

    def height(self) -> int:
        """Bytes of tensors at the height of a training step: of the second, for the first makes the optimiser's state.

        Weights and buffers, gradients, optimiser's state, mask, batch, and whatever is needed in between; not the data
        set.
        """
        with torch.random.fork_rng(), contextlib.closing(self._batches_of(range(self.step, self.step + 1))) as batches:
            batch = next(batches)

            # From the first step on, so that whatever is freed in the second was seen when it was allocated.
            def two_steps() -> None:
                for _ in range(2):
                    self._one_step(batch)
                    self.step += 1

            return height(two_steps, [batch, *self._held()], self._device)

    def _held(self) -> list[object]:
        """Tensors that are there before the first step."""
        return [self.model.state_dict(), self._hold.tensors if self._hold else []]

    def check(self) -> None:
        """Make sure that pruned weights, and their optimiser state, are exactly 0; `HoldError` if not."""
        if self._hold:
            self._hold.check(self._optimizer)

    def state(self) -> TrainingState:
        """A copy of the state now."""
        self._look_at_losses()
        return self._state_now()

    def _state_now(self) -> TrainingState:
        return TrainingState(
            step=self.step,
            model=state_of(self.model),
            optimizer={name: value.clone() for name, value in optimizer_tensors(self._optimizer, self.model).items()},
            losses=self._losses[..., : self.step - self.segment.first].cpu().clone(),
            session=self._carried_out(self._session.state()),
        )

    def states(self) -> list[TrainingState]:
        """The state of each network in training: here of one."""
        return [self.state()]

    def plain_model(self, position: int, state: TrainingState) -> nn.Module:
        """The network at `position` of `states`, for its metrics; `state` is what was found there."""
        return self.model

    def facts(self) -> dict[str, Any]:
        """What a record of the result tells beside the state and its metrics, as JSON values."""
        return {}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Batches]:
        """The batches from this step on. Reading goes on from one stop to the next, up to the segment's end."""
        if self._batches is None:
            self._batches = self._batches_of(range(self.step, self.segment.last))
        go_on = False
        try:
            yield self._batches
            go_on = self.step < self.segment.last
        finally:
            if not go_on:
                self._batches.close()
                self._batches = None

    def _batches_of(self, steps: range) -> Batches:
        return self._session.batches(steps)

    def _differentiated(self, batch: Any) -> Tensor:
        """The loss of this step's batch; the parameters have its gradients, those of removed weights too."""
        self._seed_step()
        loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        self._backward(loss)
        return loss

    def _ready(self) -> None:
        """What comes before a step's forward pass."""

    def _one_step(self, batch: Any) -> None:
        recipe, step = self.segment.recipe, self.step
        loss = self._differentiated(batch)
        if self._penalised:
            self._penalised.add_gradients()
        if self._hold:
            self._hold.mask_gradients()
        if recipe.clip:
            self._clip(recipe.clip)
        lr = self._learning_rate(step)
        if lr != self._lr:
            self._lr = lr
            set_learning_rate(self._optimizer, lr)
        self._optimizer.step()
        self._losses[..., step - self.segment.first] = loss.detach()

    # What differs where several networks are trained at once, see `lab.stacked`, or gates alone, see `lab.tick`.

    def _built(self, state: Mapping[str, Tensor]) -> nn.Module:
        return rebuilt(self.task, state)

    def _made_optimizer(self, tensors: dict[str, Tensor]) -> Optimizer:
        optimizer = make_optimizer(self.segment.recipe, self.model)
        load_optimizer(optimizer, self.model, tensors)
        return optimizer

    def _begun(self, course: Course) -> Session:
        segment = self.segment
        return course.session(segment.recipe, segment.order_seed, segment.arithmetic)

    def _carried_in(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Entries of a stored session, for this network's."""
        return entries

    def _carried_out(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """The other way round."""
        return entries

    def _seed_step(self) -> None:
        """Make dropout and the like functions of the step too."""
        seed = mix(self.segment.order_seed, "step", self.step)
        # Not torch.manual_seed: it notes a stack trace for devices not yet in use, which costs as much as a small step.
        torch.default_generator.manual_seed(seed)
        if self._device == "cuda":
            torch.cuda.manual_seed(seed)

    def _loss(self, batch: Any) -> Tensor:
        return self._session.loss(self.model, batch)

    def _backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def _clip(self, norm: float) -> None:
        nn.utils.clip_grad_norm_(self._parameters, norm)

    def _learning_rate(self, step: int) -> float:
        segment = self.segment
        return learning_rate(segment.recipe, step, total=segment.total, per_epoch=segment.per_epoch)

    def _look_at_losses(self) -> None:
        first = self.segment.first
        recent = self._losses[..., self._looked_at - first : self.step - first]
        finite = torch.isfinite(recent)
        if not bool(finite.all()):
            self._fail(recent, finite)
        self._looked_at = self.step

    def _fail(self, recent: Tensor, finite: Tensor) -> None:
        raise self._not_finite(recent, finite)

    def _not_finite(self, recent: Tensor, finite: Tensor) -> TrainingError:
        """What to tell of losses [steps] since they were last looked at, not all of which are finite."""
        index = int((~finite).nonzero()[0])
        step = self._looked_at + index
        return TrainingError(
            f"the loss is {float(recent[index])} at step {step} (epoch"
            f" {step / self.segment.per_epoch:.2f}, learning rate {self._learning_rate(step):g}): lower the"
            " learning rate, add a warm-up or clip gradients (--recipe.lr, --recipe.warmup, --recipe.clip)"
        )


def _without_removed(entries: Mapping[str, Tensor], prefix: str, mask: Mask) -> dict[str, Tensor]:
    """Entries of a session, its copies of parameters without the weights that a mask removes, see `Session.copies`."""
    kept = {f"{prefix}{name}": kept for name, kept in mask.items()} if prefix else {}
    return {name: one.masked_fill(~kept[name], 0) if name in kept else one for name, one in entries.items()}


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def initial_state(task: Task, seed: int) -> dict[str, Tensor]:
    """Weights and buffers of a fresh model: a pure function of the task and the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(mix(seed, "initialisation"))
        return state_of(task.build())


def rebuilt(task: Task, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the task with the given weights and buffers."""
    with torch.random.fork_rng():
        model = task.build()
    load_state(model, {name: state[normal_name(name)] for name in model.state_dict()})
    return model


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers, by normalised name, on the CPU."""
    return {
        normal_name(name): value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
    }
