"""FLOPs of a training step, dense and as many as a mask leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""What makes of a weight another tensor with the same zeros: autocast's conversions, memory layouts."""


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a forward and a backward pass; a multiplication and an addition are two.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> flops = tk.meters.step_flops(model, lambda: model(x).sum(), mask=tk.prune(model, density=0.25))
        >>> flops.dense, flops.sparse
        (96, 24.0)
    """

    dense: int
    """As they are computed."""
    sparse: float
    """If those of removed weights took none."""


@dataclass(frozen=True)
class FlopsByWeight:
    """Floating-point operations of a forward and a backward pass, and which of them are products with which weights.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.products
        {('weight',): 96.0}
        >>> found.left({"weight": 0.5})
        48.0
    """

    dense: int
    """All, as they are computed."""
    products: Mapping[tuple[str, ...], float]
    """Of the products with these parameters, forward and backward; most often with one."""

    def left(self, removed: Mapping[str, float]) -> float:
        """If those of removed weights took none; `removed` has the share of each parameter that is removed."""
        gone = (flops * max(removed.get(name, 0.0) for name in names) for names, flops in self.products.items())
        return self.dense - sum(gone)


@entry_point(Need(values=False, python=False, training=True), autocast=True)
def step_flops(model: nn.Module, forward: Callable[[], Tensor], mask: Mask | None = None) -> StepFlops:
    """FLOPs of ``forward().backward()``.

    Counted by `torch.utils.flop_counter`: matrix products, convolutions and attention, and here those of recurrent
    layers; what is elementwise and the optimiser's step are not. Of the products with a weight that the mask touches,
    forward, for the input's gradient and for the weight's own, the share counts that the mask keeps: Evci et al. (2020,
    RigL), appendix H, there with twice the forward pass for every backward pass. Gradients are left in the parameters.

    Args:
        model: whose parameters the mask is of.
        forward: computes the loss of a batch, a scalar.
        mask: without one the network is dense.

    Raises:
        UsageError: for a mask that is none.
        MaskError: if the mask does not fit the model.

    Examples:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> tk.meters.step_flops(model, lambda: model(x).sum()).dense  # 3 * 4 * 2 products, forward and back
        96
    """
    parameters = mask.parameters(model) if mask is not None else {}
    with callers_defaults():
        found = flops_by_weight(parameters, forward)
    return StepFlops(found.dense, found.left(removed_shares(mask) if mask is not None else {}))


def removed_shares(mask: Mask) -> dict[str, float]:
    """The share of each parameter that a mask removes."""
    return {name: 1 - int(kept.sum()) / max(kept.numel(), 1) for name, kept in mask.items()}


def flops_by_weight(parameters: Mapping[str, nn.Parameter], forward: Callable[[], Tensor]) -> FlopsByWeight:
    """`step_flops` for any mask of these parameters: what is removed of one takes its share of the products with it.

    Args:
        parameters: name -> parameter, those that masks may be of.
        forward: computes the loss of a batch, a scalar.

    Raises:
        UsageError: if no gradient reaches a parameter.

    Examples:
        >>> layer, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> found = tk.meters.flops_by_weight({"weight": layer.weight}, lambda: layer(x).sum())
        >>> found.dense, found.left({"weight": 0.75})
        (96, 24.0)
    """
    with _counter() as counter, _Products(_Named.of_all(parameters), counter.flop_registry) as products:
        loss = forward()
        if not loss.requires_grad:
            raise UsageError(
                "no gradient reaches a parameter from what forward() returns, so there is no backward pass to count:"
                " model.requires_grad_(True) trains frozen parameters, and forward() runs under torch.enable_grad()"
            )
        products.forward = False
        loss.backward()  # type: ignore[no-untyped-call]
    return FlopsByWeight(int(counter.get_total_flops()), products.flops)


@torch.no_grad()
def forward_flops(parameters: Mapping[str, nn.Parameter], forward: Callable[[], object]) -> FlopsByWeight:
    """The same of a forward pass alone."""
    with _counter() as counter, _Products(_Named.of_all(parameters), counter.flop_registry) as products:
        forward()
    return FlopsByWeight(int(counter.get_total_flops()), products.flops)


def flops_of(work: Callable[[], object]) -> int:
    """FLOPs of whatever `work` does, as they are computed; counted as in `step_flops`."""
    with _counter() as counter:
        work()
    return int(counter.get_total_flops())


def _counter() -> FlopCounterMode:
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward, **_RECURRENT}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _convolution_backward(*shapes: Any, **_: Any) -> int:
    """FLOPs of the input's and the weight's gradient, as many as the forward pass takes for each.

    Torch's own formula counts the weight's once for every group (seen with torch 2.13).
    """
    gradient, inputs, weight, *_rest = shapes
    transposed, asked = shapes[7], shapes[10]
    return 2 * int(prod(inputs if transposed else gradient) * prod(weight[1:])) * sum(map(bool, asked[:2]))


def _recurrent(inputs: Any, *shapes: Any, **_: Any) -> int:
    """FLOPs of a recurrent layer or several: at every step of the sequence a product with each of its matrices."""
    return int(2 * prod(inputs[:-1]) * sum(prod(shape) for shape in _matrices(shapes)))


def _recurrent_backward(*shapes: Any, **_: Any) -> int:
    """Of the inputs' gradients and the matrices' own."""
    return 2 * _recurrent(*shapes)


def _matrices(shapes: Sequence[Any]) -> Sequence[Any]:
    """Shapes of the weights among a recurrent operation's arguments behind its input: a list, or the next four."""
    weights = shapes[0] if shapes and isinstance(shapes[0], list) else shapes[:4]
    return [shape for shape in weights if len(shape) == 2]


_RECURRENT = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten.mkldnn_rnn_layer_backward: _recurrent_backward,
    torch.ops.aten._cudnn_rnn: _recurrent,
    torch.ops.aten._cudnn_rnn_backward: _recurrent_backward,
}
"""Recurrent layers as one operation; elsewhere they come apart into products."""


class _Named:
    """Names of weights by the memory that a tensor looks at: itself, a view of it, or a copy that is made known."""

    def __init__(self) -> None:
        self._ranges: dict[int, list[tuple[int, int, str, bool]]] = {}

    @classmethod
    def of_all(cls, parameters: Mapping[str, nn.Parameter]) -> _Named:
        named = cls()
        for name, parameter in parameters.items():
            named.add(parameter, name, parameter.requires_grad)
        return named

    def add(self, tensor: Tensor, name: str, trained: bool) -> None:
        start = int(tensor.storage_offset())
        self._ranges.setdefault(_place(tensor), []).append((start, start + tensor.numel(), name, trained))

    def of(self, tensor: Tensor) -> tuple[str, bool] | None:
        """Name, and whether it is trained. Recurrent layers keep several weights in one piece of memory."""
        at = int(tensor.storage_offset())
        for start, stop, name, trained in self._ranges.get(_place(tensor), []):
            if start <= at < stop:
                return name, trained
        return None


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of products with weights; which product is with which weight is told by its memory."""

    def __init__(self, named: _Named, formulas: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._named, self._formulas = named, formulas
        self._alive: list[Tensor] = []
        """Copies of weights: freed, another tensor could come to lie in their memory."""
        self.forward = True
        self.flops: dict[tuple[str, ...], float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        seen = [(tensor, found) for tensor in _tensors(args) if (found := self._named.of(tensor))]
        weights = [found for _, found in seen]
        if weights and func in _COPIES:
            self._named.add(out, *weights[0])
            self._alive.append(out)
        packet = getattr(func, "_overloadpacket", None)
        if packet in _RECURRENT:
            rows = prod(args[0].shape[:-1]) * (1 if _RECURRENT[packet] is _recurrent else 2)
            for tensor, (name, _) in seen:
                if tensor.dim() == 2:
                    self._add((name,), 2.0 * rows * tensor.numel())
        elif weights and packet in self._formulas:
            flops = self._formulas[packet](*args, **kwargs, out_val=out)
            # The backward pass of a convolution has the weight among its arguments and is seen when it comes. Of a
            # matrix product the weight's gradient is one of two other tensors, of as many FLOPs.
            trained = any(trained for _, trained in weights)
            alone = self.forward and trained and torch.is_grad_enabled() and "conv" not in str(packet)
            self._add(tuple(sorted({name for name, _ in weights})), flops * (2 if alone else 1))
        return out

    def _add(self, names: tuple[str, ...], flops: float) -> None:
        self.flops[names] = self.flops.get(names, 0.0) + flops


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
