"""Parameters of which each process has a part (DTensor, as `fully_shard` makes them), and that part.

Nothing here imports torch.distributed before a caller has: who has a DTensor has imported it, and nobody else waits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.modules import require_model as require_model

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_spread(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor lies in parts on several devices."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, sharing its memory; a plain tensor as it is."""
    return tensor.to_local() if is_spread(tensor) else tensor


def part_like(whole: Tensor, like: Tensor) -> Tensor:
    """Of a plain tensor, which every process has whole, the part where this process has its part of `like`.

    Nothing is sent. If `like` is a plain tensor, it is the whole.
    """
    if not is_spread(like) or is_spread(whole):
        return part(whole)
    return part(spread_like(whole, like))


def spread_like(whole: Tensor, like: DTensor) -> DTensor:
    """A plain tensor, which every process has whole, in parts as those of `like`. Nothing is sent."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def whole(local: Tensor, like: Tensor) -> Tensor:
    """The whole of a tensor of which this process has `local` and which lies as `like`; all processes take part."""
    if not is_spread(like):
        return local
    from torch.distributed.tensor import DTensor

    rows = torch.empty(like.shape, device="meta")
    placed = DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=rows.shape, stride=rows.stride()
    )
    gathered = placed.full_tensor()
    return gathered.wait() if hasattr(gathered, "wait") else gathered


def groups_of(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """The groups of processes that have different parts of a tensor: one for each dimension of the mesh that splits it.

    Raises:
        UsageError: for a placement by which elements lie otherwise than in even pieces (a partial sum, a strided part).
    """
    if not is_spread(tensor):
        return ()
    from torch.distributed.tensor import Replicate, Shard

    for placement in tensor.placements:
        if type(placement) not in (Shard, Replicate):
            raise UsageError(
                f"a parameter is placed as {placement}: only Shard and Replicate are supported, as fully_shard makes"
                " them (not together with tensor parallelism of the same dimension)"
            )
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(place) for place, each in enumerate(tensor.placements) if type(each) is Shard)


def summed(counts: Tensor, groups: Iterable[ProcessGroup]) -> Tensor:
    """`counts`, added up in place over the processes of each of the groups; all of them call this."""
    for group in groups:
        import torch.distributed as dist

        dist.all_reduce(counts, group=group)
    return counts


def require_usable(parameters: Mapping[str, Tensor]) -> None:
    """Make sure that parameters in parts have values, lie in even pieces, and on one number of processes.

    Raises:
        UsageError: naming the parameter.
    """
    sizes = {}
    for name, parameter in parameters.items():
        groups_of(parameter)
        if parameter.is_meta:
            raise UsageError(f"{name!r} is on the meta device and has no values: initialise or load the model first")
        if is_spread(parameter):
            sizes[parameter.device_mesh.size()] = name
    if len(sizes) > 1:
        said = ", ".join(f"{name!r} on {size}" for size, name in sizes.items())
        raise UsageError(f"the parameters lie on different numbers of processes ({said}): shard them over one mesh")


def put_back(model: nn.Module) -> None:
    """Put the parameters of `fully_shard` into their parts again, which an evaluation leaves whole.

    Not within a forward or backward pass.

    Raises:
        UsageError: if it is no model.
    """
    require_model(model)
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def processes_of(model: nn.Module, parameters: Iterable[Tensor]) -> Iterator[ProcessGroup]:
    """The groups of processes that train `model` together; none of a model that one process trains."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        yield model.process_group
        return
    for mesh in dict.fromkeys(each.device_mesh for each in parameters if is_spread(each)):
        yield from (mesh.get_group(place) for place in range(mesh.ndim))


class _Digested(Protocol):
    @property
    def digest(self) -> str: ...


def require_one_mask(model: nn.Module, parameters: Mapping[str, Tensor], mask: _Digested) -> None:
    """Make sure that all processes that train `model` have the same mask; they all call this.

    Raises:
        MaskError: in all of them, if they have not.
    """
    for group in processes_of(model, parameters.values()):
        import torch.distributed as dist

        device = next(part(each).device for each in parameters.values())
        own = torch.tensor(list(bytes.fromhex(mask.digest)), dtype=torch.uint8, device=device)
        everybody = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(everybody, own, group=group)
        others = [rank for rank, each in enumerate(everybody) if not torch.equal(each, everybody[0])]
        if others:
            raise MaskError(
                f"the processes that train {type(model).__name__} hold different masks: rank {others[0]} has another"
                " than rank 0; prune with the same weights, batches and seed in each, or send one rank's mask to all"
            )
