"""Training without the channels that a mask removes: a physically smaller network, the same numbers.

At the start of a segment weights, norm statistics and the optimiser's state are cut to what a plan keeps (see
`core.structure`). Whenever a state is taken out it is expanded to the full shapes again, so that nobody who reads a
store, a ticket or a checkpoint has to know: removed weights and their optimiser state are exactly 0; norm statistics
(and other buffers) of removed channels stay what they were when the segment began. Metrics are those of the small
network, which are the masked one's.

Training is equal to that of the masked network within float error, but for dropout, which draws other random numbers
for tensors of another shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ticketry.core.scope import normal_name
from ticketry.core.structure import ShrinkPlan, rebuild
from ticketry.core.structure.dependencies.channel_groups import Structure
from ticketry.core.structure.shrinking.removal_trial import structure_around
from ticketry.core.structure.shrinking.shrink import plan_of
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry.lab.training.state import TrainingState, initial_state, rebuilt
from ticketry.lab.training.variant import Effect, InTraining, Surroundings, Variant
from ticketry.tasks.task import Course, Task

FOLLOWED = 2
"""Examples that a network is followed on: it is their shape that matters."""


@dataclass(frozen=True, kw_only=True)
class Shrunk(Variant):
    """Train without the channels that a stored mask of whole channels removes."""

    name = "shrunk"
    several_ranks = True
    outermost = True
    replayable = True
    whole_channels = True
    mask: str
    """Its digest."""

    def masked_by(self) -> str:
        return self.mask

    def conflict(self, other: Variant) -> str | None:
        if other.masked_by() is None:
            return None
        return "a network is trained shrunk by one mask of whole channels, and this segment has two masks"

    def effect(self, around: Surroundings) -> ShrinkingEffect:
        return ShrinkingEffect(around)

    # Each mask leaves a network of another size.

    def decides_flops(self) -> str:
        return self.mask

    def decides_memory(self) -> str:
        return self.mask


class ShrinkingEffect(Effect):
    """A network that lacks the channels that its mask removes. No mask is held any more.

    That is so because a plan removes exactly what its mask does, see `structure.shrink_plan`.
    """

    def entering(self, state: TrainingState) -> TrainingState:
        around = self.around
        assert around.mask_digest is not None
        self._plan = remembered_plan(around.store, around.task, around.mask_digest, around.course)
        self._full = state.model
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.model.items()}
        variants = {name: self._cut_all(own) for name, own in state.variants.items()}
        return replace(state, optimizer=self._cut_all(state.optimizer), variants=variants)

    def build(self, model: nn.Module) -> nn.Module:
        first: dict[int, str] = {}  # a tensor that several modules share is in the plan once
        self._names = {
            normal_name(name): first.setdefault(id(tensor), normal_name(name))
            for name, tensor in model.state_dict(keep_vars=True).items()
        }
        mask = self.around.mask
        assert mask is not None
        self._around = {
            name: tensor.masked_fill(~mask[self._names[name]], 0) if self._names[name] in mask else tensor
            for name, tensor in self._full.items()
        }
        """What a full state has in the places that the small network lacks."""
        return rebuild(model, self._plan)

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        self._training = training

    def leaving(self, state: TrainingState) -> TrainingState:
        model = {
            name: self._plan.expand(self._names[name], part, self._around[name]) for name, part in state.model.items()
        }
        variants = {name: self._expand_all(own) for name, own in state.variants.items()}
        return replace(state, model=model, optimizer=self._expand_all(state.optimizer), variants=variants)

    # What is carried from step to step is stored in its full shape too.

    def entering_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        cut = {name: entries[name].index_select(dim, kept) for name, dim, kept, _ in self._cut_entries(entries)}
        copied = {name: self._plan.cut(parameter, entries[name]) for name, parameter in self._copied(entries)}
        return {**entries, **cut, **copied}

    def leaving_session(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(entries)
        for name, dim, kept, size in self._cut_entries(entries):
            part = entries[name]
            whole = torch.zeros((*part.shape[:dim], size, *part.shape[dim + 1 :]), dtype=part.dtype)
            found[name] = whole.index_copy_(dim, kept, part)
        for name, parameter in self._copied(entries):
            whole = torch.zeros(self._shapes[parameter], dtype=entries[name].dtype)
            found[name] = self._plan.expand(parameter, entries[name], whole)
        return found

    def _copied(self, entries: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Of each entry that is a copy of a parameter: its name, and the parameter."""
        prefix = self._training.session.copies
        for name in entries if prefix else ():
            if name.startswith(prefix):
                yield name, self._names[name[len(prefix) :]]

    def _cut_entries(self, entries: Mapping[str, Tensor]) -> Iterator[tuple[str, int, Tensor, int]]:
        """Of each entry that has fewer units here: name, dimension, which are left, and of how many."""
        for name, (dim, parameter, of) in self._training.session.follows(self._training.model).items():
            if name not in entries:
                continue
            kept = self._plan.kept.get(self._names[parameter], {}).get(of)
            if kept is not None:
                yield name, dim, torch.tensor(kept), self._shapes[parameter][of]

    # Entries of the optimiser, and of other variants, are called parameter/entry; those with a value for each weight
    # have its shape.

    def _cut_all(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: self._cut(normal_name(key.rpartition("/")[0]), value) for key, value in entries.items()}

    def _cut(self, name: str, value: Tensor) -> Tensor:
        return self._plan.cut(name, value) if value.shape == self._shapes.get(name) else value

    def _expand_all(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {key: self._expanded(normal_name(key.rpartition("/")[0]), value) for key, value in entries.items()}

    def _expanded(self, name: str, value: Tensor) -> Tensor:
        if name not in self._plan.kept or value.shape != self._plan.shape(name):
            return value
        return self._plan.expand(name, value, torch.zeros(self._shapes[name], dtype=value.dtype, device=value.device))


def remembered_plan(store: Store, task: Task, mask: str, course: Course) -> ShrinkPlan:
    """The plan of a task's network by a stored mask, computed once a store.

    Args:
        mask: digest of a mask of whole channels.
        course: the task's; two of its examples are what the network is followed on.

    Raises:
        MaskError, LayerCollapseError, StructureError: see `structure.shrink`.
    """
    key = digest_of({"numerics": NUMERICS, "task": dict(task.key()), "mask": mask})

    def made() -> dict[str, str]:
        model = rebuilt(task, initial_state(task, 0))
        plan = plan_of(model, store.get_mask(mask), course.inputs(FOLLOWED), task_structure(task, course))
        return {"plan": store.put_bytes(plan.to_bytes()), "mask": mask}

    known = store.remembered("plans", key, made)
    return ShrinkPlan.from_bytes(store.get_bytes(str(known["plan"])), "a stored plan")


def task_structure(task: Task, course: Course) -> Structure:
    """The coupled channels of a task's network, which is followed on two examples: takes seconds. Pure function.

    Modules that look at their activations to decide what to run are not looked into: their channels stay.
    """
    return structure_around(rebuilt(task, initial_state(task, 0)), course.inputs(FOLLOWED), ("*",))[0]
