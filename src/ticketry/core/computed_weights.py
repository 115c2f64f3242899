"""Weights that a layer computes from other parameters: by parametrisations, by hooks before its forward, by quantisers.

A parametrisation is any of torch's (weight_norm, spectral_norm, orthogonal) or the user's own. Hooks are those of
torch.nn.utils (the older weight_norm and spectral_norm, pruning) and the user's own where a layer has no parameter
called weight. A quantiser is the `weight_fake_quant` of a layer of quantisation-aware training.

A mask is of parameters. Where a layer's weight is computed, a mask of the parameter behind it removes the weight only
if zeros pass through: each element that is 0 in the parameter is exactly 0 in the weight. This is tried, not looked up,
so that it is known of anybody's parametrisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ticketry.core.devices.parts import is_spread
from ticketry.errors import MaskError, ScopeError
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
    rule: parametrize.ParametrizationList | WeightNorm | _Hooks | nn.Module

    @property
    def kind(self) -> str:
        """What computes it, for a message."""
        if isinstance(self.rule, WeightNorm):
            return "weight_norm"
        if isinstance(self.rule, _Hooks):
            return self.rule.kind
        if isinstance(self.rule, parametrize.ParametrizationList):
            return ", ".join(type(step).__name__.strip("_") for step in self.rule)
        return type(self.rule).__name__

    @property
    def advice(self) -> str:
        """How the weight becomes a parameter, for a message."""
        if isinstance(self.rule, parametrize.ParametrizationList):
            return "make the weight a parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
        if isinstance(self.rule, WeightNorm):
            return "make the weight a parameter first (torch.nn.utils.remove_weight_norm)"
        if isinstance(self.rule, _Hooks):
            return f"make the weight a parameter first ({self.rule.removal})"
        return "convert the model back to layers without fake quantisation first"

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
        if isinstance(self.rule, _Hooks):
            given = {id(original): tensor(original, place) for place, original in enumerate(self.originals)}
            return self.rule.run(self.module, self.local, given, draw)
        if not isinstance(self.rule, parametrize.ParametrizationList):  # a quantiser, which counts as it runs
            quantised: Tensor = copy.deepcopy(self.rule)(tensor(self.originals[0], 0))
            return quantised
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
    """Those of a module itself; TorchScript computes weights in code that cannot be seen."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    if parametrize.is_parametrized(module):
        for local, rule in module.parametrizations.items():  # type: ignore[union-attr,operator]
            originals = tuple(rule.parameters(recurse=False))
            if originals:  # and no computed buffer
                yield ComputedWeight(module, local, originals, rule)
    yield from _computed_by_hooks(module)
    quantiser = module._modules.get("weight_fake_quant")
    weight = module._parameters.get("weight")
    if quantiser is not None and weight is not None:
        yield ComputedWeight(module, "weight", (weight,), quantiser)


@dataclass(frozen=True)
class _Hooks:
    """Hooks that run before a module's forward and compute weights, in their order."""

    hooks: tuple[Callable[..., Any], ...]
    kind: str
    removal: str
    """How the weight becomes a parameter."""
    rounds: int = 1
    """Runs after which a weight is what its parameters give: more where a hook reads what a later one computes."""

    def run(self, module: nn.Module, local: str, given: Mapping[int, Tensor], draw: torch.Generator | None) -> Tensor:
        """Return the attribute `local` of a copy of the module, with tensors in place of parameters (by id).

        With `draw`, other parameters are random, and a pruned weight is whole.
        """
        twin = copy.copy(module)
        buffers = {name: None if one is None else one.clone() for name, one in module._buffers.items()}
        parameters = dict(module._parameters)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                other = parameter.detach() if draw is None else _random(parameter, draw)
                parameters[name] = given.get(id(parameter), other)  # type: ignore[assignment]
        if draw is not None:
            masks = [f"{hook._tensor_name}_mask" for hook in self.hooks if isinstance(hook, BasePruningMethod)]
            buffers |= {name: torch.ones_like(module._buffers[name]) for name in masks}  # type: ignore[arg-type]
        twin.__dict__ |= {"_parameters": parameters, "_buffers": buffers}
        for _ in range(self.rounds):
            for hook in self.hooks:
                hook(twin, ())
        value: Tensor = getattr(twin, local)
        return value.detach()


def _computed_by_hooks(module: nn.Module) -> Iterator[ComputedWeight]:
    """Yield the weights of a module that its hooks compute.

    Raises:
        ScopeError: if a hook of the user's own computes the weight of a layer in a way that cannot be followed.
    """
    sources: dict[str, tuple[str, ...]] = {}
    known: list[Callable[..., Any]] = []
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            sources[hook.name] = f"{hook.name}_g", f"{hook.name}_v"
        elif isinstance(hook, SpectralNorm):
            sources[hook.name] = (f"{hook.name}_orig",)
        elif isinstance(hook, BasePruningMethod):
            sources[hook._tensor_name] = (f"{hook._tensor_name}_orig",)
        else:
            continue
        known.append(hook)
    if len(known) == 1 and isinstance(known[0], WeightNorm):
        local = known[0].name
        originals = tuple(getattr(module, name) for name in sources[local])
        yield ComputedWeight(module, local, originals, known[0])
        return
    if not known:
        yield from _computed_by_own_hooks(module)
        return
    chained = [name for names in sources.values() for name in names if name in sources]
    kinds = dict.fromkeys(_KINDS[kind][0] for kind in _KINDS if any(isinstance(hook, kind) for hook in known))
    removals = dict.fromkeys(_KINDS[kind][1] for kind in _KINDS if any(isinstance(hook, kind) for hook in known))
    rule = _Hooks(tuple(known), ", ".join(kinds), ", ".join(removals), 1 + len(chained))
    for local in sources:
        if local not in chained:
            yield ComputedWeight(module, local, tuple(_originals(module, local, sources)), rule)


_KINDS: dict[type, tuple[str, str]] = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("torch.nn.utils.prune", "torch.nn.utils.prune.remove"),
}
"""Class of a hook -> its name in messages, and the function that takes it off."""


def _originals(module: nn.Module, local: str, sources: Mapping[str, tuple[str, ...]]) -> Iterator[nn.Parameter]:
    """Yield the parameters behind a weight, through weights that are computed themselves."""
    for name in sources[local]:
        if name in sources:
            yield from _originals(module, name, sources)
        elif (parameter := module._parameters.get(name)) is not None:
            yield parameter


def _computed_by_own_hooks(module: nn.Module) -> Iterator[ComputedWeight]:
    """Yield the weight of a layer that has no parameter of that name, and hooks of the user's own."""
    layer = isinstance(module, (nn.Linear, _ConvNd, nn.Embedding, nn.Bilinear)) and "weight" not in module._parameters
    hooks = tuple(hook for key, hook in module._forward_pre_hooks.items() if key not in _with_keywords(module))
    if not layer or not hooks or parametrize.is_parametrized(module, "weight"):
        return
    originals = tuple(one for name, one in module._parameters.items() if one is not None and name != "bias")
    rule = _Hooks(hooks, "a forward pre-hook", "remove the hook")
    computed = ComputedWeight(module, "weight", originals, rule)
    try:
        computed.value()
    except Exception as error:
        raise ScopeError(
            f"a forward pre-hook computes the weight of a {type(module).__name__}, and it does not run without a call"
            f" ({type(error).__name__}: {error}): make it a parametrisation"
            " (torch.nn.utils.parametrize.register_parametrization)"
        ) from error
    yield computed


def _with_keywords(module: nn.Module) -> Collection[int]:
    """Return the keys of the hooks that take keyword arguments, which need a call."""
    return tuple(getattr(module, "_forward_pre_hooks_with_kwargs", ()))


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
                f" from parameters in parts on several devices (fully_shard) cannot be masked: {computed.advice}"
            )
        removed = {place: ~mask[name].to(computed.originals[place].device) for place, name in masked.items()}
        if not computed.removes(removed):
            raise MaskError(
                f"the mask of {' and '.join(map(repr, masked.values()))} does not remove the weight computed from it"
                f" ({computed.local!r} of {type(computed.module).__name__}, by {computed.kind}): {computed.advice}"
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
            " divides by the norm of a row that is removed altogether: keep one weight of each row, or"
            f" {computed.advice}"
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
