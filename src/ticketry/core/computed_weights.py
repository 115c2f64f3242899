"""Weights that a layer computes from other parameters: weight_norm, spectral_norm, orthogonal, and one's own.

A mask is of parameters. Where a layer's weight is computed, a mask of the parameter behind it removes the weight only
if zeros pass through: each element that is 0 in the parameter is exactly 0 in the weight. This is tried, not looked up,
so that it is known of anybody's parametrisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from ticketry.core.devices.parts import is_spread
from ticketry.errors import MaskError
from ticketry_engine.support.seeds import generator

_TRIALS = 3
"""Random tensors that zeros have to pass through: one of a few elements can come out right by luck."""

_SHOWN = 5
"""Rows that an error names."""


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that `module` calls `local` and computes."""

    module: nn.Module
    local: str
    originals: tuple[nn.Parameter, ...]
    """What it is computed from, and a mask may be of."""
    rule: parametrize.ParametrizationList | WeightNorm

    @property
    def kind(self) -> str:
        """What computes it, for a message."""
        if isinstance(self.rule, WeightNorm):
            return "weight_norm"
        return ", ".join(type(step).__name__.strip("_") for step in self.rule)

    @torch.no_grad()
    def value(self, given: Mapping[int, Tensor] | None = None) -> Tensor:
        """The weight, with other tensors in place of some originals (by position).

        Nothing of the model changes, not even what a parametrisation counts as it runs.
        """
        return self._computed(given or {}, None)

    @torch.no_grad()
    def lets_zeros_pass(self, place: int) -> bool:
        """Whether the elements that are 0 in the original of that position are 0 in the weight, whatever else is."""
        original = self.originals[place]
        for trial in range(_TRIALS):
            draw = generator(trial, "zeros that pass through", place)
            removed = _about_half(original, draw)
            weight = self._computed({place: _random(original, draw).masked_fill(removed, 0)}, draw)
            if weight.shape != original.shape or weight[removed].any() or not weight.any():
                return False
        return True

    @torch.no_grad()
    def without_a_number(self, given: Mapping[int, Tensor]) -> list[int]:
        """Rows (indices of the first dimension) of the weight that are not all finite, with these originals."""
        weight = self.value(given)
        return (~weight.isfinite().reshape(len(weight), -1).all(1)).nonzero().flatten().tolist()

    @torch.no_grad()
    def removes(self, removed: Mapping[int, Tensor]) -> bool:
        """Whether zeros at these places of originals (bool, by position) are zeros of the weight, or no numbers."""
        removed = {place: each for place, each in removed.items() if each.any()}
        if not all(self.lets_zeros_pass(place) for place in removed):
            return False
        weight = self.value(self.masked(removed)).nan_to_num(0.0, 0.0, 0.0) if removed else torch.empty(0)
        return not any(weight[each].any() for each in removed.values())

    def masked(self, removed: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Originals, by position, with zeros at these places."""
        return {place: self.originals[place].detach().masked_fill(each, 0) for place, each in removed.items()}

    def _computed(self, given: Mapping[int, Tensor], draw: torch.Generator | None) -> Tensor:
        """With `draw`, all that is not given is random, the parameters of the parametrisation too."""

        def tensor(parameter: Tensor, place: int | None) -> Tensor:
            if place is not None and place in given:
                return given[place]
            return parameter.detach() if draw is None else _random(parameter, draw)

        if isinstance(self.rule, WeightNorm):  # torch.nn.utils.weight_norm, which is older than parametrisations
            g, v = (tensor(original, place) for place, original in enumerate(self.originals))
            return torch._weight_norm(v, g, self.rule.dim)
        rule = copy.deepcopy(self.rule)
        places = {id(original): place for place, original in enumerate(rule.parameters(recurse=False))}
        for parameter in rule.parameters():
            parameter.copy_(tensor(parameter, places.get(id(parameter))))
        value: Tensor = rule()
        return value


def computed_weights(model: nn.Module) -> Iterator[ComputedWeight]:
    """All computed weights of a model, in the order of its modules."""
    for module in model.modules():
        yield from computed_weights_of(module)


def computed_weights_of(module: nn.Module) -> Iterator[ComputedWeight]:
    """Those of a module itself."""
    if parametrize.is_parametrized(module):
        for local, rule in module.parametrizations.items():  # type: ignore[union-attr,operator]
            originals = tuple(rule.parameters(recurse=False))
            if originals:  # and no computed buffer
                yield ComputedWeight(module, local, originals, rule)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            originals = tuple(getattr(module, f"{hook.name}_{part}") for part in ("g", "v"))
            yield ComputedWeight(module, hook.name, originals, hook)


def weights_in_use(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """By the same names the weights as their layers use them, detached: computed ones where a parameter stands for one
    of its shape, as weight_norm's v does."""
    computed = {id(original): each for each in computed_weights(model) for original in each.originals}
    weights = {}
    for name, parameter in parameters.items():
        weight = computed[id(parameter)].value() if id(parameter) in computed else parameter.detach()
        weights[name] = weight if weight.shape == parameter.shape else parameter.detach()
    return weights


def require_removed(model: nn.Module, parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]) -> None:
    """Make sure that a mask removes the weights that are computed from the parameters it is of.

    Args:
        parameters: of `model`, masked or not yet, by name.
        mask: bool tensors by the same names, True = kept.

    Raises:
        MaskError: naming a parameter whose mask would leave the weight computed from it other than 0, or no number.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    for computed in computed_weights(model):
        masked = {place: names[id(one)] for place, one in enumerate(computed.originals) if id(one) in names}
        if any(is_spread(computed.originals[place]) for place in masked):
            raise MaskError(
                f"the mask of {' and '.join(map(repr, masked.values()))}: a weight that is computed by {computed.kind}"
                " from parameters in parts on several devices (fully_shard) cannot be masked: make the weight a"
                " parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        removed = {place: ~mask[name].to(computed.originals[place].device) for place, name in masked.items()}
        if not computed.removes(removed):
            raise MaskError(
                f"the mask of {' and '.join(map(repr, masked.values()))} does not remove the weight computed from it"
                f" ({computed.local!r} of {type(computed.module).__name__}, by {computed.kind}): make the weight a"
                " parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
            )
        _require_numbers(computed, computed.masked(removed), f"the mask of {' and '.join(map(repr, masked.values()))}")


def require_numbers(model: nn.Module, parameters: Iterable[Tensor], products: Iterable[Tensor]) -> None:
    """Make sure that weights of `model` that are computed stay numbers where gates multiply what they come from.

    Args:
        parameters: that have gates.
        products: of each with its gates.

    Raises:
        MaskError: naming the rows that would not.
    """
    given = dict(zip(map(id, parameters), products, strict=True))
    for computed in computed_weights(model):
        own = {place: given[id(one)] for place, one in enumerate(computed.originals) if id(one) in given}
        if own:
            _require_numbers(computed, own, "what gates leave of a parameter")


def _require_numbers(computed: ComputedWeight, given: Mapping[int, Tensor], what: str) -> None:
    rows = computed.without_a_number(given)
    if rows:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
        raise MaskError(
            f"{what} makes {len(rows)} of {len(computed.value())} rows of the weight computed from it no numbers (rows"
            f" {shown} of {computed.local!r} of {type(computed.module).__name__}, by {computed.kind}), as weight_norm"
            " divides by the norm of a row that is removed altogether: keep one weight of each row, or make the weight"
            " a parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
        )


def _random(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw).to(like)


def _about_half(like: Tensor, draw: torch.Generator) -> Tensor:
    """Random places, about half of them, but no whole row (index of the first dimension) and no whole column."""
    removed = torch.rand(like.shape, generator=draw) < 0.5
    flat = removed.reshape(len(removed), -1) if like.dim() else removed.reshape(1, 1)
    rows, columns = flat.shape
    if columns > 1:
        flat[torch.arange(rows), torch.arange(rows) % columns] = False
    if rows > 1:
        flat[torch.arange(columns) % rows, torch.arange(columns)] = False
    return flat.reshape(like.shape).to(like.device)
