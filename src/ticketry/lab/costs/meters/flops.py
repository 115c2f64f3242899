"""Count the FLOPs of a training step, with and without the products with removed weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ticketry.core.mask import Mask
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import Need, callers_defaults, entry_point

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
"""Operations whose result is a copy of a weight: dtype conversion by autocast, changes of the memory layout."""


@dataclass(frozen=True)
class StepFlops:
    """Holds the FLOPs of a forward and a backward pass; a multiplication and an addition are two FLOPs.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> flops = tk.meters.step_flops(model, lambda: model(x).sum(), mask=tk.prune(model, density=0.25))
        >>> flops.dense, flops.sparse
        (96, 24.0)
    """

    dense: int
    """All FLOPs, including products with removed weights."""
    sparse: float
    """FLOPs without the products with removed weights."""


@dataclass(frozen=True)
class FlopsByWeight:
    """Holds the FLOPs of a forward and a backward pass, in total and for the products with each parameter.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.products
        {('weight',): 96.0}
        >>> found.left({"weight": 0.5})
        48.0
    """

    dense: int
    """All FLOPs, including products with removed weights."""
    products: Mapping[tuple[str, ...], float]
    """FLOPs of products, forward and backward, by the names of the parameters in the product; mostly one name."""

    def left(self, removed: Mapping[str, float]) -> float:
        """Return the FLOPs of the network, without the products with removed weights.

        Args:
            removed: for each parameter, the share of its weights that is removed.
        """
        gone = (flops * max(removed.get(name, 0.0) for name in names) for names, flops in self.products.items())
        return self.dense - sum(gone)


@entry_point(Need(values=False, python=False, training=True), autocast=True)
def step_flops(model: nn.Module, forward: Callable[[], Tensor], mask: Mask | None = None) -> StepFlops:
    """Return the FLOPs of ``forward().backward()``, for the dense network and for the network with a mask.

    `torch.utils.flop_counter` counts matrix products, convolutions and attention; recurrent layers are counted too.
    Elementwise operations and the optimiser's step are not counted. Products with a masked parameter count in
    proportion to the weights that the mask retains, in the forward pass, for the input's gradient and for the weight's
    gradient (Evci et al. 2020, RigL, appendix H). The call leaves gradients in the parameters.

    Args:
        model: the model, which has the parameters of the mask.
        forward: function that returns the loss of a batch, a scalar.
        mask: the mask; by default the network is dense.

    Raises:
        UsageError: if `mask` is not a mask.
        MaskError: if the mask does not fit the model.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> tk.meters.step_flops(model, lambda: model(x).sum()).dense  # 3 * 4 * 2 products, forward and backward
        96
    """
    parameters = mask.parameters(model) if mask is not None else {}
    with callers_defaults():
        found = flops_by_weight(parameters, forward)
    return StepFlops(found.dense, found.left(removed_shares(mask) if mask is not None else {}))


def removed_shares(mask: Mask) -> dict[str, float]:
    """Return, for each parameter of a mask, the share of weights that the mask removes."""
    return {name: 1 - int(kept.sum()) / max(kept.numel(), 1) for name, kept in mask.items()}


def flops_by_weight(parameters: Mapping[str, nn.Parameter], forward: Callable[[], Tensor]) -> FlopsByWeight:
    """Count the FLOPs of a forward and a backward pass, in total and for the products with each parameter.

    From the result, `FlopsByWeight.left` computes the FLOPs of the network with any mask.

    Args:
        parameters: parameters that may be masked, by name.
        forward: function that returns the loss of a batch, a scalar.

    Raises:
        UsageError: if no gradient reaches a parameter.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.dense, found.left({"weight": 0.75})
        (96, 24.0)
    """
    with _make_counter() as counter, _Products(parameters, counter.flop_registry) as products:
        loss = forward()
        if not loss.requires_grad:
            raise UsageError(
                "no gradient reaches a parameter from what forward() returns, so there is no backward pass to count:"
                " model.requires_grad_(True) trains frozen parameters, and forward() runs under torch.enable_grad()"
            )
        products.forward = False
        loss.backward()  # type: ignore[no-untyped-call]
    return FlopsByWeight(int(counter.get_total_flops()), dict(products.flops))


@torch.no_grad()
def forward_flops(parameters: Mapping[str, nn.Parameter], forward: Callable[[], object]) -> FlopsByWeight:
    """Return the FLOPs of a forward pass.

    `parameters` are the parameters that may be masked, by name; `forward` is a function that computes the forward pass.
    """
    with _make_counter() as counter, _Products(parameters, counter.flop_registry) as products:
        forward()
    return FlopsByWeight(int(counter.get_total_flops()), dict(products.flops))


def count_flops(work: Callable[[], object]) -> int:
    """Return the FLOPs of the matrix products, convolutions, attention and recurrent layers in a call of `work`."""
    with _make_counter() as counter:
        work()
    return int(counter.get_total_flops())


def _make_counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward_flops, **_RECURRENT}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward_flops(*shapes: Any, **_: Any) -> int:
    """Return the FLOPs of a convolution's backward pass; for grouped convolutions, torch 2.13 counts too many."""
    gradient, inputs, weight, *_rest = shapes
    transposed, asked = shapes[7], shapes[10]
    return 2 * int(prod(inputs if transposed else gradient) * prod(weight[1:])) * sum(map(bool, asked[:2]))


def _recurrent_flops(inputs: Any, *shapes: Any, **_: Any) -> int:
    """Return the FLOPs of a recurrent layer: a product with each weight matrix at every step of the sequence."""
    weights = shapes[0] if shapes and isinstance(shapes[0], list) else shapes[:4]
    return int(2 * prod(inputs[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2))


def _recurrent_backward_flops(*shapes: Any, **_: Any) -> int:
    return 2 * _recurrent_flops(*shapes)


_RECURRENT = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent_flops,
    torch.ops.aten.mkldnn_rnn_layer_backward: _recurrent_backward_flops,
    torch.ops.aten._cudnn_rnn: _recurrent_flops,
    torch.ops.aten._cudnn_rnn_backward: _recurrent_backward_flops,
}
"""Formulas for operations that compute a whole recurrent layer; on other devices torch uses single products."""


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, adds up the FLOPs of the products with each weight; weights are recognised by memory address."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], formulas: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._formulas = formulas
        self._ranges: dict[int, list[tuple[int, int, str, bool]]] = {}
        self._alive: list[Tensor] = []
        """Copies of weights, which must not be freed, since another tensor could then get their memory address."""
        self.forward = True
        self.flops: dict[tuple[str, ...], float] = defaultdict(float)
        for name, parameter in parameters.items():
            self._register_weight(parameter, name, parameter.requires_grad)

    def _register_weight(self, tensor: Tensor, name: str, trained: bool) -> None:
        start = int(tensor.storage_offset())
        self._ranges.setdefault(_memory_address(tensor), []).append((start, start + tensor.numel(), name, trained))

    def _find_weight(self, tensor: Tensor) -> tuple[str, bool] | None:
        """Return the name of the weight whose memory `tensor` uses, and whether the weight is trained; else None."""
        at = int(tensor.storage_offset())
        for start, stop, name, trained in self._ranges.get(_memory_address(tensor), []):
            if start <= at < stop:
                return name, trained
        return None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        seen = [(tensor, found) for tensor in _iterate_tensors(args) if (found := self._find_weight(tensor))]
        weights = [found for _, found in seen]
        if weights and func in _COPIES:
            self._register_weight(out, *weights[0])
            self._alive.append(out)
        packet = getattr(func, "_overloadpacket", None)
        if packet in _RECURRENT:
            rows = prod(args[0].shape[:-1]) * (1 if _RECURRENT[packet] is _recurrent_flops else 2)
            for tensor, (name, _) in seen:
                if tensor.dim() == 2:
                    self.flops[name,] += 2.0 * rows * tensor.numel()
        elif weights and packet in self._formulas:
            flops = self._formulas[packet](*args, **kwargs, out_val=out)
            # The backward pass of a convolution has the weight among its arguments and is counted there. The weight's
            # gradient of a matrix product is a product of two other tensors, with as many FLOPs.
            trained = any(trained for _, trained in weights)
            alone = self.forward and trained and torch.is_grad_enabled() and "conv" not in str(packet)
            self.flops[tuple(sorted({name for name, _ in weights}))] += flops * (2 if alone else 1)
        return out


def _iterate_tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
        elif isinstance(value, list | tuple):
            yield from _iterate_tensors(value)


def _memory_address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
