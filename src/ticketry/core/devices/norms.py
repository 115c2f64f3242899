"""Batch norms over the batches of all processes together, also on a CPU (torch's SyncBatchNorm asks for a GPU).

Mean and variance are those of the global batch, in two passes (the mean first), as one process with that batch has
them. Processes may have batches of different sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _summed(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


def _summed(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    import torch.distributed as dist

    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm [N, C, …] whose statistics in training are those of all processes' batches together.

    Parameters and buffers have the names of torch's batch norms. In evaluation it is that of one
    process.

    Examples:
        >>> norm = tk.devices.SynchronisedBatchNorm(8).eval()
        >>> torch.equal(norm(torch.ones(2, 8, 4, 4)), nn.BatchNorm2d(8).eval()(torch.ones(2, 8, 4, 4)))
        True
    """

    group: ProcessGroup | None = None
    """Processes; all of them by default."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = _summed(input.new_full((1,), input.numel() // input.shape[1], dtype=torch.float64), self.group)
        count = count.to(torch.promote_types(input.dtype, torch.float32))  # of half precision, as torch's norms do
        wide = input.to(count.dtype)
        mean = _sum(wide.sum(axes), self.group) / count
        centred = wide - mean.view(shape)
        variance = _sum(centred.square().sum(axes), self.group) / count
        self._follow(mean.detach(), variance.detach() * (count / (count - 1).clamp(min=1)))
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        found = normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal
        return found.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        """Move the running statistics as torch's batch norms do."""
        if not self.track_running_stats:
            return
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


def _sum(tensor: Tensor, group: ProcessGroup | None) -> Tensor:
    total: Tensor = _Sum.apply(tensor, group)  # type: ignore[no-untyped-call]
    return total


def synchronise_norms(model: nn.Module, group: ProcessGroup | None = None) -> nn.Module:
    """Put a `SynchronisedBatchNorm` in the place of every batch norm of `model`, in place, and return the model.

    Call it before DistributedDataParallel, `fully_shard` and the optimiser. Parameters and buffers are the same
    objects, under the same names. Other norms look at one example each and need nothing.

    Args:
        model: with batch norms of torch, or none.
        group: the processes; by default all.

    Raises:
        UsageError: if the model itself is a batch norm, or a norm has no parameters yet (a lazy one).

    Examples:
        >>> model = tk.devices.synchronise_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(model[1]).__name__, list(model.state_dict())[2:4]
        ('SynchronisedBatchNorm', ['1.weight', '1.bias'])
    """
    if isinstance(model, _BatchNorm):
        raise UsageError("the model is a batch norm itself: put it into a module whose child it is")
    for name, child in model.named_children():
        if isinstance(child, nn.modules.lazy.LazyModuleMixin):
            raise UsageError(f"{name!r} is a lazy {type(child).__name__}: call the model once before")
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronisedBatchNorm):
            setattr(model, name, _synchronised(child, group))
        elif not isinstance(child, _BatchNorm):
            synchronise_norms(child, group)
    return model


def _synchronised(norm: _BatchNorm, group: ProcessGroup | None) -> SynchronisedBatchNorm:
    made = SynchronisedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    made.group = group
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(made, name, buffer)
    return made.train(norm.training)
