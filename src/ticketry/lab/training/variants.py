"""Define changes to a training: an enforced mask, a network without its removed channels, and a penalty."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.scope import name_without_wrappers, named_parameters
from ticketry.core.sparse_training.hold import Hold
from ticketry.core.sparse_training.penalties import add_penalty_gradients_, check_penalty
from ticketry.core.structure import ShrinkPlan, rebuild
from ticketry.core.structure.coupling import Structure
from ticketry.core.structure.layout import Blocks, layouts
from ticketry.core.structure.pattern import UNSTRUCTURED, Pattern
from ticketry.core.structure.removal_trial import find_structure_sparing_untraceable
from ticketry.core.structure.smaller_model import plan_for_structure
from ticketry.errors import ScopeError, UsageError
from ticketry.lab.store.store import NUMERICS, Store, digest_of
from ticketry.lab.training.state import TrainingState, initial_state, rebuild_model
from ticketry.lab.training.variant import Effect, InTraining, Surroundings, Variant
from ticketry.tasks.task import Course, Task

FOLLOWED = 2
"""Number of examples on which a network is traced; only their shape matters."""


# -- an enforced mask --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class HeldMask(Variant):
    """Enforces a stored mask: removed weights, their gradients and their optimiser states stay exactly 0."""

    name = "held_mask"
    several_ranks = True
    in_parts = True
    outermost = True
    sparse_kernels = True
    replayable = True
    mask: str
    """Digest of the mask."""

    def masked_by(self) -> str:
        return self.mask

    def effect(self, around: Surroundings) -> HoldingEffect:
        return HoldingEffect(around)


class HoldingEffect(Effect):
    """Keeps removed weights, their gradients and their optimiser states at 0 in one training, for `HeldMask`."""

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        assert self.around.mask is not None
        # The loop masks all gradients in one call, which costs less than a hook for each parameter.
        self._training, self._hold = training, Hold(training.model, self.around.mask, hooks=False)
        self._hold.mask_state(training.optimizer)

    def convert_loaded_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Set removed weights to 0 in the session's copies of parameters, see `Session.copies`."""
        prefix, mask = self._training.session.copies, self.around.mask
        assert mask is not None
        kept = {f"{prefix}{name}": kept for name, kept in mask.items()} if prefix else {}
        return {name: one.masked_fill(~kept[name], 0) if name in kept else one for name, one in entries.items()}

    def after_backward(self) -> None:
        self._hold.mask_gradients()

    def check(self) -> None:
        """Raise `HoldError` if a removed weight or its optimiser state is not 0."""
        self._hold.check(self._training.optimizer)

    def tensors(self) -> object:
        return self._hold.tensors


# -- a penalty ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Penalty(Variant):
    """Adds a penalty on weights, blocks, filters or norm scales, times ``strength``, to the loss of each step."""

    name = "penalty"
    several_ranks = True
    sparse_kernels = True
    replayable = True
    kind: str
    """A name in `core.sparse_training.penalties.PENALTIES`."""
    strength: float
    """Coefficient in the loss."""
    names: tuple[str, ...]
    """Names of the penalised parameters."""
    pattern: str = UNSTRUCTURED
    """Pattern whose blocks of weights are penalised, see `core.structure.pattern`; by default `kind` decides."""

    def __post_init__(self) -> None:
        pattern = Pattern.parse(self.pattern).require_blocks("groups of a penalty")
        check_penalty(self.kind, blocks=pattern.blocks_of_rows)
        object.__setattr__(self, "strength", float(self.strength))  # 1 and 1.0 have one key
        if not 0 <= self.strength <= 1e6:
            raise UsageError(f"the strength of a penalty is a number from 0 to 1e6, not {self.strength}")
        if not self.names:
            raise UsageError(f"the penalty {self.kind} is on no parameter: name some")

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Penalty:
        return cls(**{**values, "names": tuple(values["names"])})

    def effect(self, around: Surroundings) -> PenaltyEffect:
        return PenaltyEffect(around, self)

    def memory_key(self) -> list[str]:
        return [self.kind, self.pattern]


class PenaltyEffect(Effect):
    """Adds a penalty's gradients to those of the loss; reported losses and metrics do not include the penalty."""

    def __init__(self, around: Surroundings, penalty: Penalty) -> None:
        super().__init__(around)
        self._penalty = penalty

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        """Find the penalised parameters; raise `ScopeError` if the model lacks one."""
        model, names, pattern = training.model, self._penalty.names, Pattern.parse(self._penalty.pattern)
        known = named_parameters(model)
        if unknown := [name for name in names if name not in known]:
            raise ScopeError(f"a penalty is asked for on {unknown[0]!r}, which {type(model).__name__} does not have")
        self._parameters = [known[name] for name in names]
        self._blocks: list[Blocks] | None = None
        if not pattern.unstructured:
            where = layouts(model, names)
            self._blocks = [pattern.blocks(tuple(known[name].shape), where[name]) for name in names]

    def after_backward(self) -> None:
        add_penalty_gradients_(self._penalty.kind, self._penalty.strength, self._parameters, self._blocks)


# -- a network without its removed channels ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Shrunk(Variant):
    """Trains a smaller network, without the channels that a stored mask removes.

    The result is that of training with the mask, within float error, except for dropout, whose random numbers depend on
    shapes. Stored states have the shapes of the whole network: removed weights and their optimiser states are 0, and
    buffers of removed channels keep their values from the segment's start.
    """

    name = "shrunk"
    several_ranks = True
    outermost = True
    replayable = True
    whole_channels = True
    mask: str
    """Digest of the mask."""

    def masked_by(self) -> str:
        return self.mask

    def conflict(self, other: Variant) -> str | None:
        if other.masked_by() is None:
            return None
        return "a network is trained shrunk by one mask of whole channels, and this segment has two masks"

    def effect(self, around: Surroundings) -> ShrinkingEffect:
        return ShrinkingEffect(around)

    # Each mask gives a network of another size.

    def flops_key(self) -> str:
        return self.mask

    def memory_key(self) -> str:
        return self.mask


class ShrinkingEffect(Effect):
    """Trains a smaller network without the removed channels, and converts states to the whole network's shapes."""

    def convert_loaded_state(self, state: TrainingState) -> TrainingState:
        around = self.around
        assert around.mask_digest is not None
        self._plan = load_or_compute_plan(around.store, around.task, around.mask_digest, around.course)
        self._full = state.model
        self._shapes = {name: tuple(tensor.shape) for name, tensor in state.model.items()}
        variants = {name: self._shrink_entries(own) for name, own in state.variants.items()}
        return replace(state, optimizer=self._shrink_entries(state.optimizer), variants=variants)

    def build(self, model: nn.Module) -> nn.Module:
        first: dict[int, str] = {}  # a tensor that several modules share is in the plan once
        self._names = {
            name_without_wrappers(name): first.setdefault(id(tensor), name_without_wrappers(name))
            for name, tensor in model.state_dict(keep_vars=True).items()
        }
        mask = self.around.mask
        assert mask is not None
        self._around = {
            name: tensor.masked_fill(~mask[self._names[name]], 0) if self._names[name] in mask else tensor
            for name, tensor in self._full.items()
        }
        """The whole network's tensors, with the values that the smaller network lacks."""
        return rebuild(model, self._plan)

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        self._training = training

    def convert_state_for_store(self, state: TrainingState) -> TrainingState:
        model = {
            name: self._plan.expand(self._names[name], part, self._around[name]) for name, part in state.model.items()
        }
        variants = {name: self._expand_entries(own) for name, own in state.variants.items()}
        return replace(state, model=model, optimizer=self._expand_entries(state.optimizer), variants=variants)

    # The state of a session is stored in its full shape too.

    def convert_loaded_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        cut = {
            name: entries[name].index_select(dim, kept)
            for name, dim, kept, _ in self._find_entries_with_fewer_channels(entries)
        }
        copied = {
            name: self._plan.cut(parameter, entries[name])
            for name, parameter in self._find_copies_of_parameters(entries)
        }
        return {**entries, **cut, **copied}

    def convert_session_for_store(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(entries)
        for name, dim, kept, size in self._find_entries_with_fewer_channels(entries):
            part = entries[name]
            whole = torch.zeros((*part.shape[:dim], size, *part.shape[dim + 1 :]), dtype=part.dtype)
            found[name] = whole.index_copy_(dim, kept, part)
        for name, parameter in self._find_copies_of_parameters(entries):
            whole = torch.zeros(self._shapes[parameter], dtype=entries[name].dtype)
            found[name] = self._plan.expand(parameter, entries[name], whole)
        return found

    def _find_copies_of_parameters(self, entries: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
        """Yield, for each entry that is a copy of a parameter, the name of the entry and that of the parameter."""
        prefix = self._training.session.copies
        for name in entries if prefix else ():
            if name.startswith(prefix):
                yield name, self._names[name[len(prefix) :]]

    def _find_entries_with_fewer_channels(
        self, entries: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, int, Tensor, int]]:
        """Yield the entries of a session that have fewer channels in the smaller network.

        Each item is the entry's name, the dimension of the channels, the indices of the retained channels, and the
        number of channels in the whole network.
        """
        for name, (dim, parameter, of) in self._training.session.follows(self._training.model).items():
            if name not in entries:
                continue
            kept = self._plan.kept.get(self._names[parameter], {}).get(of)
            if kept is not None:
                yield name, dim, torch.tensor(kept), self._shapes[parameter][of]

    # Entries of the optimiser, and of other variants, are named parameter/entry; those with one value for each weight
    # have the parameter's shape.

    def _shrink_entries(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(entries)
        for key, value in entries.items():
            name = name_without_wrappers(key.rpartition("/")[0])
            if value.shape == self._shapes.get(name):
                found[key] = self._plan.cut(name, value)
        return found

    def _expand_entries(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(entries)
        for key, value in entries.items():
            name = name_without_wrappers(key.rpartition("/")[0])
            if name in self._plan.kept and value.shape == self._plan.shape(name):
                whole = torch.zeros(self._shapes[name], dtype=value.dtype, device=value.device)
                found[key] = self._plan.expand(name, value, whole)
        return found


def load_or_compute_plan(store: Store, task: Task, mask: str, course: Course) -> ShrinkPlan:
    """Return the plan for taking the channels that `mask` removes out of a task's network; the store keeps the plan."""
    key = digest_of({"numerics": NUMERICS, "task": dict(task.key()), "mask": mask})

    def compute_and_store_plan() -> dict[str, str]:
        model = rebuild_model(task, initial_state(task, 0))
        plan = plan_for_structure(
            model, store.get_mask(mask), course.inputs(FOLLOWED), trace_task_structure(task, course)
        )
        return {"plan": store.put_bytes(plan.to_bytes()), "mask": mask}

    known = store.load_or_compute("plans", key, compute_and_store_plan)
    return ShrinkPlan.from_bytes(store.get_bytes(str(known["plan"])), "a stored plan")


def trace_task_structure(task: Task, course: Course) -> Structure:
    """Trace a task's network and return which channels can only be removed together.

    Modules that cannot be traced keep all channels.
    """
    return find_structure_sparing_untraceable(
        rebuild_model(task, initial_state(task, 0)), course.inputs(FOLLOWED), ("*",)
    )[0]
