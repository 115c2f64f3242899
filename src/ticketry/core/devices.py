"""Batch norms that are synchronised over all processes, also on a CPU (torch's SyncBatchNorm requires a GPU).

In a forward pass, each process sends the number of values per channel, and the mean and the sum of squared deviations
of each channel. The mean and variance over all processes follow from these numbers (Chan, Golub and LeVeque 1979). The
batches of the processes may differ in size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.training_hooks import first_derivative_only

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _SynchronisedNormalisation(torch.autograd.Function):
    """Normalise a process's batch by the mean and variance over the batches of all processes.

    The processes communicate once in the forward pass and once in the backward pass. The gradients of the norm's weight
    and bias are sums over this process's own batch, as for all other parameters in data-parallel training.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: ProcessGroup | None
    ) -> tuple[Tensor, ...]:
        import torch.distributed as dist

        wide = input.to(torch.promote_types(input.dtype, torch.float32))  # as torch's norms compute half precision
        # The kernel of torch's own norms: var_mean is twenty times slower in channels-last layout.
        means, variances = torch.batch_norm_update_stats(wide, None, None, 0.0)
        own_count, channels = wide.numel() // wide.shape[1], len(means)
        own = torch.cat([means.new_full((1,), own_count), means, variances * own_count])
        found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(found, own, group=group)
        rows = torch.stack(found)
        # A row for each process: its count, its means, and its sums of squared deviations.
        counts, means, squares = rows[:, :1], rows[:, 1 : channels + 1], rows[:, channels + 1 :]
        count = counts.sum(0)
        mean = (counts * means).sum(0) / count
        variance = (squares + counts * (means - mean).square()).sum(0) / count
        ctx.group, ctx.count = group, count
        ctx.save_for_backward(input, weight, mean, torch.rsqrt(variance + eps))
        ctx.mark_non_differentiable(mean, variance, count)
        return (
            torch.batch_norm(wide, weight, bias, mean, variance, False, 0.0, eps, False).to(input.dtype),
            mean,
            variance,
            count,
        )

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        import torch.distributed as dist

        input, weight, mean, scale = ctx.saved_tensors
        shape = [1, -1] + [1] * (input.dim() - 2)
        gradient, wide = gradient.to(mean.dtype), input.to(mean.dtype)
        # Sums over this process's batch: of gradients times normalised inputs, and of gradients.
        _, product, shift = torch.ops.aten.native_batch_norm_backward(
            gradient, wide, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
        )
        both = torch.stack([shift, product])
        dist.all_reduce(both, group=ctx.group)
        both /= ctx.count
        # Input gradient: weight * scale * (gradient - its mean - normal * mean of its products with normal)
        factor = scale if weight is None else scale * weight
        slope = -factor * scale * both[1]
        offset = -factor * both[0] - slope * mean
        found = torch.addcmul(offset.view(shape), wide, slope.view(shape)).addcmul_(gradient, factor.view(shape))
        own = (None, None) if weight is None else (product.to(weight.dtype), shift.to(weight.dtype))
        return found.to(input.dtype), *own, None, None


class SynchronisedBatchNorm(_BatchNorm):
    """A batch norm for inputs [N, C, …] that computes its training statistics over the batches of all processes.

    Parameters and buffers have the same names as in torch's batch norms. In evaluation mode, this norm computes the
    same as torch's.

    Examples:
        >>> norm = tk.devices.SynchronisedBatchNorm(8).eval()
        >>> torch.equal(norm(torch.ones(2, 8, 4, 4)), nn.BatchNorm2d(8).eval()(torch.ones(2, 8, 4, 4)))
        True
    """

    group: ProcessGroup | None = None
    """Process group to synchronise over; None means all processes."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        normal: Tensor
        normal, mean, variance, count = _SynchronisedNormalisation.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, self.eps, self.group
        )
        if self.track_running_stats:
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.num_batches_tracked.add_(1)
            share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return normal


@entry_point(Need(values=False, floats=False))
def synchronise_norms(model: nn.Module, group: ProcessGroup | None = None) -> nn.Module:
    """Replace every batch norm of `model` by a `SynchronisedBatchNorm`, in place, and return the model.

    Call this before creating DistributedDataParallel, `fully_shard` or the optimiser. Parameters and buffers stay the
    same objects under the same names, and a norm used in several places stays one module. Other kinds of norms treat
    each example separately and need no synchronisation.

    Args:
        model: any module.
        group: the process group; None means all processes.

    Raises:
        UsageError: if the model itself is a batch norm, if a norm has no parameters yet (a lazy norm), or if the class
            of a norm has its own `forward`, which the replacement would not call. The model is then unchanged.

    Examples:
        >>> model = tk.devices.synchronise_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(model[1]).__name__, list(model.state_dict())[2:4]
        ('SynchronisedBatchNorm', ['1.weight', '1.bias'])
    """
    if isinstance(model, _BatchNorm):
        raise UsageError("the model is a batch norm itself: wrap it in a module, such as nn.Sequential(norm)")
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    for name, norm in norms.items():
        if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward, SynchronisedBatchNorm.forward):
            raise UsageError(
                f"{name!r} is of the class {type(norm).__name__}, a batch norm whose own forward a synchronised norm"
                " would drop: split it into a plain batch norm and the rest, or do not synchronise norms"
            )
    replacements = {
        norm: _to_synchronised(norm, group) for norm in norms.values() if not isinstance(norm, SynchronisedBatchNorm)
    }
    for parent in list(model.modules()):
        for local, child in parent._modules.items():
            if isinstance(child, _BatchNorm) and child in replacements:
                setattr(parent, local, replacements[child])
    return model


def _to_synchronised(norm: _BatchNorm, group: ProcessGroup | None) -> SynchronisedBatchNorm:
    synchronised = SynchronisedBatchNorm(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    synchronised.group = group
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(synchronised, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(synchronised, name, buffer)
    return synchronised.train(norm.training)
