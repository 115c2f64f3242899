"""Scopes: the parameters that a mask may prune."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from math import prod
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from ticketry.choices import did_you_mean, format_names, names_with_parent_modules, require_name
from ticketry.core import argument_checks as argument_checks
from ticketry.core.computed_weights import computed_weights
from ticketry.errors import ScopeError, UsageError
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS, BY_NAME, Need, check_model, entry_point, is_quantised
from ticketry_engine.support.modules import name_without_wrappers as name_without_wrappers
from ticketry_engine.support.modules import require_model
from ticketry_engine.support.modules import unwrapped as unwrapped

_WEIGHTED = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_OUTPUTS = (nn.Linear, nn.Bilinear, _ConvNd)
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

_WARNED_SHARE = 0.01
"""A warning is given if stacked weights of unknown layers have at least this share of the model's parameters."""

Patterns = str | nn.Module | Iterable[str | nn.Module]
"""Names or name patterns of parameters and modules, or modules themselves."""

MOST_NAMES = 20
"""Largest number of names that an error message lists."""


@dataclass(frozen=True)
class Scope:
    """The parameters of a model that may be pruned: their normalised names and shapes, in the model's order.

    A parameter that several modules share (tied weights) is contained once, under its first name. The total number of
    elements, `total`, is the denominator of every density.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scope = tk.scope(model)
        >>> scope.names, scope.total, scope.parameters_total
        (('0.weight', '2.weight'), 48, 58)
        >>> scope.sizes
        {'0.weight': 32, '2.weight': 16}
        >>> "0.bias" in scope, scope.parameters(model)["2.weight"] is model[2].weight
        (False, True)
    """

    shapes: Mapping[str, tuple[int, ...]]
    """Shape of each parameter in scope, by name."""
    parameters_total: int
    """Number of elements of all parameters of the model, whether in scope or not."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shapes)

    @property
    def total(self) -> int:
        """Number of elements in scope, which is the denominator of a density."""
        return sum(self.sizes.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Number of elements of each parameter in scope, by name."""
        return {name: prod(shape) for name, shape in self.shapes.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    @entry_point(BY_NAME)
    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of `model` that are in scope, by name.

        Raises:
            ScopeError: if the model lacks a parameter in scope, or has it with another shape.
        """
        return matching_parameters(model, self.shapes)


@entry_point(BY_NAME)
def scope(
    model: nn.Module,
    *,
    spare: Patterns = (),
    include: Patterns = (),
    first_conv: bool = True,
    output: bool = True,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = False,
    types: tuple[type[nn.Module], ...] = (),
) -> Scope:
    """Return the parameters of `model` that a mask may prune.

    By default these are the weights of linear, convolution, recurrent and attention layers, without biases, norms and
    embeddings. A matrix that an embedding shares with a linear layer (tied weights) is in scope, once. If a layer
    computes its weight from parameters (weight_norm, spectral_norm, a custom parametrisation), the scope contains the
    parameter whose zeros make the weight zero. If there is no such parameter (orthogonal), spare the layer.

    A warning names stacked weights, such as a mixture of experts, that are neither in scope nor in `spare`.

    Args:
        model: any module.
        spare: names, patterns (``fc*``, ``*.downsample.*``) or modules to leave out. A module stands for all its
            parameters, including parameters that it shares with other modules.
        include: names, patterns or modules to add, of any kind of layer.
        first_conv: whether the first convolution (in the order of definition) is in scope.
        output: whether the last linear or convolution layer (in the order of definition) is in scope.
        biases, norms, embeddings: whether biases, norms and embeddings are in scope too.
        types: further module classes whose weights (parameters of two or more dimensions) are in scope.

    Raises:
        ScopeError: if a pattern matches nothing, if nothing is left in scope, or if a computed weight has no parameter
            whose zeros make the weight zero.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
        >>> tk.scope(model).names
        ('0.weight', '3.weight', '4.weight')
        >>> tk.scope(model, first_conv=False, spare=["4"]).names
        ('3.weight',)
        >>> tk.scope(model, biases=True, norms=True).total
        286
        >>> tk.scope(model, spare=["fc*"])
        Traceback (most recent call last):
            ...
        ticketry.errors.ScopeError: spare='fc*' matches no parameter; they are 0.weight, 0.bias, 1.weight, ...
    """
    spare, include = to_name_tuple(spare), to_name_tuple(include)
    owners = _find_parameters(model)
    spared = _find_spared(model, owners, spare, first_conv=first_conv, output=output)
    included = set(_match_patterns(owners, include, "include"))
    by_type = _select_by_layer_type(owners, biases=biases, norms=norms, embeddings=embeddings, types=types)
    selected = (by_type | included) - spared
    selected -= _find_computed_weight_names_to_exclude(model, owners, selected, included)
    shapes = {name: tuple(owner.parameter.shape) for name, owner in owners.items() if name in selected}
    if not shapes:
        if quantised := [name for name, module in model.named_modules() if is_quantised(module)]:
            raise ScopeError(
                f"{quantised[0]!r} of {type(model).__name__} is a quantised layer, whose weight is no parameter: prune"
                " before the model is quantised"
            )
        advice = "name others with include= or types="
        try:
            check_model(model, Need(values=False, floats=False))
        except UsageError as error:
            advice = str(error)
        raise ScopeError(
            f"no parameter of {type(model).__name__} is in scope: it has {len(owners)} parameters, none of them the"
            f" weight of a linear, convolution, recurrent or attention layer; {advice}"
        )
    for name in shapes:
        if not (owners[name].parameter.is_floating_point() or owners[name].parameter.is_complex()):
            raise ScopeError(
                f"{name!r} of {type(model).__name__} holds {owners[name].parameter.dtype}, as quantised weights do,"
                " which cannot be pruned: prune before the model is quantised, or leave it out with spare="
            )
    _warn_of_unselected_stacked_matrices(model, owners, shapes, spared)
    return Scope(shapes, sum(owner.parameter.numel() for owner in owners.values()))


def _warn_of_unselected_stacked_matrices(
    model: nn.Module, owners: Mapping[str, _FoundParameter], selected: Collection[str], spared: Collection[str]
) -> None:
    """Warn about stacked matrices, such as those of a mixture of experts, that are out of scope.

    These are parameters with three or more dimensions in layers of unknown types. The warning is given if they have at
    least 1 % of the model's weights.
    """
    known = (*_WEIGHTED, *NORMS, *EMBEDDINGS)
    sizes = {
        name: owner.parameter.numel()
        for name, owner in owners.items()
        if name not in selected
        and name not in spared
        and sum(size > 1 for size in owner.parameter.shape) > 2
        and not any(isinstance(place.module, known) or is_transposed_linear(place.module) for place in owner.places)
    }
    total = sum(owner.parameter.numel() for owner in owners.values())
    if total and sum(sizes.values()) >= _WARNED_SHARE * total:
        shapes = ", ".join(f"{name} {list(owners[name].parameter.shape)}" for name in list(sizes)[:3])
        warnings.warn(
            f"{sum(sizes.values()) / total:.0%} of the parameters of {type(model).__name__} are out of scope: {shapes}"
            f"{', …' if len(sizes) > 3 else ''}. Such stacked weights, as of a mixture of experts, are of no layer that"
            " the scope knows, and stay dense: name them in include= to prune them, or in spare= to leave them out",
            stacklevel=4,
        )


def filter_by_scope_options(
    model: nn.Module, names: Iterable[str], *, spare: Patterns = (), first_conv: bool = True, output: bool = True
) -> set[str]:
    """Return the `names` that the options `spare`, `first_conv` and `output` of `scope` do not leave out."""
    return set(names) - _find_spared(
        model, _find_parameters(model), to_name_tuple(spare), first_conv=first_conv, output=output
    )


def filter_default_scope(model: nn.Module, names: Iterable[str]) -> set[str]:
    """Return the `names` of parameters that are in the default scope of `model`."""
    owners = _find_parameters(model)
    selected = _select_by_layer_type(owners) & set(names)
    return selected - _find_computed_weight_names_to_exclude(model, owners, selected, set())


def scope_of_shapes(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> Scope:
    """Return the scope that contains exactly the parameters named in `shapes`, such as those of a mask."""
    return Scope(shapes, sum(parameter.numel() for parameter in named_parameters(model).values()))


def _check_scope(value: object, name: str, model: object) -> object:
    if not isinstance(value, Scope):
        raise UsageError(
            f"{name}= is a tk.Scope, not a {type(value).__name__}: tk.scope(model, include=[...]) makes one"
        )
    return value


def to_name_tuple(patterns: Patterns) -> tuple[str, ...]:
    """Return names and patterns as a tuple; a single text counts as one pattern."""
    return (patterns,) if isinstance(patterns, str) else tuple(cast("Iterable[str]", patterns))


def _check_patterns(value: object, argument: str, model: nn.Module | None) -> tuple[str, ...]:
    """Return names and patterns as a tuple, in which modules are replaced by their names."""
    single = isinstance(value, (str, nn.Module, Tensor)) or not isinstance(value, Iterable)
    found: list[str] = []
    for one in [value] if single else list(value):  # type: ignore[call-overload]
        if isinstance(one, nn.Module) and model is not None:
            name = next((name for name, module in unwrapped(model).named_modules() if module is one), None)
            if name is None:
                raise UsageError(
                    f"{argument}= holds a {type(one).__name__} that is no module of {type(model).__name__}: give"
                    " modules of this very model, or their names"
                )
            found.append(escape(name_without_wrappers(name)) or "*")  # as a pattern, it matches only this module
        else:
            found.append(require_name(one, f"{argument}=", UsageError))
    return tuple(found)


def _check_types(value: object, argument: str, model: object) -> tuple[type[nn.Module], ...]:
    types = tuple(value) if isinstance(value, Iterable) and not isinstance(value, type) else (value,)
    for one in types:
        if not (isinstance(one, type) and issubclass(one, nn.Module)):
            raise UsageError(f"{argument}= is a tuple of module classes, such as (nn.Linear,), and holds {one!r:.60}")
    return types


for _argument in ("spare", "include", "half_rate"):
    ARGUMENT_CHECKS[_argument] = _check_patterns
for _argument in ("types", "bypass"):
    ARGUMENT_CHECKS[_argument] = _check_types
ARGUMENT_CHECKS["scope"] = _check_scope


def match_spared_parameters(model: nn.Module, spare: Patterns) -> set[str]:
    """Return the names of the parameters that the patterns `spare` match, see `scope`."""
    return set(_match_patterns(_find_parameters(model), to_name_tuple(spare), "spare"))


def match_half_rate_names(names: Iterable[str], half_rate: Iterable[str]) -> tuple[str, ...]:
    """Return the `names` that match a pattern in `half_rate`, in the order of `names`; for patterns see `scope`."""
    known, found = list(names), set[str]()
    for pattern in (half_rate,) if isinstance(half_rate, str) else half_rate:
        wanted = require_name(pattern, "half_rate=", UsageError).rstrip(".")
        named = {name for name in known if name == pattern or _pattern_matches_name(wanted, name)}
        if not named:
            raise UsageError(
                f"half_rate names {pattern!r}, which is no parameter that is pruned, nor a layer of one: they are"
                f" {_list_names(known)}; {did_you_mean(pattern, names_with_parent_modules(known))}".rstrip("; ")
            )
        found |= named
    return tuple(name for name in known if name in found)


def first_and_last_layer_parameters(model: nn.Module) -> tuple[set[str], set[str]]:
    """Return the parameter names of the first convolution, and those of the last linear or convolution layer."""
    owners = _find_parameters(model)
    convolutions = [module for module in model.modules() if isinstance(module, _ConvNd)]
    outputs = [module for module in model.modules() if isinstance(module, _OUTPUTS)]
    first, last = (
        {name for name, owner in owners.items() if any(place.module in layer for place in owner.places)}
        for layer in (convolutions[:1], outputs[-1:])
    )
    return first, last


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return all parameters by normalised name; a shared parameter is contained once, under its first name."""
    require_model(model)
    return {name: owner.parameter for name, owner in _find_parameters(model).items()}


def first_names_of_tied(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[str, str]:
    """Return, for each name, the first name of the same parameter in `model`; only tied weights have several names."""
    first = {id(parameter): name for name, parameter in named_parameters(model).items()}
    return {name: first[id(parameter)] for name, parameter in parameters.items()}


def matching_parameters(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` with exactly these names and shapes, by name."""
    everything = named_parameters(model)
    if any(name not in everything for name in shapes):  # a tied parameter under another of its names
        everything |= {
            name_without_wrappers(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)
        }
    for name, shape in shapes.items():
        if name not in everything:
            raise ScopeError(
                f"{type(model).__name__} has no parameter {name!r}; {did_you_mean(str(name), everything)}its parameters"
                f" are {format_names(everything)}"
            )
        if tuple(everything[name].shape) != tuple(shape):
            raise ScopeError(
                f"{name!r} has the shape {tuple(everything[name].shape)} in {type(model).__name__}, not {tuple(shape)}:"
                " this was made for another model"
            )
    return {name: everything[name] for name in shapes}


def is_transposed_linear(module: nn.Module) -> bool:
    """Return whether a module is the Conv1D of transformers: a linear layer whose weight is [inputs, outputs]."""
    outputs = getattr(module, "nf", None)
    if type(module).__name__ != "Conv1D" or not isinstance(outputs, int):
        return False
    weight = module._parameters.get("weight")
    return weight is None or tuple(weight.shape[1:]) == (outputs,)


class _ParameterLocation(NamedTuple):
    """A module attribute that contains a parameter, or a weight computed from a parameter."""

    module: nn.Module
    local: str
    """Name of the attribute."""
    dimensions: int
    """Number of dimensions of the parameter."""


@dataclass(frozen=True)
class _FoundParameter:
    """A parameter of a model, with all its normalised names and the modules that use it."""

    parameter: nn.Parameter
    names: tuple[str, ...]
    places: tuple[_ParameterLocation, ...]


def _select_by_layer_type(
    owners: Mapping[str, _FoundParameter],
    *,
    biases: bool = False,
    norms: bool = False,
    embeddings: bool = False,
    types: tuple[type[nn.Module], ...] = (),
) -> set[str]:
    """Return the names of the parameters that are in scope because of the type of their layer."""

    def is_in_scope(place: _ParameterLocation) -> bool:
        if isinstance(place.module, NORMS):
            return norms
        if isinstance(place.module, EMBEDDINGS):
            return embeddings
        if not (isinstance(place.module, (*_WEIGHTED, *types)) or is_transposed_linear(place.module)):
            return False
        return biases if "bias" in place.local else place.dimensions >= 2

    return {name for name, owner in owners.items() if any(map(is_in_scope, owner.places))}


def _find_parameters(model: nn.Module) -> dict[str, _FoundParameter]:
    """Return all parameters of a model, with the modules that use each, by normalised first name."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, UninitializedParameter):
            raise ScopeError(f"{name!r} of {type(model).__name__} has no shape yet (a lazy layer): call the model once")
        names.setdefault(id(parameter), []).append(name_without_wrappers(name))
    places: dict[int, list[_ParameterLocation]] = {}
    for module in model.modules():
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(id(parameter), []).append(_ParameterLocation(module, local, parameter.dim()))
    for computed in computed_weights(model):  # as if the layer held the original under the name of the weight
        dimensions = max(original.dim() for original in computed.originals)
        for original in computed.originals:
            elsewhere = [one for one in places[id(original)] if one.module not in (computed.rule, computed.module)]
            places[id(original)] = [*elsewhere, _ParameterLocation(computed.module, computed.local, dimensions)]
    owners: dict[str, _FoundParameter] = {}
    for name, parameter in model.named_parameters():
        short = name_without_wrappers(name)
        if short in owners:
            raise ScopeError(f"two parameters of {type(model).__name__} are called {short!r} once wrappers are removed")
        owners[short] = _FoundParameter(parameter, tuple(names[id(parameter)]), tuple(places[id(parameter)]))
    return owners


def _find_computed_weight_names_to_exclude(
    model: nn.Module, owners: Mapping[str, _FoundParameter], selected: set[str], included: set[str]
) -> set[str]:
    """Return the names in `selected` to leave out, since a weight computed from several parameters is pruned by one.

    This is the first parameter whose zeros make the weight 0 at the same positions (v, not g, of weight_norm). If a
    parameter in `included` is used for a weight, the weight's other parameters are left out. Raise `ScopeError` if
    there is no suitable parameter.
    """
    names = {id(owner.parameter): name for name, owner in owners.items()}
    layers = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
    ineffective: set[str] = set()
    refused: list[str] = []
    advice: dict[str, None] = {}
    for computed in computed_weights(model):
        candidates = {names[id(one)]: place for place, one in enumerate(computed.originals)}
        candidates = {name: place for name, place in candidates.items() if name in selected - included}
        if not candidates or included & {names[id(one)] for one in computed.originals}:
            ineffective |= candidates.keys()
            continue
        effective = next((name for name, place in candidates.items() if computed.preserves_zeros(place)), None)
        ineffective |= candidates.keys() - {effective}
        if effective is None:
            refused.append(f"{computed.local!r} of {layers[id(computed.module)]!r} ({computed.kind})")
            advice |= {computed.advice: None}
    if refused:
        raise ScopeError(
            f"no weight can be removed from {', '.join(refused)}: it is computed from parameters whose zeros are not"
            f" its zeros; leave such layers out (spare=), or {'; '.join(advice)}"
        )
    return ineffective


def _find_spared(
    model: nn.Module, owners: Mapping[str, _FoundParameter], spare: Iterable[str], *, first_conv: bool, output: bool
) -> set[str]:
    spared = set(_match_patterns(owners, spare, "spare"))
    if not (first_conv and output):
        first, last = first_and_last_layer_parameters(model)
        spared |= (set() if first_conv else first) | (set() if output else last)
    return spared


def _match_patterns(owners: Mapping[str, _FoundParameter], patterns: Iterable[str], argument: str) -> Iterator[str]:
    for pattern in (patterns,) if isinstance(patterns, str) else patterns:
        wanted = require_name(pattern, f"{argument}=", UsageError).rstrip(".")
        found = [
            name for name, owner in owners.items() if any(_pattern_matches_name(wanted, one) for one in owner.names)
        ]
        if not found:
            raise ScopeError(
                f"{argument}={pattern!r} matches no parameter;"
                f" {did_you_mean(wanted, names_with_parent_modules(owners))}they are {_list_names(list(owners))}"
            )
        yield from found


def _list_names(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _pattern_matches_name(pattern: str, name: str) -> bool:
    """Return whether `pattern` matches the parameter name `name`, or the name of a module around the parameter."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:length]), pattern) for length in range(1, len(parts) + 1))
