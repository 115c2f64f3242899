"""Batch norms over the batches of all processes together, also on a CPU (torch's SyncBatchNorm asks for a GPU).

Mean and variance are those of the global batch: of each process's count, mean and sum of squares around it (Chan, Golub
and LeVeque 1979), in one exchange. Processes may have batches of different sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.first_derivative import first_derivative_only

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class _Normalised(torch.autograd.Function):
    """A batch that is normalised by the mean and variance of all processes' batches; one exchange each way.

    Gradients of scale and shift are those of the process's own batch, as of all other parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        group: ProcessGroup | None,
    ) -> tuple[Tensor, ...]:
        wide = input.to(torch.promote_types(input.dtype, torch.float32))  # of half precision, as torch's norms do
        # The kernel of torch's own norms: var_mean takes twenty times as long where channels lie last.
        means, variances = torch.batch_norm_update_stats(wide, None, None, 0.0)
        counts, means, squares = _gathered(wide.numel() // wide.shape[1], means, variances, group)
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
        # The sums over this process's batch, of gradients times normalised inputs and of gradients.
        _, product, shift = torch.ops.aten.native_batch_norm_backward(
            gradient, wide, torch.ones_like(mean), None, None, mean, scale, True, 0.0, [False, True, True]
        )
        both = torch.stack([shift, product])
        dist.all_reduce(both, group=ctx.group)
        both /= ctx.count
        # By the input: weight * scale * (gradient - mean of it - normal * mean of its products with normal)
        factor = scale if weight is None else scale * weight
        slope = -factor * scale * both[1]
        offset = -factor * both[0] - slope * mean
        found = torch.addcmul(offset.view(shape), wide, slope.view(shape)).addcmul_(gradient, factor.view(shape))
        own = (None, None) if weight is None else (product.to(weight.dtype), shift.to(weight.dtype))
        return found.to(input.dtype), *own, None, None


def _gathered(
    count: int, means: Tensor, variances: Tensor, group: ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each process, in a row: the count [n, 1], and by channel the mean and the sum of squares around it [n, C]."""
    import torch.distributed as dist

    own = torch.cat([means.new_full((1,), count), means, variances * count])
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, own, group=group)
    rows = torch.stack(found)
    channels = len(means)
    return rows[:, :1], rows[:, 1 : channels + 1], rows[:, channels + 1 :]


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
        found, mean, variance, count = _Normalised.apply(input, self.weight, self.bias, self.eps, self.group)  # type: ignore[no-untyped-call]
        self._follow(mean, variance * (count / (count - 1).clamp(min=1)))
        normal: Tensor = found
        return normal

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


@entry_point(Need(values=False, floats=False))
def synchronise_norms(model: nn.Module, group: ProcessGroup | None = None) -> nn.Module:
    """Put a `SynchronisedBatchNorm` in the place of every batch norm of `model`, in place, and return the model.

    Call it before DistributedDataParallel, `fully_shard` and the optimiser. Parameters and buffers are the same
    objects, under the same names; a norm that stands in several places stays one. Other norms look at one example each
    and need nothing.

    Args:
        model: with batch norms of torch, or none.
        group: the processes; by default all.

    Raises:
        UsageError: if the model itself is a batch norm, a norm has no parameters yet (a lazy one), or is of a class
            with a forward of its own, which would be lost. Nothing is changed then.

    Examples:
        >>> model = tk.devices.synchronise_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
        >>> type(model[1]).__name__, list(model.state_dict())[2:4]
        ('SynchronisedBatchNorm', ['1.weight', '1.bias'])
    """
    if isinstance(model, _BatchNorm):
        raise UsageError("the model is a batch norm itself: put it into a module whose child it is")
    norms = {name: norm for name, norm in model.named_modules() if isinstance(norm, _BatchNorm)}
    for name, norm in norms.items():
        _check_replaceable(name, norm)
    made = {norm: _synchronised(norm, group) for norm in norms.values() if not isinstance(norm, SynchronisedBatchNorm)}
    for parent in list(model.modules()):
        for local, child in parent._modules.items():
            if isinstance(child, _BatchNorm) and child in made:
                setattr(parent, local, made[child])
    return model


def _check_replaceable(name: str, norm: _BatchNorm) -> None:
    if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
        raise UsageError(f"{name!r} is a lazy {type(norm).__name__}: call the model once before")
    if type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward, SynchronisedBatchNorm.forward):
        raise UsageError(
            f"{name!r} is of the class {type(norm).__name__}, a batch norm with a forward of its own, which a"
            " synchronised one would not have: put a plain batch norm, and what else it does, in its place, or leave"
            " norms to each process"
        )


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
