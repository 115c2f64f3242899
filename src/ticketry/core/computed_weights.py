"""Weights that a layer computes from other parameters, by a parametrisation, a forward pre-hook or a quantiser.

- Parametrisations: torch's (weight_norm, spectral_norm, orthogonal) and custom ones.
- Forward pre-hooks: those of torch.nn.utils (the older weight_norm and spectral_norm, pruning), and custom hooks of
  layers that have no parameter called weight.
- Quantisers: the `weight_fake_quant` of a layer in quantisation-aware training.

A mask applies to the parameter from which a weight is computed. The mask removes weights only if the computation
preserves zeros: wherever the parameter is 0, the computed weight is exactly 0. This property is tested with random
numbers, which works for any parametrisation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ticketry.core.sharding import is_sharded
from ticketry.errors import MaskError, ScopeError
from ticketry_engine.support.seeds import generator

_TRIALS = 3
"""Number of random tensors with which zeros are tested; a single small tensor might preserve zeros by chance."""

_SHOWN = 5
"""Largest number of rows that an error message names."""


@dataclass(frozen=True)
class ComputedWeight:
    """A weight that `module` computes from parameters and stores in its attribute whose name is `local`."""

    module: nn.Module
    local: str
    originals: tuple[nn.Parameter, ...]
    """The parameters from which the weight is computed; masks may name these parameters."""
    rule: parametrize.ParametrizationList | WeightNorm | _Hooks | nn.Module

    @property
    def kind(self) -> str:
        """Name of the parametrisation, hook or quantiser, for error messages."""
        if isinstance(self.rule, WeightNorm):
            return "weight_norm"
        if isinstance(self.rule, _Hooks):
            return self.rule.kind
        if isinstance(self.rule, parametrize.ParametrizationList):
            return ", ".join(type(step).__name__.strip("_") for step in self.rule)
        return type(self.rule).__name__

    @property
    def advice(self) -> str:
        """Advice for error messages: how to turn the weight into a parameter."""
        if isinstance(self.rule, parametrize.ParametrizationList):
            return "make the weight a parameter first (torch.nn.utils.parametrize.remove_parametrizations)"
        if isinstance(self.rule, WeightNorm):
            return "make the weight a parameter first (torch.nn.utils.remove_weight_norm)"
        if isinstance(self.rule, _Hooks):
            return f"make the weight a parameter first ({self.rule.removal})"
        return "convert the model back to layers without fake quantisation first"

    @torch.no_grad()
    def preserves_zeros(self, position: int) -> bool:
        """Return whether the weight is always 0 where the parameter `originals[position]` is 0."""
        original = self.originals[position]
        for trial in range(_TRIALS):
            draw = generator(trial, "zeros that pass through", position)
            removed = _random_half_mask(original, draw)
            weight = self.value({position: _random_like(original, draw).masked_fill(removed, 0)}, draw)
            if weight.shape != original.shape or weight[removed].any() or not weight.any():
                return False
        return True

    @torch.no_grad()
    def value(self, replaced: Mapping[int, Tensor] | None = None, draw: torch.Generator | None = None) -> Tensor:
        """Compute the weight, optionally with other tensors in place of some parameters.

        Args:
            replaced: index in `originals` -> tensor to use instead.
            draw: if given, all other parameters are replaced by random numbers.
        """

        def replace_parameter(parameter: Tensor, position: int | None) -> Tensor:
            if replaced and position is not None and position in replaced:
                return replaced[position]
            return parameter.detach() if draw is None else _random_like(parameter, draw)

        if isinstance(self.rule, WeightNorm):  # torch.nn.utils.weight_norm, which is older than parametrisations
            g, v = (replace_parameter(original, position) for position, original in enumerate(self.originals))
            return torch._weight_norm(v, g, self.rule.dim)
        if isinstance(self.rule, _Hooks):
            values = {
                id(original): replace_parameter(original, position) for position, original in enumerate(self.originals)
            }
            return self.rule.run_on_copy(self.module, self.local, values, draw)
        if not isinstance(self.rule, parametrize.ParametrizationList):  # a quantiser, which updates its observers
            quantised: Tensor = copy.deepcopy(self.rule)(replace_parameter(self.originals[0], 0))
            return quantised
        rule = copy.deepcopy(self.rule)
        positions = {id(original): position for position, original in enumerate(rule.parameters(recurse=False))}
        for parameter in rule.parameters():
            parameter.copy_(replace_parameter(parameter, positions.get(id(parameter))))
        value: Tensor = rule()
        return value


def computed_weights(model: nn.Module) -> Iterator[ComputedWeight]:
    """Yield all weights of a model that are computed from parameters, in the order of the model's modules."""
    for module in model.modules():
        yield from computed_weights_in(module)


def computed_weights_in(module: nn.Module) -> Iterator[ComputedWeight]:
    """Yield the weights that a single module computes, without those of its children; none for TorchScript modules."""
    if isinstance(module, torch.jit.ScriptModule):
        return
    if parametrize.is_parametrized(module):
        for local, rule in module.parametrizations.items():  # type: ignore[union-attr,operator]
            originals = tuple(rule.parameters(recurse=False))
            if originals:  # not a parametrised buffer
                yield ComputedWeight(module, local, originals, rule)
    yield from _find_hook_computed_weights(module)
    quantiser = module._modules.get("weight_fake_quant")
    weight = module._parameters.get("weight")
    if quantiser is not None and weight is not None:
        yield ComputedWeight(module, "weight", (weight,), quantiser)


@dataclass(frozen=True)
class _Hooks:
    """Contains the forward pre-hooks by which a module computes weights."""

    hooks: tuple[Callable[..., Any], ...]
    kind: str
    """Names of the hooks, for error messages."""
    removal: str
    """Advice for error messages: how to turn the weight into a parameter."""
    rounds: int = 1
    """Number of times that all hooks run: more than once if a hook reads a weight that a later hook computes."""

    def run_on_copy(
        self, module: nn.Module, local: str, values: Mapping[int, Tensor], draw: torch.Generator | None
    ) -> Tensor:
        """Run the hooks on a copy of the module and return its attribute `local`.

        Args:
            values: `id` of a parameter -> tensor to use instead of the parameter.
            draw: if given, all parameters that are not in `values` are random, and masks of torch.nn.utils.prune are
                ignored.
        """
        replica = copy.copy(module)
        buffers = {name: None if one is None else one.clone() for name, one in module._buffers.items()}
        parameters = dict(module._parameters)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                other = parameter.detach() if draw is None else _random_like(parameter, draw)
                parameters[name] = values.get(id(parameter), other)  # type: ignore[assignment]
        if draw is not None:
            masks = [f"{hook._tensor_name}_mask" for hook in self.hooks if isinstance(hook, BasePruningMethod)]
            buffers |= {name: torch.ones_like(module._buffers[name]) for name in masks}  # type: ignore[arg-type]
        replica.__dict__ |= {"_parameters": parameters, "_buffers": buffers}
        for _ in range(self.rounds):
            for hook in self.hooks:
                hook(replica, ())
        value: Tensor = getattr(replica, local)
        return value.detach()


def _find_hook_computed_weights(module: nn.Module) -> Iterator[ComputedWeight]:
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
        yield from _find_custom_hook_weight(module)
        return
    chained = [name for names in sources.values() for name in names if name in sources]
    kinds = dict.fromkeys(_KINDS[kind][0] for kind in _KINDS if any(isinstance(hook, kind) for hook in known))
    removals = dict.fromkeys(_KINDS[kind][1] for kind in _KINDS if any(isinstance(hook, kind) for hook in known))
    rule = _Hooks(tuple(known), ", ".join(kinds), ", ".join(removals), 1 + len(chained))
    for local in sources:
        if local not in chained:
            yield ComputedWeight(module, local, tuple(_source_parameters(module, local, sources)), rule)


_KINDS: dict[type, tuple[str, str]] = {
    WeightNorm: ("weight_norm", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("spectral_norm", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("torch.nn.utils.prune", "torch.nn.utils.prune.remove"),
}
"""Class of a hook -> (name of the hook in error messages, function that removes the hook)."""


def _source_parameters(module: nn.Module, local: str, sources: Mapping[str, tuple[str, ...]]) -> Iterator[nn.Parameter]:
    """Yield the parameters from which the weight `local` is computed, directly or through other computed weights.

    `sources` maps each computed weight to the names of the tensors that it is computed from.
    """
    for name in sources[local]:
        if name in sources:
            yield from _source_parameters(module, name, sources)
        elif (parameter := module._parameters.get(name)) is not None:
            yield parameter


def _find_custom_hook_weight(module: nn.Module) -> Iterator[ComputedWeight]:
    """Yield the computed weight of a layer that has custom forward pre-hooks and no parameter called weight."""
    layer = isinstance(module, (nn.Linear, _ConvNd, nn.Embedding, nn.Bilinear)) and "weight" not in module._parameters
    with_keywords = getattr(module, "_forward_pre_hooks_with_kwargs", ())  # hooks that cannot run outside of a call
    hooks = tuple(hook for key, hook in module._forward_pre_hooks.items() if key not in with_keywords)
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


def effective_weights(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return, by parameter name, the weights that layers use: computed weights, or the parameters themselves.

    A computed weight is returned in place of its parameter if both have the same shape, as for v of weight_norm.
    """
    computed = {id(original): each for each in computed_weights(model) for original in each.originals}
    weights = {}
    for name, parameter in parameters.items():
        weight = computed[id(parameter)].value() if id(parameter) in computed else parameter.detach()
        weights[name] = weight if weight.shape == parameter.shape else parameter.detach()
    return weights


def require_computed_weights_are_removed(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], mask: Mapping[str, Tensor]
) -> None:
    """Check that a mask of parameters, which may be masked already, also removes the weights computed from them."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    for computed in computed_weights(model):
        masked = {place: names[id(one)] for place, one in enumerate(computed.originals) if id(one) in names}
        what = f"the mask of {' and '.join(map(repr, masked.values()))}"
        if any(is_sharded(computed.originals[place]) for place in masked):
            raise MaskError(
                f"{what}: a weight that is computed by {computed.kind} from parameters sharded over several devices"
                f" (fully_shard) cannot be masked: {computed.advice}"
            )
        removed = {place: ~mask[name].to(computed.originals[place].device) for place, name in masked.items()}
        weight = computed.value({i: computed.originals[i].detach().masked_fill(one, 0) for i, one in removed.items()})
        zeros = {place: one for place, one in removed.items() if one.any()}
        numbers = weight.nan_to_num(0.0, 0.0, 0.0)  # rows that are not finite have an error of their own below
        if not all(map(computed.preserves_zeros, zeros)) or any(numbers[one].any() for one in zeros.values()):
            raise MaskError(
                f"{what} does not remove the weight computed from it ({computed.local!r} of"
                f" {type(computed.module).__name__}, by {computed.kind}): {computed.advice}"
            )
        _check_finite(computed, weight, what)


def check_computed_weights_finite(model: nn.Module, parameters: Iterable[Tensor], products: Iterable[Tensor]) -> None:
    """Raise `MaskError` if computed weights are not finite when `products` (times gates) replace `parameters`."""
    given = dict(zip(map(id, parameters), products, strict=True))
    for computed in computed_weights(model):
        own = {place: given[id(one)] for place, one in enumerate(computed.originals) if id(one) in given}
        if own:
            _check_finite(computed, computed.value(own), "what gates leave of a parameter")


def _check_finite(computed: ComputedWeight, weight: Tensor, what: str) -> None:
    """Raise `MaskError` if rows of the computed `weight` are not finite; `what` is the start of the message."""
    rows = (~weight.isfinite().reshape(len(weight), -1).all(1)).nonzero().flatten().tolist()
    if rows:
        shown = ", ".join(map(str, rows[:_SHOWN])) + (", …" if len(rows) > _SHOWN else "")
        raise MaskError(
            f"{what} makes {len(rows)} of {len(weight)} rows of the weight computed from it no numbers (rows"
            f" {shown} of {computed.local!r} of {type(computed.module).__name__}, by {computed.kind}), as weight_norm"
            " divides by the norm of a row that is removed altogether: keep one weight of each row, or"
            f" {computed.advice}"
        )


def _random_like(like: Tensor, draw: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=draw).to(like)


def _random_half_mask(like: Tensor, draw: torch.Generator) -> Tensor:
    """Mark about half of the elements of `like` at random, but never all of a row (first dimension) or column."""
    removed = torch.rand(like.shape, generator=draw) < 0.5
    flat = removed.reshape(len(removed), -1) if like.dim() else removed.reshape(1, 1)
    rows, columns = flat.shape
    if columns > 1:
        flat[torch.arange(rows), torch.arange(rows) % columns] = False
    if rows > 1:
        flat[torch.arange(columns) % rows, torch.arange(columns)] = False
    return flat.reshape(like.shape).to(like.device)
