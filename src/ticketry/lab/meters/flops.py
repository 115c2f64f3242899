"""FLOPs of a training step, dense and as many as a mask leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ticketry.core.mask import Mask

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)
"""What makes of a weight another tensor with the same zeros: autocast's conversions, memory layouts."""


@dataclass(frozen=True)
class StepFlops:
    """Floating-point operations of a forward and a backward pass; a multiplication and an addition are two."""

    dense: int
    """As they are computed."""
    sparse: float
    """If those of removed weights took none."""


def step_flops(model: nn.Module, forward: Callable[[], Tensor], mask: Mask | None = None) -> StepFlops:
    """FLOPs of ``forward().backward()``.

    Counted by `torch.utils.flop_counter`: matrix products, convolutions and attention; what is elementwise, the
    optimiser's step and recurrent layers are not. Of the products with a weight that the mask touches, forward, for the
    input's gradient and for the weight's own, the share counts that the mask keeps: Evci et al. (2020, RigL), appendix
    H, there with twice the forward pass for every backward pass. Gradients are left in the parameters.

    Args:
        model: whose parameters the mask is of.
        forward: computes the loss of a batch, a scalar.
        mask: without one the network is dense.
    """
    parameters = mask.parameters(model) if mask is not None else {}
    removed = {
        _place(parameter): (1 - int(mask[name].sum()) / max(mask[name].numel(), 1), parameter.requires_grad)
        for name, parameter in parameters.items()
        if mask is not None
    }
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    with (
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
        _Removed(removed, counter.flop_registry) as saved,
    ):
        loss = forward()
        saved.forward = False
        loss.backward()  # type: ignore[no-untyped-call]
    dense = int(counter.get_total_flops())
    return StepFlops(dense, dense - saved.flops)


def _convolution_backward(*shapes: Any, **_: Any) -> int:
    """FLOPs of the input's and the weight's gradient, as many as the forward pass takes for each.

    Torch's own formula counts the weight's once for every group (seen with torch 2.13).
    """
    gradient, inputs, weight, *_rest = shapes
    transposed, asked = shapes[7], shapes[10]
    return 2 * int(prod(inputs if transposed else gradient) * prod(weight[1:])) * sum(map(bool, asked[:2]))


class _Removed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs that go to removed weights; which product is of which weight is told by its memory."""

    def __init__(self, removed: dict[int, tuple[float, bool]], formulas: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._removed, self._formulas = dict(removed), formulas
        self._alive: list[Tensor] = []
        """Copies of weights: freed, another tensor could come to lie in their memory."""
        self.forward = True
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        shares = [self._removed[place] for place in map(_place, _tensors(args)) if place in self._removed]
        if shares and func in _COPIES:
            self._removed[_place(out)] = shares[0]
            self._alive.append(out)
        packet = getattr(func, "_overloadpacket", None)
        if shares and packet in self._formulas:
            share, trained = max(shares)
            flops = self._formulas[packet](*args, **kwargs, out_val=out)
            # The backward pass of a convolution has the weight among its arguments and is seen when it comes. Of a
            # matrix product the weight's gradient is one of two other tensors, of as many FLOPs.
            alone = self.forward and trained and torch.is_grad_enabled() and "conv" not in str(packet)
            self.flops += share * flops * (2 if alone else 1)
        return out


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
