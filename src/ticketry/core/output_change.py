"""Estimate how far a model's outputs change if single weights are removed, from one call and its gradients.

Removing a weight w changes an output of its layer by w x, where x is the input that w multiplies. A quantity whose
gradient with respect to this output is g then changes by g w x. If gradients, inputs and positions are uncorrelated, as
K-FAC assumes (Martens & Grosse 2015; Grosse & Martens 2016), the expected squared change over examples is

    w^2 · E[x^2] · sum of g^2 over examples and positions

A single backward pass gives g for each example, whereas gradients of weights are sums over a batch. In a transposed
convolution, a weight meets each input position once, so the sum is scaled by the ratio of input to output positions.

`output_change` applies this to random combinations of the model's outputs. The mean squared change of a combination is
w^2 times the diagonal of the Gauss-Newton matrix (second order in the weights, like the saliency of LeCun et al. 1990).
It needs neither a loss nor targets, and is comparable between layers. The score `kfac` uses the loss instead.

Supported are linear layers, convolutions, and other products by torch's `linear` or `matmul` with a weight, some of its
rows or its transpose, as in attention, or in a last layer that shares its weight with an embedding. Weights that are
used otherwise are estimated from their own gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ticketry.core.model_calls import COUNTED_LAYERS, call_in_evaluation, without_parameter_gradients
from ticketry.core.scope import Scope
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point
from ticketry_engine.support.seeds import generator

_ENOUGH_EXAMPLES = 8
"""Number of examples from which on a single random combination of the outputs suffices for an estimate."""

_DRAWS = 16
"""Number of random combinations of the outputs for weights that are estimated from their own gradients."""


class LayerCall:
    """Records a call of a layer: the mean squared input of each channel, and the squared gradients of the outputs."""

    def __init__(
        self,
        x: Tensor,
        output: Tensor,
        *,
        axes: int = 2,
        groups: int = 1,
        first_row: int = 0,
        is_layer: bool = True,
        transposed: bool = False,
    ) -> None:
        """Record a call that multiplies `x` by a weight.

        Args:
            axes: number of dimensions of the weight: 2 for a linear layer, 4 for a 2-d convolution.
            groups: number of groups of a grouped convolution.
            first_row: index of the first row of the weight that is used, if the call uses only some rows.
            is_layer: whether a module is called; then the first axis of `x` indexes examples.
            transposed: whether the first axis of the weight indexes inputs.
        """
        self._groups, self._first_row = groups, first_row
        self._channel = 1 - axes  # counted from the end, where convolutions have places: examples need not be stacked
        self._inputs = _sum_squares_by_channel(x.detach(), self._channel, mean=True)
        self._transposed = transposed
        if transposed:
            self._inputs *= _count_positions(x, self._channel) / max(1, _count_positions(output, self._channel))
        self.examples = 0 if not is_layer else len(x) if x.dim() >= axes else 1
        """Number of examples in the call; 0 if unknown."""
        self.output_shift = torch.zeros_like(output, requires_grad=True)
        """Zeros to be added to the output; the gradient with respect to them is the gradient of the output."""
        self.squared_gradients: Tensor | None = None
        """float64 [output channels]: squared gradients summed over examples and positions; None before any gradient."""

    def add_gradient(self, gradient: Tensor, share: float = 1.0) -> None:
        """Add the squares of `gradient` (with respect to the output), times `share`, to `squared_gradients`."""
        squares = share * _sum_squares_by_channel(gradient, self._channel, mean=False)
        self.squared_gradients = squares if self.squared_gradients is None else self.squared_gradients + squares

    def add_factors_to(self, factors: Tensor) -> None:
        """Add E[x^2] * sum of g^2 of this call to `factors`, by which the squared weights are to be multiplied.

        Args:
            factors: float64 [output channels, input channels of a group]; for transposed layers, the axes are swapped.
        """
        if self.squared_gradients is None:
            return
        inputs = self._inputs if bool(self._inputs.any()) else torch.ones_like(self._inputs)  # an example of zeros
        found = self.squared_gradients.view(self._groups, -1, 1) * inputs.view(self._groups, 1, -1)
        found = (found.transpose(1, 2) if self._transposed else found).flatten(0, 1)
        factors[self._first_row : self._first_row + len(found)] += found


@contextmanager
def record_calls(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], others: set[str]
) -> Iterator[dict[str, list[LayerCall]]]:
    """Within the block, record the calls of the layers that use these weights, as a list for each weight.

    A weight that is not used gets an empty list. The names of weights that unsupported functions use are added to
    `others`.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    calls: dict[str, list[LayerCall]] = {name: [] for name in parameters}
    inside = set[str]()

    def record_layer_call(
        name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor
    ) -> Tensor:
        inside.discard(name)
        axes, groups = module.get_parameter("weight").dim(), int(getattr(module, "groups", 1))
        x = args[0] if args else named["input"]
        calls[name].append(
            LayerCall(x, output, axes=axes, groups=groups, transposed=getattr(module, "transposed", False))
        )
        return output + calls[name][-1].output_shift

    with ExitStack() as stack:
        for module in model.modules():
            name = names.get(id(module._parameters.get("weight")))
            if name is not None and isinstance(module, COUNTED_LAYERS):
                stack.callback(module.register_forward_pre_hook(lambda *_, name=name: inside.add(name)).remove)
                stack.callback(module.register_forward_hook(partial(record_layer_call, name), with_kwargs=True).remove)
        products = stack.enter_context(_ProductRecorder(names, calls, inside, others))
        stack.callback(model.register_forward_pre_hook(products.start_model_call).remove)
        stack.callback(model.register_forward_hook(products.end_model_call, always_call=True).remove)
        yield calls


class _ProductRecorder(TorchFunctionMode):
    """A torch function mode that records products with a weight that are computed outside of the weight's layer.

    A factor of the product is the whole weight, some of its rows, or its transpose.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        calls: Mapping[str, list[LayerCall]],
        inside: Set[str],
        others: set[str],
    ) -> None:
        super().__init__()
        self._names, self._calls, self._inside, self._others = names, calls, inside, others
        self._depth = 0

    def start_model_call(self, model: nn.Module, args: object) -> None:
        """Start to check how weights are used; uses outside of the model's call, as in a loss, are not checked."""
        self._depth += 1

    def end_model_call(self, model: nn.Module, args: object, output: object) -> None:
        self._depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:  # to see the products inside
                return _attention(*args, **kwargs)
        output = func(*args, **kwargs)
        if func is F.linear:
            x: Tensor = args[0] if args else kwargs["input"]
            weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
            name, first, transposed = self._find_rows(weight)
            if name:
                return output if name in self._inside else self._record_product(name, x, output, first, transposed)
        if (right := _matrix_product_factors(func, args, kwargs)) is not None:
            x, factor = right
            name, first, transposed = self._find_rows(factor.t()) if factor.dim() == 2 else ("", 0, False)
            if name and name not in self._inside:
                return self._record_product(name, x, output, first, transposed)
        if self._depth and torch.is_grad_enabled() and func not in _HARMLESS:
            self._collect_other_uses((args, kwargs), output)
        return output

    def _record_product(self, name: str, x: Tensor, output: Tensor, first_row: int, transposed: bool) -> Tensor:
        call = LayerCall(x, output, first_row=first_row, is_layer=False, transposed=transposed)
        self._calls[name].append(call)
        return output + call.output_shift

    def _find_rows(self, weight: Tensor) -> tuple[str, int, bool]:
        """Find the parameter of which the tensor `weight` is a range of rows, or the transpose.

        The result is (name of the parameter, index of the first row, whether the tensor is the transpose), or ("", 0,
        False) for any other tensor.
        """
        whole = weight if weight._base is None else weight._base
        name = self._names.get(id(whole), "")
        if not name or whole.dim() != 2 or weight.dim() != 2:
            return "", 0, False
        if weight.stride() == whole.stride() and weight.shape[1] == whole.shape[1]:
            return name, (weight.storage_offset() - whole.storage_offset()) // max(1, whole.stride(0)), False
        if weight.stride() == whole.stride()[::-1] and weight.shape == whole.shape[::-1]:
            return name, 0, True
        return "", 0, False

    def _collect_other_uses(self, arguments: object, output: object) -> None:
        """Add the name of each weight from which an operation computes floats, other than a view of the weight."""
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for leaf in tree_leaves(arguments) if made else ():
            if not isinstance(leaf, Tensor):
                continue
            whole = leaf if leaf._base is None else leaf._base
            name = self._names.get(id(whole), "")
            if name and name not in self._inside and not all(each is whole or each._base is whole for each in made):
                self._others.add(name)


def _matrix_product_factors(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """Return (left factor, right factor) of a matrix product without further options; None for other operations."""
    if kwargs or func not in _MATRIX_PRODUCTS or len(args) != 2 + _MATRIX_PRODUCTS[func]:
        return None
    x, factor = args[_MATRIX_PRODUCTS[func] :]
    return (x, factor) if isinstance(x, Tensor) and isinstance(factor, Tensor) and x.dim() > 1 else None


_MATRIX_PRODUCTS: dict[Any, int] = {
    **dict.fromkeys((torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), 0),
    **dict.fromkeys((torch.addmm, Tensor.addmm), 1),
}
"""Function that computes a matrix product -> position of the left factor among the arguments."""

_HARMLESS = frozenset(
    (
        *(F.embedding, torch.embedding, F.embedding_bag, torch.embedding_bag, Tensor.detach),
        Tensor.data.__get__,  # type: ignore[attr-defined]
    )
)
"""Functions that use a weight without multiplying by it: embedding lookups, and copies without gradient."""

_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""torch's attention function, changed so that the products inside are seen by torch function modes."""


def add_output_gradients(
    value: Tensor, calls: Mapping[str, list[LayerCall]], share: float = 1.0, *, again: bool = False
) -> None:
    """Add to each of the `calls` the squared gradient of the scalar `value` with respect to the output of the call.

    The squares are multiplied by `share`. With `again`, further gradients of the same forward pass can be computed.
    """
    every = [call for made in calls.values() for call in made]
    gradients = torch.autograd.grad(value, [call.output_shift for call in every], retain_graph=again, allow_unused=True)
    for call, gradient in zip(every, gradients, strict=True):
        if gradient is not None:
            call.add_gradient(gradient, share)


def squared_output_change(weight: Tensor, calls: list[LayerCall]) -> Tensor:
    """Return, for each weight, the squared change of the outputs if the weight is removed, as float64.

    `calls` are the recorded calls of the layer, with inputs and squared gradients of outputs.
    """
    factors = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for call in calls:
        call.add_factors_to(factors)
    squared = weight.detach().cpu().double().square()
    return squared.mul_(factors.view(*factors.shape, *[1] * (weight.dim() - 2)))


def _count_positions(values: Tensor, channel: int) -> int:
    return values.numel() // max(1, values.shape[channel])


def _sum_squares_by_channel(values: Tensor, channel: int, *, mean: bool) -> Tensor:
    """Return, for each channel, the sum or (with `mean`) mean of the squares of `values`: float64 [channels] on CPU."""
    others = [axis for axis in range(-values.dim(), 0) if axis != channel]
    if not values.numel():  # an expert that received no example
        return torch.zeros(values.shape[channel], dtype=torch.float64)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    largest = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)  # squares of small numbers underflow
    norms = torch.linalg.vector_norm(values / largest, dim=others) if others else values / largest
    found = (norms.double() * largest.double()).square()
    return (found / _count_positions(values, channel) if mean else found).cpu()


# -- the change of outputs ---------------------------------------------------------------------------------------------


@entry_point(CHANGES)
def output_change(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, Tensor]:
    """Return, for each weight, the relative squared change of the model's outputs if the weight is removed.

    The result maps parameter names to float64 tensors. The model is called in evaluation mode, followed by one or two
    backward passes; `model` is unchanged afterwards. All float tensors that the model returns count equally. Memory is
    needed for gradients of activations, not of weights.

    Weights that are not a factor of a product (in recurrent layers, embeddings, scales, computed weights, an einsum)
    are estimated in a separate call from their own gradients, with more variance.
    """
    parameters = scope.parameters(model)
    others: set[str] = set()
    with without_parameter_gradients(model), record_calls(model, parameters, others) as calls:
        outputs = call_in_evaluation(model, example_inputs, gradients=True)
        others |= {name for name, made in calls.items() if not made}
        known = {name: made for name, made in calls.items() if name not in others}
        if known:
            differentiable = _select_differentiable(outputs)
            examples = max((call.examples for made in known.values() for call in made), default=1)
            draws = (2 if examples < _ENOUGH_EXAMPLES else 1) if differentiable else 0
            for draw in range(draws):
                combined = _random_combination(differentiable, draw)
                add_output_gradients(combined, known, 1 / draws, again=draw + 1 < draws)
            _refuse_parameters_without_gradient(
                [name for name, made in known.items() if all(call.squared_gradients is None for call in made)]
            )
    found = {name: squared_output_change(parameters[name], made) for name, made in known.items()}
    if others:
        rest = {name: parameter for name, parameter in parameters.items() if name in others}
        found |= _estimate_from_weight_gradients(model, rest, example_inputs)
    return {name: found[name] for name in parameters}


def _estimate_from_weight_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], example_inputs: Any
) -> dict[str, Tensor]:
    """Return squared weights times the mean squared gradient of random combinations of the outputs."""
    total = {name: torch.zeros(parameter.shape, dtype=torch.float64) for name, parameter in parameters.items()}
    reached: set[str] = set()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(without_parameter_gradients(model))
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # no gradients of LSTMs in evaluation mode
        for parameter in parameters.values():
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        outputs = _select_differentiable(call_in_evaluation(model, example_inputs, gradients=True))
        for draw in range(_DRAWS if outputs else 0):
            combined, again = _random_combination(outputs, draw), draw + 1 < _DRAWS
            gradients = torch.autograd.grad(combined, list(parameters.values()), retain_graph=again, allow_unused=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    whole = gradient.to_dense() if gradient.is_sparse else gradient
                    total[name] += whole.detach().cpu().double().square() / _DRAWS
                    reached.add(name)
    _refuse_parameters_without_gradient([name for name in parameters if name not in reached])
    return {name: total[name] * parameter.detach().cpu().double().square() for name, parameter in parameters.items()}


def _select_differentiable(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]


def _random_combination(outputs: Sequence[Tensor], draw: int) -> Tensor:
    """Return a random linear combination of all outputs, each scaled to unit norm; `draw` selects the coefficients."""
    combined = torch.zeros(())
    for index, output in enumerate(outputs):
        drawn = torch.randn(output.shape, generator=generator(0, "output change", draw, index)).to(output)
        size = output.detach().double().norm().clamp_min(1e-300)
        combined = combined + ((output * drawn).double().sum() / size).cpu()
    return combined


def _refuse_parameters_without_gradient(names: Sequence[str]) -> None:
    """Raise `UsageError` if `names` is not empty: the names of parameters without a gradient from any output."""
    if names:
        raise UsageError(
            f"what {', '.join(names)} does to the model's outputs is not known: no gradient reaches any from there;"
            " spare it in the scope, or give a score (score=)"
        )


_MAGNITUDE_SHARE = 1e-6
"""Sum of the numbers that `add_small_magnitudes` adds to a layer's scores, as a share of the sum of these scores.

A layer's sum of scores counts as at least this share of the largest layer's sum.
"""


def add_small_magnitudes(scores: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add a small multiple of the squared weights to the scores, and return the sums in float64.

    Weights with score 0, such as those of a branch whose last norm starts at 0, are then ranked by magnitude, after all
    other weights. Without this, they would be removed although the budget could retain them.
    """
    sums = {name: float(score.double().sum()) for name, score in scores.items()}
    largest = max(sums.values(), default=0.0)
    found = {}
    for name, score in scores.items():
        squared = parameters[name].detach().double().square().to(score.device)
        whole = float(squared.sum())
        trace = _MAGNITUDE_SHARE * max(sums[name], _MAGNITUDE_SHARE * largest) / whole if whole > 0 else 0.0
        found[name] = squared.mul_(trace).add_(score)
    return found
