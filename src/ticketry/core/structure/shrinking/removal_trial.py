"""Groups tried out: channels are removed, and the outputs compared with those of the masked model.

What following the operations cannot see is numbers in the user's code: a width written out in a `view`, a scale
computed from a width. A model with such a number fails to run without its channels, or gives other outputs.
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
from ticketry.core.scope import SHOWN, Patterns, as_names, unwrapped
from ticketry.core.structure.dependencies.channel_groups import Counted, Structure, structure_of
from ticketry.core.structure.dependencies.model_copies import (
    Arguments,
    Inputs,
    arguments_of,
    natural_dtype,
    sharing,
    twin_of,
)
from ticketry.core.structure.dependencies.partial_copies import PartialCopies
from ticketry.core.structure.dependencies.trace import Site
from ticketry.core.structure.shrinking.comparison import Problem, compare
from ticketry.core.structure.shrinking.plan import ShrinkPlan, cut_tensors, module_name, resized
from ticketry.core.structure.shrinking.selection import Flags, Removed, Sizes, kept_indices
from ticketry.errors import ControlFlowError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def tried_structure(model: nn.Module, example_inputs: Inputs, spare: Patterns = ()) -> Structure:
    """The groups of `model`; those whose removal changes its outputs, or breaks it, stay.

    Where a dimension is cut into several and its channels turn out to stay, another of them is taken for the one that
    can be narrower: after the width of attention heads their number.

    Args:
        spare: names or patterns of modules that are not looked into: all channels that enter or leave them stay.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.

    Raises:
        UsageError: if a name to spare is that of no module.
        StructureError: if the model does not run on the inputs, or decides by activations what to run.

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
    scrambled = _scrambled(twin).eval()
    choices: dict[Site, int] = {}
    best = last = _Trial(scrambled, arguments, structure_of(twin, arguments, choices, spared)).settled()
    for _ in range(_MOST_CHOICES):
        closed = [cut for cut in last.cuts if not all(last.groups[position].prunable for position in cut.groups)]
        others = {
            cut.site: choices.get(cut.site, 0) + 1 for cut in closed if choices.get(cut.site, 0) + 1 < cut.options
        }
        if not others:
            break
        choices |= others
        last = _Trial(scrambled, arguments, structure_of(twin, arguments, choices, spared)).settled()
        best = last if last.free > best.free else best
    if dtype != torch.float64:
        best = _tried_exactly(best, scrambled, arguments)
    return _Trial(scrambled, arguments, best).confirmed()


def _tried_exactly(structure: Structure, scrambled: nn.Module, arguments: Arguments) -> Structure:
    """Once more in float64, where the model runs in it: float32 hides what changes outputs by little."""
    exact = _Trial(twin_of(scrambled, torch.float64), arguments_of(arguments, torch.float64), structure)
    problem = exact.problem([*exact.half])
    return structure if problem is None or not problem.ran else exact.settled()


def structure_around(
    model: nn.Module, example_inputs: Inputs, spare: Sequence[str]
) -> tuple[Structure, tuple[str, ...]]:
    """`tried_structure` where layers are spared for other reasons too: only what cannot be followed is not looked into.

    Args:
        spare: names or patterns of modules, or of modules around them, that may look at their activations to decide
            what to run: those that do are not looked into. It may name other things besides.

    Returns:
        The structure, and the modules that were not looked into.

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
    for pattern in as_names(spare):
        matching = [name for name in names if fnmatchcase(module_name(name), pattern)]
        if not matching:
            question = did_you_mean(str(pattern), [module_name(name) for name in names]).strip()
            raise UsageError(
                f"spare={pattern!r} is no module of {type(model).__name__}: its modules are"
                f" {', '.join(name for name in names[1:SHOWN] if name) or 'none'}{', …' if len(names) > SHOWN else ''}"
                + (f"; {question}" if question else "")
            )
        found.update(matching)
    return frozenset(found)


_MOST_GUESSES = 4
"""Attributes that are tried as none for one group."""

_MOST_CHOICES = 2
"""Batch and length aside, a dimension is rarely cut into more than three, as query, key and value of all heads are."""


@dataclass
class _Trial:
    """Groups of one model, each with half of its channels to be removed."""

    twin: nn.Module
    arguments: Arguments
    structure: Structure
    good: list[int] = field(default_factory=list)
    """Positions of groups that can go together."""
    bad: dict[int, str] = field(default_factory=dict)
    """Position of a group -> why it stays."""
    training: bool = False
    """Whether it is tried in training mode too."""

    @cached_property
    def half(self) -> dict[int, Flags]:
        """Position of a group that is not known to stay -> half of its channels."""
        draw = np.random.default_rng(0)
        return {
            position: _half(group.size, draw) for position, group in enumerate(self.structure.groups) if group.prunable
        }

    @cached_property
    def copies(self) -> PartialCopies:
        return PartialCopies(self.twin, self.arguments)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes.of(self.twin)

    def settled(self) -> Structure:
        """The groups whose removal the model does not notice in evaluation mode."""
        self._settle([*self.half])
        return self.structure.staying(self.bad)

    def confirmed(self) -> Structure:
        """Of settled groups those whose removal it does not notice in training mode either, where code may run that
        did not before; attributes that only have a width's number, and are not needed for it, keep it."""
        self.good = [*self.half]
        if self.good and self.problem(self.good, training=True, evaluation=False):
            settled, self.good, self.training = self.good, [], True
            self._settle(settled)
        self._leave_alone()
        return self.structure.staying(self.bad)

    def _leave_alone(self) -> None:
        """Take no attribute for a width whose number the model can do without, in all modules of a class at once.

        On other inputs it might count something else: the longest text, the pixels that attention sees.
        """
        kinds: dict[tuple[type[nn.Module], str], list[Counted]] = {}
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
        """All groups together; where that fails, the others without those of the module that failed, or by halves."""
        waiting = [(positions, False)] if positions else []
        while waiting:
            several, suspected = waiting.pop()
            if suspected and len(several) == 1 and self._alone(several[0]):
                continue
            problem = self.problem([*self.good, *several])
            if problem is None:
                self.good += several
            elif len(several) == 1:
                self._judge(several[0], problem)
            else:
                waiting += self._divided(several, problem)

    def _divided(self, several: list[int], problem: Problem) -> list[tuple[list[int], bool]]:
        """Parts to look at, the first last."""
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
        """Groups of which a module may have numbers in its code; else with channels in it, or in the nearest around it
        that has any."""
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

    def _alone(self, position: int) -> bool:
        """Whether a group fails all by itself, and has been judged for it."""
        problem = self.problem([position])
        if problem is not None:
            self._judge(position, problem)
        return problem is not None

    def _judge(self, position: int, problem: Problem) -> None:
        """A group that fails stays, unless it passes when an attribute is left alone that only has its number."""
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
        """What is wrong with the model without half of the channels of these groups.

        Args:
            training: whether it is tried in training mode (too); by default as the trial says.
        """
        removed = {position: self.half[position] for position in positions}
        plan = self.sizes.plan(self.structure, removed)
        masked, small = self._masked(removed), self._smaller(plan)
        found = compare(masked, small, self.arguments) if evaluation else None
        if found is None and (self.training if training is None else training):
            found = compare(masked, small, self.arguments, training=True)
        return found

    def _masked(self, removed: Removed) -> nn.Module:
        """The model with zeros in place of these channels."""
        masked: dict[int, Tensor] = {}
        for (name, dim), stay in kept_indices(self.structure, self.sizes.shapes, removed).items():
            whole = self.sizes.tensors[name]
            if isinstance(whole, nn.Parameter):
                tensor = masked.setdefault(id(whole), whole.detach().clone())
                tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~stay)), 0)
        return self.copies.copy(masked)

    def _smaller(self, plan: ShrinkPlan) -> nn.Module:
        """`rebuild` with all that stays whole shared."""
        cut = {id(self.sizes.tensors[name]): plan.cut(name, self.sizes.tensors[name].detach()) for name in plan.kept}
        counting = [module for name, module in self.sizes.modules if module_name(name) in plan.attributes]
        return resized(self.copies.copy(cut, counting), plan)


def _half(size: int, draw: np.random.Generator) -> Flags:
    flags = np.zeros(size, dtype=bool)
    flags[draw.permutation(size)[: max(size // 2, 1)]] = True
    return flags


def smaller(twin: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """`rebuild` with all parameters that stay whole shared with `twin`."""
    return resized(sharing(twin, cut_tensors(twin, plan)), plan)


# -- weights that hide nothing -----------------------------------------------------------------------------------------


def _least(parameter: Tensor, spread: float) -> float:
    """The noise that small weights need for outputs as large as inputs; 0 for others."""
    usual = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and len(parameter) else 0.0
    return usual if spread < 0.5 * usual else 0.0


_MOST_NUMBERS = 65521
"""Random numbers for one tensor, then the same again: a prime, so that no two channels get the same ones."""


def _scrambled(twin: nn.Module) -> nn.Module:
    """A copy with weights away from where zeros and ones would hide a mistake: new biases, norms, last layers of a
    residual. Nor are they so small that attention is nearly even, of whichever heads it is: as drawn anew for BERT."""
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
            amount = max(0.5 * spread if spread > 0 else 0.1, _least(parameter, spread))
            weights[id(parameter)] = noisy(parameter.detach(), amount)
    model = sharing(twin, weights)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(noisy(module.running_mean, 0.1))
            draws = torch.rand(module.running_var.shape, generator=draw, dtype=module.running_var.dtype)
            module.running_var *= 0.5 + draws
    return model
