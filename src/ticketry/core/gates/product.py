"""weight * sigmoid(beta s) * scale, with as few passes over memory and as little of it as torch allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry.core.gates.gate_kind import gated
from ticketry.core.structure.layout import Blocks
from ticketry.errors import TrainingError


def sigmoid_product(
    weight: Tensor, logits: Tensor, kept: Tensor | None, beta: float, scale: float
) -> tuple[Tensor, Tensor]:
    """weight * sigmoid(beta * logits) * scale (* kept), and the sum of sigmoid(beta * logits) (* kept).

    With p the product, sg the sigmoid and t the sum, the gradients are

        dL/dweight = dL/dp * sg * scale
        dL/dlogits = beta * sg * (1 - sg) * (dL/dp * weight * scale + dL/dt)

    The sigmoid is computed again in the backward pass rather than kept. The inputs are not saved as autograd saves
    tensors, since they are leaves that live on anyway: so activation checkpointing, which counts saved tensors, does
    not see them, and the sum may be differentiated after the product has been.

    Args:
        weight, logits: of one shape and dtype.
        kept: 0 and 1 in that shape and dtype; None keeps all.
        beta: at most `schedule.LARGEST`.
    """
    product, total = _SigmoidProduct.apply(weight, logits, kept, beta, scale)  # type: ignore[no-untyped-call]
    return product, total


def summed(totals: Sequence[Tensor], coefficient: float) -> Tensor:
    """coefficient * the sum of scalars, in fewer steps of autograd than by a stack: they tell in a small network."""
    total: Tensor = _Summed.apply(coefficient, *totals)  # type: ignore[no-untyped-call]
    return total


def block_product(weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
    """Every weight times the gate of its block, in the dtype of the weight. No tensor of gates a weight is made.

    Args:
        gate: of `Blocks.shape`.
    """
    if weight.dtype != gate.dtype or torch._C._are_functorch_transforms_active():
        return gated(weight, blocks.spread(gate), None)
    product: Tensor = _BlockProduct.apply(weight, gate, blocks)  # type: ignore[no-untyped-call]
    return product


_FEW_BLOCKS = 32_768
"""So few are summed in one operation: then its start tells, and not its passes over memory."""


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(weight, gate)
        ctx.blocks = blocks
        product = torch.empty_like(weight)
        views = zip(blocks.views(weight), blocks.own_views(gate), blocks.views(product), strict=True)
        for own, factor, place in views:
            torch.mul(own, factor, out=place)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, gate = ctx.saved_tensors
        need_weight, need_gate = ctx.needs_input_grad[:2]
        grad_weight = block_product(grad, gate, ctx.blocks) if need_weight else None
        return grad_weight, _summed_products(grad, weight, gate, ctx.blocks) if need_gate else None, None


def _summed_products(grad: Tensor, weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
    """The sum of grad * weight over each block, of `Blocks.shape`."""
    small = blocks.count < _FEW_BLOCKS or blocks.whole_rows
    if small or torch.is_grad_enabled():  # create_graph=True: to be differentiated again
        return blocks.pool(grad * weight)
    # Row by row of the blocks, which takes a third of the time of a sum along a dimension in the middle.
    found = torch.empty_like(gate)
    for one, other, place in zip(blocks.views(grad), blocks.views(weight), blocks.own_views(found), strict=True):
        total = place.squeeze(2)
        torch.mul(one[:, :, 0], other[:, :, 0], out=total)
        for row in range(1, one.shape[2]):
            total.addcmul_(one[:, :, row], other[:, :, row])
    return found


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficient: float, *totals: Tensor) -> Tensor:
        ctx.coefficient, ctx.devices = coefficient, [total.device for total in totals]
        return coefficient * torch.stack([total.to(ctx.devices[0]) for total in totals]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        each = grad * ctx.coefficient
        return None, *(each.to(device) for device in ctx.devices)


class _SigmoidProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, logits: Tensor, kept: Tensor | None, beta: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.inputs = weight, logits, kept, beta, scale
        ctx.versions = weight._version, logits._version
        gate = _gate(logits, kept, beta)
        total = gate.sum()
        return _times_(gate, weight, scale), total

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, logits, kept, beta, scale = ctx.inputs
        if (weight._version, logits._version) != ctx.versions:
            raise TrainingError(
                "weights or gates were changed between forward and backward: take the optimisers' steps after it"
            )
        if torch.is_grad_enabled():
            return *_differentiable(ctx, grad, grad_total), None, None, None
        need_weight, need_logits = ctx.needs_input_grad[:2]
        gate = _gate(logits, kept, beta)
        grad_weight = grad_logits = None
        if need_logits:
            grad_logits = _of_gate(weight, grad, grad_total, beta, scale)
            # Where `kept` is 0 so is the gate, and with it this product.
            torch.ops.aten.sigmoid_backward.grad_input(grad_logits, gate, grad_input=grad_logits)
        if need_weight and grad is not None:
            grad_weight = _times_(gate, grad, scale)
        return grad_weight, grad_logits, None, None, None


def _gate(logits: Tensor, kept: Tensor | None, beta: float) -> Tensor:
    gate = (logits * beta).sigmoid_()
    return gate if kept is None else gate.mul_(kept)


def _times_(gate: Tensor, other: Tensor, scale: float) -> Tensor:
    """gate * other * scale in the place of `gate`, in one pass."""
    return torch.addcmul(gate.new_zeros(()), gate, other, value=scale, out=gate)


def _of_gate(weight: Tensor, grad: Tensor | None, grad_total: Tensor | None, beta: float, scale: float) -> Tensor:
    """The gradient for the gate, times beta: a new tensor, in the layout of the weight."""
    charge = weight.new_zeros(()) if grad_total is None else grad_total * beta
    if grad is None:
        return torch.empty_like(weight).copy_(charge)
    return torch.addcmul(charge, weight, grad, value=beta * scale)


def _differentiable(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The gradients by operations that can be differentiated again (create_graph=True)."""
    weight, logits, kept, beta, scale = ctx.inputs
    gate = torch.sigmoid(logits * beta)
    passes = 1 if kept is None else kept
    of_gate = torch.zeros_like(gate)
    if grad is not None:
        of_gate = of_gate + grad * weight * scale
    if grad_total is not None:
        of_gate = of_gate + grad_total
    of_weight = None if grad is None else grad * gate * scale * passes
    return of_weight, beta * gate * (1 - gate) * of_gate * passes
