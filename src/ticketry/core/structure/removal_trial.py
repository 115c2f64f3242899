"""Trial removal of channel groups: the outputs are compared with those of the masked model.

Tracing cannot see numbers in the user's code: a width written out in a `view`, or a scale computed from a width. A
model with such a number fails to run without its channels, or returns other outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.choices import did_you_mean
from ticketry.core.scope import MOST_NAMES, Patterns, to_name_tuple, unwrapped
from ticketry.core.structure.coupling import ChannelCount, Structure, find_structure
from ticketry.core.structure.model_copies import (
    Arguments,
    Inputs,
    PartialCopies,
    Problem,
    arguments_of,
    compare,
    natural_dtype,
    sharing,
    twin_of,
)
from ticketry.core.structure.plans import (
    Flags,
    Removed,
    ShrinkPlan,
    Sizes,
    cut_tensors,
    kept_indices,
    module_name,
    set_sizes,
)
from ticketry.core.structure.trace import Site
from ticketry.errors import ControlFlowError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def tried_structure(model: nn.Module, example_inputs: Inputs, spare: Patterns = ()) -> Structure:
    """Return the groups of `model`; those whose removal breaks it or changes its outputs stay.

    If channels of a dimension that is split into several turn out to stay, another of these is tried as the narrower
    one: after the width of attention heads, their number.

    Args:
        model: is not changed.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.
        spare: names or patterns of modules that are not traced: all channels that enter or leave them stay.

    Raises:
        UsageError: if a pattern of `spare` matches no module.
        StructureError: if the model does not run on the inputs, or its control flow depends on activations.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> structure = tk.structure.tried_structure(model, torch.randn(2, 4))
        >>> [group.size for group in structure.groups if group.prunable]
        [8]
    """
    inner = unwrapped(model)
    spared = _matching(inner, spare)
    dtype = natural_dtype(inner)
    twin, arguments = twin_of(inner, dtype), arguments_of(example_inputs, dtype)
    scrambled = _add_noise(twin).eval()
    choices: dict[Site, int] = {}
    best = last = _Trial(scrambled, arguments, find_structure(twin, arguments, choices, spared)).settle()
    for _ in range(_MOST_CHOICES):
        closed = [cut for cut in last.cuts if not all(last.groups[position].prunable for position in cut.groups)]
        others = {
            cut.site: choices.get(cut.site, 0) + 1 for cut in closed if choices.get(cut.site, 0) + 1 < cut.options
        }
        if not others:
            break
        choices |= others
        last = _Trial(scrambled, arguments, find_structure(twin, arguments, choices, spared)).settle()
        best = last if last.free > best.free else best
    if dtype != torch.float64:
        best = _try_in_double(best, scrambled, arguments)
    return _Trial(scrambled, arguments, best).confirm()


def _try_in_double(structure: Structure, scrambled: nn.Module, arguments: Arguments) -> Structure:
    """Repeat the trial in float64 if the model runs in it, because float32 hides small differences."""
    exact = _Trial(twin_of(scrambled, torch.float64), arguments_of(arguments, torch.float64), structure)
    problem = exact.problem([*exact.half])
    return structure if problem is None or not problem.ran else exact.settle()


def structure_around(
    model: nn.Module, example_inputs: Inputs, spare: Sequence[str]
) -> tuple[Structure, tuple[str, ...]]:
    """Return `tried_structure`, sparing only modules that cannot be traced.

    Args:
        model: is not changed.
        example_inputs: as of `tried_structure`.
        spare: names or patterns of modules, or of modules around them, whose control flow may depend on activations.
            Other names are ignored.

    Returns:
        The structure, and the modules that were not traced.

    Raises:
        StructureError: see `tried_structure`.
    """
    unseen: list[str] = []
    while True:
        try:
            return tried_structure(model, example_inputs, unseen), tuple(unseen)
        except ControlFlowError as error:
            parts = module_name(error.module).split(".")
            around = [".".join(parts[: count + 1]) for count in range(len(parts))]
            if not error.module or not any(fnmatchcase(name, pattern) for name in around for pattern in spare):
                raise
            unseen.append(around[-1])


def _matching(model: nn.Module, spare: Patterns) -> frozenset[str]:
    names = [name for name, _ in model.named_modules()]
    found: set[str] = set()
    for pattern in to_name_tuple(spare):
        matching = [name for name in names if fnmatchcase(module_name(name), pattern)]
        if not matching:
            question = did_you_mean(str(pattern), [module_name(name) for name in names]).strip()
            raise UsageError(
                f"spare={pattern!r} is no module of {type(model).__name__}: its modules are"
                f" {', '.join(name for name in names[1:MOST_NAMES] if name) or 'none'}"
                f"{', …' if len(names) > MOST_NAMES else ''}" + (f"; {question}" if question else "")
            )
        found.update(matching)
    return frozenset(found)


_MOST_GUESSES = 4
"""Most attributes that are left unchanged in turn for one group."""

_MOST_CHOICES = 2
"""Most further choices for a split dimension; splits into more than three (query, key and value of heads) are rare."""


@dataclass
class _Trial:
    """A trial of a model's groups, each with half of its channels removed."""

    twin: nn.Module
    arguments: Arguments
    structure: Structure
    good: list[int] = field(default_factory=list)
    """Positions of groups that can be removed together."""
    bad: dict[int, str] = field(default_factory=dict)
    """Position of a group -> why it stays."""
    training: bool = False
    """Whether outputs in training mode are compared too."""

    @cached_property
    def half(self) -> dict[int, Flags]:
        """Position of each prunable group -> half of its channels."""
        draw = np.random.default_rng(0)
        return {
            position: _draw_half(group.size, draw)
            for position, group in enumerate(self.structure.groups)
            if group.prunable
        }

    @cached_property
    def copies(self) -> PartialCopies:
        return PartialCopies(self.twin, self.arguments)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes.collect(self.twin)

    def settle(self) -> Structure:
        """Return the structure with the groups whose removal does not change outputs in evaluation mode."""
        self._settle([*self.half])
        return self.structure.staying(self.bad)

    def confirm(self) -> Structure:
        """Return the structure of settled groups whose removal does not change outputs in training mode either.

        Attributes that equal a width by chance keep their number.
        """
        self.good = [*self.half]
        if self.good and self.problem(self.good, training=True, evaluation=False):
            settled, self.good, self.training = self.good, [], True
            self._settle(settled)
        self._drop_guesses()
        return self.structure.staying(self.bad)

    def _drop_guesses(self) -> None:
        """Stop changing attributes that the model does not need changed, in all modules of a class at once.

        Such an attribute may count something else: the longest text, or the pixels of an attention window.
        """
        kinds: dict[tuple[type[nn.Module], str], list[ChannelCount]] = {}
        classes = {name: type(module) for name, module in self.twin.named_modules()}
        for one in self.structure.counted:
            if one.guessed and any(unit and unit[0] in self.good for unit in one.units):
                kinds.setdefault((classes[one.module], one.attribute), []).append(one)
        for alike in kinds.values():
            before = self.structure
            self.structure = replace(before, counted=tuple(one for one in before.counted if one not in alike))
            if self.problem(self.good, training=True):
                self.structure = before

    def _settle(self, positions: list[int]) -> None:
        """Try all groups together; on failure without those of the failing module, or in halves."""
        waiting = [(positions, False)] if positions else []
        while waiting:
            several, suspected = waiting.pop()
            if suspected and len(several) == 1 and self._fails_alone(several[0]):
                continue
            problem = self.problem([*self.good, *several])
            if problem is None:
                self.good += several
            elif len(several) == 1:
                self._judge(several[0], problem)
            else:
                waiting += self._divide(several, problem)

    def _divide(self, several: list[int], problem: Problem) -> list[tuple[list[int], bool]]:
        """Return parts to try, the first one last."""
        suspects = self._touching(several, problem.where)
        if len(suspects) == 1 and suspects[0] in self.structure.written.get(problem.where, ()):
            self._judge(suspects[0], problem)
            return [([position for position in several if position not in suspects], False)]
        if 0 < len(suspects) < len(several):
            alone = [([position], True) for position in suspects]
            return [*reversed(alone), ([position for position in several if position not in suspects], False)]
        middle = len(several) // 2
        return [(several[middle:], False), (several[:middle], False)]

    def _touching(self, several: list[int], where: str) -> list[int]:
        """Return groups whose width a module's code may contain; else those with channels in it or around it."""
        written = self.structure.written.get(where, frozenset())
        touching = [position for position in several if position in written]
        while where and not touching:
            prefix = f"{module_name(where)}."
            touching = [
                position
                for position in several
                if any(member.name.startswith(prefix) for member in self.structure.groups[position].members)
            ]
            where = where.rpartition(".")[0]
        return touching

    def _fails_alone(self, position: int) -> bool:
        """Return whether a group fails alone, and judge it then."""
        problem = self.problem([position])
        if problem is not None:
            self._judge(position, problem)
        return problem is not None

    def _judge(self, position: int, problem: Problem) -> None:
        """Make a failing group stay, unless it passes with an attribute unchanged that only equals its width."""
        guesses = [c for c in self.structure.counted if c.guessed and any(u and u[0] == position for u in c.units)]
        counted = self.structure.counted
        for dropped in (*([guess] for guess in guesses), guesses)[:_MOST_GUESSES] if guesses else ():
            self.structure = replace(self.structure, counted=tuple(c for c in counted if c not in dropped))
            if self.problem([*self.good, position]) is None:
                self.good.append(position)
                return
        self.structure = replace(self.structure, counted=counted)
        where = f" (in {problem.where})" if problem.where else ""
        self.bad[position] = f"the model is not the same without its channels: {problem.text}{where}"

    def problem(
        self, positions: Sequence[int], *, training: bool | None = None, evaluation: bool = True
    ) -> Problem | None:
        """Return how the model differs without half of the channels of these groups; None if it does not.

        Args:
            positions: of the groups.
            training: whether to compare in training mode; `self.training` by default.
            evaluation: whether to compare in evaluation mode.
        """
        removed = {position: self.half[position] for position in positions}
        plan = self.sizes.plan(self.structure, removed)
        masked, small = self._masked(removed), self._smaller(plan)
        found = compare(masked, small, self.arguments) if evaluation else None
        if found is None and (self.training if training is None else training):
            found = compare(masked, small, self.arguments, training=True)
        return found

    def _masked(self, removed: Removed) -> nn.Module:
        """Return the model with zeros instead of these channels."""
        masked: dict[int, Tensor] = {}
        for (name, dim), stay in kept_indices(self.structure, self.sizes.shapes, removed).items():
            whole = self.sizes.tensors[name]
            if isinstance(whole, nn.Parameter):
                tensor = masked.setdefault(id(whole), whole.detach().clone())
                tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~stay)), 0)
        return self.copies.copy(masked)

    def _smaller(self, plan: ShrinkPlan) -> nn.Module:
        """Return the smaller model, sharing everything that is not cut."""
        cut = {id(self.sizes.tensors[name]): plan.cut(name, self.sizes.tensors[name].detach()) for name in plan.kept}
        counting = [module for name, module in self.sizes.modules if module_name(name) in plan.attributes]
        return set_sizes(self.copies.copy(cut, counting), plan)


def _draw_half(size: int, draw: np.random.Generator) -> Flags:
    flags = np.zeros(size, dtype=bool)
    flags[draw.permutation(size)[: max(size // 2, 1)]] = True
    return flags


def build_smaller(twin: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Return the smaller model, sharing all parameters that are not cut with `twin`."""
    return set_sizes(sharing(twin, cut_tensors(twin, plan)), plan)


# -- noisy weights -----------------------------------------------------------------------------------------------------


def _least_noise(parameter: Tensor, spread: float) -> float:
    """Return the noise that small weights need for outputs as large as inputs; 0 for larger weights."""
    usual = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and len(parameter) else 0.0
    return usual if spread < 0.5 * usual else 0.0


_MOST_NUMBERS = 65521
"""Random numbers for one tensor, then repeated. It is a prime, so that no two channels get the same ones."""


def _add_noise(twin: nn.Module) -> nn.Module:
    """Return a copy with noise on its weights, because zeros and ones would hide errors.

    Examples are new biases, norms and last layers of residual branches, and weights so small that attention is uniform.
    """
    draw = torch.Generator().manual_seed(0)

    def noisy(tensor: Tensor, amount: float) -> Tensor:
        few = amount * torch.randn(min(tensor.numel(), _MOST_NUMBERS), generator=draw, dtype=tensor.dtype)
        flat = tensor.flatten().clone()
        whole = len(flat) // max(len(few), 1) * len(few)
        flat[:whole].view(-1, max(len(few), 1)).add_(few)
        flat[whole:].add_(few[: len(flat) - whole])
        return flat.view(tensor.shape)

    weights: dict[int, Tensor] = {}
    for parameter in twin.parameters():
        if parameter.is_floating_point():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            amount = max(0.5 * spread if spread > 0 else 0.1, _least_noise(parameter, spread))
            weights[id(parameter)] = noisy(parameter.detach(), amount)
    model = sharing(twin, weights)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(noisy(module.running_mean, 0.1))
            draws = torch.rand(module.running_var.shape, generator=draw, dtype=module.running_var.dtype)
            module.running_var *= 0.5 + draws
    return model
