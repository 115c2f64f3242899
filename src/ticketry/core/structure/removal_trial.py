"""Test which channel groups can be removed: compare outputs of the smaller model and of the masked model.

Tracing cannot see numbers in the user's code, such as a width written out in a `view`, or a scale computed from a
width. Without the channels that such a number counts, the model fails or returns other outputs.
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
from ticketry.core.structure import model_copies
from ticketry.core.structure.coupling import ChannelCount, Structure, find_structure
from ticketry.core.structure.model_copies import Arguments, Inputs, PartialCopies, Problem
from ticketry.core.structure.plans import Flags, ModelSizes, flag_retained_indices, normal_module_name, set_module_sizes
from ticketry.core.structure.trace import ViewCall
from ticketry.errors import ControlFlowError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def tried_structure(model: nn.Module, example_inputs: Inputs, spare: Patterns = ()) -> Structure:
    """Return the channel structure of `model`, after testing which channel groups can be removed.

    A group is marked as not prunable if its removal breaks the model or changes its outputs. If the model splits a
    dimension into several, such as attention heads and their width, pruning is first assumed to narrow the last of the
    new dimensions. If channels cannot be removed in this way, another dimension is tried.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them.
        spare: names or patterns of modules that are not traced. All channels that enter or leave these modules are
            retained.

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
    spared = _match_modules(inner, spare)
    dtype = model_copies.choose_tracing_dtype(inner)
    model_copy, arguments = model_copies.copy_in_dtype(inner, dtype), model_copies.copy_arguments(example_inputs, dtype)
    scrambled = _add_noise(model_copy).eval()
    choices: dict[ViewCall, int] = {}

    def trace_and_test() -> Structure:
        structure = find_structure(model_copy, arguments, choices, spared)
        return _Trial(scrambled, arguments, structure).find_removable_groups()

    best = last = trace_and_test()
    for _ in range(_MOST_CHOICES):
        closed = [cut for cut in last.cuts if not all(last.groups[position].prunable for position in cut.groups)]
        others = {
            cut.site: choices.get(cut.site, 0) + 1 for cut in closed if choices.get(cut.site, 0) + 1 < cut.options
        }
        if not others:
            break
        choices |= others
        last = trace_and_test()
        best = last if last.free > best.free else best
    if dtype != torch.float64:
        exact = _Trial(
            model_copies.copy_in_dtype(scrambled, torch.float64),
            model_copies.copy_arguments(arguments, torch.float64),
            best,
        )
        problem = exact.find_problem([*exact.half_channels])
        if problem is not None and problem.ran:  # some models do not run in float64
            best = exact.find_removable_groups()
    return _Trial(scrambled, arguments, best).confirm_in_training_mode()


def find_structure_sparing_untraceable(
    model: nn.Module, example_inputs: Inputs, spare: Sequence[str]
) -> tuple[Structure, tuple[str, ...]]:
    """Return the tested channel structure of `model`, and the names of the modules that were not traced.

    These are modules that cannot be traced, because their control flow, or that of a module inside, depends on
    activations. They must match a name or pattern in `spare`; other modules that match are traced.
    """
    unseen: list[str] = []
    while True:
        try:
            return tried_structure(model, example_inputs, unseen), tuple(unseen)
        except ControlFlowError as error:
            parts = normal_module_name(error.module).split(".")
            around = [".".join(parts[: count + 1]) for count in range(len(parts))]
            if not error.module or not any(fnmatchcase(name, pattern) for name in around for pattern in spare):
                raise
            unseen.append(around[-1])


def _match_modules(model: nn.Module, spare: Patterns) -> frozenset[str]:
    names = [name for name, _ in model.named_modules()]
    found: set[str] = set()
    for pattern in to_name_tuple(spare):
        matching = [name for name in names if fnmatchcase(normal_module_name(name), pattern)]
        if not matching:
            question = did_you_mean(str(pattern), [normal_module_name(name) for name in names]).strip()
            raise UsageError(
                f"spare={pattern!r} is no module of {type(model).__name__}: its modules are"
                f" {', '.join(name for name in names[1:MOST_NAMES] if name) or 'none'}"
                f"{', …' if len(names) > MOST_NAMES else ''}" + (f"; {question}" if question else "")
            )
        found.update(matching)
    return frozenset(found)


_MOST_GUESSES = 4
"""Largest number of tests of a failing group with attributes unchanged that may count something else."""

_MOST_CHOICES = 2
"""Number of times that another dimension of a split is tried; splits into more than three dimensions are rare."""


@dataclass
class _Trial:
    """Tests which channel groups of a model can be removed, by removing a random half of each group's channels."""

    model_copy: nn.Module
    arguments: Arguments
    structure: Structure
    removable: list[int] = field(default_factory=list)
    """Indices of groups that can be removed together."""
    not_removable: dict[int, str] = field(default_factory=dict)
    """Index of a group -> why it cannot be removed."""
    training: bool = False
    """Whether outputs in training mode are compared too."""

    @cached_property
    def half_channels(self) -> dict[int, Flags]:
        """Index of each prunable group -> flags that mark a random half of the group's channels."""
        draw, found = np.random.default_rng(0), {}
        for position, group in enumerate(self.structure.groups):
            if group.prunable:
                found[position] = np.zeros(group.size, dtype=bool)
                found[position][draw.permutation(group.size)[: max(group.size // 2, 1)]] = True
        return found

    @cached_property
    def copies(self) -> PartialCopies:
        return PartialCopies(self.model_copy, self.arguments)

    @cached_property
    def sizes(self) -> ModelSizes:
        return ModelSizes(self.model_copy)

    def find_removable_groups(self) -> Structure:
        """Test all prunable groups in evaluation mode; return the structure with failing groups marked not prunable."""
        self._test_groups([*self.half_channels])
        return self.structure.staying(self.not_removable)

    def confirm_in_training_mode(self) -> Structure:
        """Test the prunable groups in training mode; return the structure with failing groups marked not prunable."""
        self.removable = [*self.half_channels]
        if self.removable and self.find_problem(self.removable, training=True, evaluation=False):
            settled, self.removable, self.training = self.removable, [], True
            self._test_groups(settled)
        self._leave_unrelated_attributes_unchanged()
        return self.structure.staying(self.not_removable)

    def _leave_unrelated_attributes_unchanged(self) -> None:
        """Find module attributes that need not be changed when channels are removed, and leave them unchanged.

        An attribute that equals a number of channels may count something else, such as the longest text. The model is
        tested with the old value of the attribute in all modules of a class.
        """
        kinds: dict[tuple[type[nn.Module], str], list[ChannelCount]] = {}
        classes = {name: type(module) for name, module in self.model_copy.named_modules()}
        for one in self.structure.counted:
            if one.guessed and any(unit and unit[0] in self.removable for unit in one.units):
                kinds.setdefault((classes[one.module], one.attribute), []).append(one)
        for alike in kinds.values():
            before = self.structure
            self.structure = replace(before, counted=tuple(one for one in before.counted if one not in alike))
            if self.find_problem(self.removable, training=True):
                self.structure = before

    def _test_groups(self, positions: list[int]) -> None:
        """Test the groups at `positions` together; if the test fails, divide the groups and test the parts."""
        waiting = [(positions, False)] if positions else []
        while waiting:
            several, suspected = waiting.pop()
            problem = self.find_problem(several) if suspected else None  # a suspect is tested without the others first
            problem = problem or self.find_problem([*self.removable, *several])
            if problem is None:
                self.removable += several
            elif len(several) == 1:
                self._mark_not_removable(several[0], problem)
            else:
                waiting += self._divide_failing_groups(several, problem)

    def _divide_failing_groups(self, positions: list[int], problem: Problem) -> list[tuple[list[int], bool]]:
        """Divide groups that fail together into parts, which are tested separately, the last part first.

        Suspects, which are groups that may make the module fail, become parts of their own. Without suspects, the
        groups are halved. Each part is returned with a flag that says whether it is a suspect.
        """
        suspects = self._find_suspect_groups(positions, problem.where)
        if len(suspects) == 1 and suspects[0] in self.structure.written.get(problem.where, ()):
            self._mark_not_removable(suspects[0], problem)
            return [([position for position in positions if position not in suspects], False)]
        if 0 < len(suspects) < len(positions):
            alone = [([position], True) for position in suspects]
            return [*reversed(alone), ([position for position in positions if position not in suspects], False)]
        middle = len(positions) // 2
        return [(positions[middle:], False), (positions[:middle], False)]

    def _find_suspect_groups(self, positions: list[int], where: str) -> list[int]:
        """Return those of the groups at `positions` that may make the module `where` fail.

        These are groups whose width the module's code may contain as a number, or else groups with channels in the
        module or in a module around it.
        """
        written = self.structure.written.get(where, frozenset())
        touching = [position for position in positions if position in written]
        while where and not touching:
            prefix = f"{normal_module_name(where)}."
            touching = [
                position
                for position in positions
                if any(member.name.startswith(prefix) for member in self.structure.groups[position].members)
            ]
            where = where.rpartition(".")[0]
        return touching

    def _mark_not_removable(self, position: int, problem: Problem) -> None:
        """Mark a failing group as not removable, unless it passes if ambiguous attributes keep their old values.

        Ambiguous attributes equal the number of channels, but may count something else."""
        guesses = [c for c in self.structure.counted if c.guessed and any(u and u[0] == position for u in c.units)]
        counted = self.structure.counted
        for dropped in (*([guess] for guess in guesses), guesses)[:_MOST_GUESSES] if guesses else ():
            self.structure = replace(self.structure, counted=tuple(c for c in counted if c not in dropped))
            if self.find_problem([*self.removable, position]) is None:
                self.removable.append(position)
                return
        self.structure = replace(self.structure, counted=counted)
        where = f" (in {problem.where})" if problem.where else ""
        self.not_removable[position] = f"the model is not the same without its channels: {problem.text}{where}"

    def find_problem(
        self, positions: Sequence[int], *, training: bool | None = None, evaluation: bool = True
    ) -> Problem | None:
        """Remove half the channels of these groups, and return how the model then differs; None if outputs are equal.

        Args:
            training: whether to compare in training mode; `self.training` by default.
        """
        removed = {position: self.half_channels[position] for position in positions}
        plan = self.sizes.build_plan(self.structure, removed)
        zeroed: dict[int, Tensor] = {}
        for (name, dim), stay in flag_retained_indices(self.structure, self.sizes.shapes, removed).items():
            whole = self.sizes.tensors[name]
            if isinstance(whole, nn.Parameter):
                tensor = zeroed.setdefault(id(whole), whole.detach().clone())
                tensor.index_fill_(dim, torch.from_numpy(np.flatnonzero(~stay)), 0)
        masked = self.copies.copy(zeroed)
        cut = {id(self.sizes.tensors[name]): plan.cut(name, self.sizes.tensors[name].detach()) for name in plan.kept}
        counting = [module for name, module in self.sizes.modules if normal_module_name(name) in plan.attributes]
        small = set_module_sizes(self.copies.copy(cut, counting), plan)
        found = model_copies.compare_models(masked, small, self.arguments) if evaluation else None
        if found is None and (self.training if training is None else training):
            found = model_copies.compare_models(masked, small, self.arguments, training=True)
        return found


# -- noisy weights -----------------------------------------------------------------------------------------------------


_MOST_NUMBERS = 65521
"""Number of random numbers drawn for a tensor, which are repeated to fill the tensor.

The number is prime, so that no two channels get the same numbers.
"""


def _add_noise(model_copy: nn.Module) -> nn.Module:
    """Return a copy of the model with noise added to its weights, because zeros and ones in weights would hide errors.

    New biases, new norms and the last layers of residual branches have such weights. Very small weights, which make
    attention uniform, hide errors too.
    """
    draw = torch.Generator().manual_seed(0)

    def add_noise_to_tensor(tensor: Tensor, amount: float) -> Tensor:
        few = amount * torch.randn(min(tensor.numel(), _MOST_NUMBERS), generator=draw, dtype=tensor.dtype)
        flat = tensor.flatten().clone()
        whole = len(flat) // max(len(few), 1) * len(few)
        flat[:whole].view(-1, max(len(few), 1)).add_(few)
        flat[whole:].add_(few[: len(flat) - whole])
        return flat.view(tensor.shape)

    weights: dict[int, Tensor] = {}
    for parameter in model_copy.parameters():
        if parameter.is_floating_point():
            spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
            usual = parameter[0].numel() ** -0.5 if parameter.dim() > 1 and len(parameter) else 0.0
            amount = max(0.5 * spread if spread > 0 else 0.1, usual if spread < 0.5 * usual else 0.0)
            weights[id(parameter)] = add_noise_to_tensor(parameter.detach(), amount)
    model = model_copies.copy_sharing_parameters(model_copy, weights)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.copy_(add_noise_to_tensor(module.running_mean, 0.1))
            draws = torch.rand(module.running_var.shape, generator=draw, dtype=module.running_var.dtype)
            module.running_var *= 0.5 + draws
    return model
