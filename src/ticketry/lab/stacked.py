"""Several networks trained in one loop: weights stacked, one forward and one backward pass for all of them.

The members of a stack agree in all but start, mask and order seed. `torch.func.vmap` turns their layers into batched
ones; whatever is elementwise (the optimiser, the mask) acts on the stacked tensors as it does on one network's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.seeds import mix
from ticketry.errors import TrainingError
from ticketry.lab.loop import Loop, TrainingState, rebuilt
from ticketry.lab.order import DataOrder
from ticketry.lab.segment import Segment
from ticketry.lab.stack_check import stackable
from ticketry.lab.stacked_model import Layout, member_losses, stacked
from ticketry.lab.supervised import Supervised, SupervisedSession
from ticketry.tasks.course import Course, Session

_COUNT = "step"
"""An optimiser's entry that counts its steps: one number for all members."""


class MembersFailedError(TrainingError):
    """Some members cannot go on; the others can, from `StackedLoop.healthy`."""

    def __init__(self, errors: Mapping[int, TrainingError]) -> None:
        super().__init__("; ".join(map(str, errors.values())))
        self.errors = dict(errors)


class StackedLoop(Loop):
    """The segments of a stack in training. Its losses are [members, steps]; `states` has a state for each member."""

    def __init__(
        self,
        course: Course,
        segments: Sequence[Segment],
        states: Sequence[TrainingState],
        masks: Sequence[Mask | None],
    ) -> None:
        self.segments = segments
        self._layout = Layout.of(rebuilt(segments[0].task, states[0].model))
        super().__init__(course, segments[0], self._together(states), self._masks_together(masks))
        self._losses_of = member_losses(segments[0], self.model, self._layout)
        self._ones = torch.ones(len(segments), device=self._device)

    def states(self) -> list[TrainingState]:
        """The state of each member."""
        return self._apart(self.state())

    def healthy(self, positions: Sequence[int]) -> list[TrainingState]:
        """The states of some members when others have failed."""
        states = self._apart(self._state_now())
        return [states[position] for position in positions]

    def plain_model(self, position: int, state: TrainingState) -> nn.Module:
        return self.segment.arithmetic.place(rebuilt(self.task, state.model))

    def facts(self) -> dict[str, Any]:
        return {"stack": {"members": len(self.segments)}}

    # -- what differs from the loop of one network ---------------------------------------------------------------------

    def _built(self, state: Mapping[str, Tensor]) -> nn.Module:
        return stacked(self.task, state, self._layout)

    def _begun(self, course: Course) -> Session:
        return _StackedSession(stackable(self.task, course), self.segments)

    def _seed_step(self) -> None:
        """Nothing: a network that draws random numbers is refused, see `member_losses`."""

    def _loss(self, batch: Any) -> Tensor:
        """[members]"""
        inputs, targets = batch
        each = (len(self.segments), -1)
        return self._losses_of(inputs.view(*each, *inputs.shape[1:]), targets.view(*each, *targets.shape[1:]))

    def _backward(self, loss: Tensor) -> None:
        loss.backward(self._ones)  # type: ignore[no-untyped-call]

    def _clip(self, norm: float) -> None:
        """As `clip_grad_norm_` does, for each member by its own norm."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factor = (norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))

    def _fail(self, recent: Tensor, finite: Tensor) -> None:
        failed = (~finite.all(1)).nonzero().flatten().tolist()
        raise MembersFailedError({index: self._not_finite(recent[index], finite[index]) for index in failed})

    # -- states and masks of several members ---------------------------------------------------------------------------

    def _together(self, states: Sequence[TrainingState]) -> TrainingState:
        optimizer = {}
        for key, value in states[0].optimizer.items():
            name, _, entry = key.rpartition("/")
            all_of_it = [state.optimizer[key] for state in states]
            optimizer[key] = value if entry == _COUNT else self._layout.together(name, all_of_it)
        return TrainingState(
            step=states[0].step,
            model=self._layout.models_together([state.model for state in states]),
            optimizer=optimizer,
            losses=torch.stack([state.losses for state in states]),
        )

    def _apart(self, state: TrainingState) -> list[TrainingState]:
        found = []
        for index in range(len(self.segments)):
            optimizer = {}
            for key, value in state.optimizer.items():
                name, _, entry = key.rpartition("/")
                optimizer[key] = value if entry == _COUNT else self._layout.member(name, value, index)
            model = {name: self._layout.member(name, value, index) for name, value in state.model.items()}
            found.append(TrainingState(state.step, model, optimizer, state.losses[index]))
        return found

    def _masks_together(self, masks: Sequence[Mask | None]) -> Mask | None:
        """What a member's mask does not name, it keeps."""
        shapes = {name: shape for mask in masks if mask is not None for name, shape in mask.shapes.items()}
        if not shapes:
            return None
        return Mask(
            {name: self._layout.together(name, [_kept(mask, name, shapes[name]) for mask in masks]) for name in shapes}
        )


def _kept(mask: Mask | None, name: str, shape: tuple[int, ...]) -> Tensor:
    return mask[name] if mask is not None and name in mask else torch.ones(shape, dtype=torch.bool)


class _StackedSession(SupervisedSession):
    """The batches of all members, one behind the other: each in its own order, augmented by its own seed."""

    def __init__(self, course: Supervised, segments: Sequence[Segment]) -> None:
        self._seeds = [segment.order_seed for segment in segments]
        first = segments[0]
        super().__init__(course.task, course.splits.train, first.recipe, first.order_seed, first.arithmetic)

    def _ordered(self, examples: int) -> Callable[[int], Tensor]:
        orders = [DataOrder(seed, examples, self.recipe.batch) for seed in self._seeds]
        return lambda step: torch.cat([order.batch(step) for order in orders])

    def _augmented(self, inputs: Tensor, step: int) -> Tensor:
        parts = []
        for seed, own in zip(self._seeds, inputs.chunk(len(self._seeds)), strict=True):
            self._generator.manual_seed(mix(seed, "augment", step))
            parts.append(self.task.augment(own, self._augment, self._generator))
        return torch.cat(parts)
