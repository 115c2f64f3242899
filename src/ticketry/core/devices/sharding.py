"""Read and write parameters that are sharded over several devices (DTensors, as `fully_shard` creates them).

torch.distributed is imported only for sharded tensors, so that single-device users do not wait for the import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeGuard

import torch
from torch import Tensor, nn

from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.modules import require_model

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: object) -> TypeGuard[DTensor]:
    """Return whether a tensor is sharded over several devices (a DTensor)."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local_shard(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, without copying; return a tensor that is not sharded unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def shard_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return the part of `whole` at the positions of this process's shard of `like`, without communication.

    Every process must pass the same `whole`. If `like` is not sharded, return `whole`.
    """
    if not is_sharded(like) or is_sharded(whole):
        return local_shard(whole)
    return local_shard(distribute_like(whole, like))


def distribute_like(whole: Tensor, like: DTensor) -> DTensor:
    """Shard `whole` in the way `like` is sharded; no communication, since every process passes the same `whole`."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gather_shards(local: Tensor, like: Tensor) -> Tensor:
    """Return the whole tensor whose shards are `local`, sharded as `like` is; all processes must call this."""
    if not is_sharded(like):
        return local
    from torch.distributed.tensor import DTensor

    rows = torch.empty(like.shape, device="meta")
    placed = DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=rows.shape, stride=rows.stride()
    )
    gathered = placed.full_tensor()
    return gathered.wait() if hasattr(gathered, "wait") else gathered


def shard_groups(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the process groups over which a tensor is split, one for each mesh dimension that splits it.

    Raises:
        UsageError: for a placement other than `Shard` and `Replicate`, such as a partial sum or a strided shard.
    """
    if not is_sharded(tensor):
        return ()
    from torch.distributed.tensor import Replicate, Shard

    for placement in tensor.placements:
        if type(placement) not in (Shard, Replicate):
            raise UsageError(
                f"a parameter is placed as {placement}: only Shard and Replicate are supported, as fully_shard makes"
                " them (not together with tensor parallelism of the same dimension)"
            )
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(axis) for axis, placement in enumerate(tensor.placements) if type(placement) is Shard)


def sum_over_groups(counts: Tensor, groups: Iterable[ProcessGroup]) -> Tensor:
    """Add up `counts` in place over the processes of each group; all of these processes must call this."""
    for group in groups:
        import torch.distributed as dist

        dist.all_reduce(counts, group=group)
    return counts


def check_shards(parameters: Mapping[str, Tensor]) -> None:
    """Check that parameters have values, supported placements, and shards on the same number of processes.

    Raises:
        UsageError: if not, with the names of the parameters.
    """
    sizes = {}
    for name, parameter in parameters.items():
        shard_groups(parameter)
        if parameter.is_meta:
            raise UsageError(f"{name!r} is on the meta device and has no values: initialise or load the model first")
        if is_sharded(parameter):
            sizes[parameter.device_mesh.size()] = name
    if len(sizes) > 1:
        found = ", ".join(f"{name!r} on {size}" for size, name in sizes.items())
        raise UsageError(f"parameters are sharded over different numbers of processes ({found}): use one mesh for all")


def reshard(model: nn.Module) -> None:
    """Shard the parameters of all `fully_shard` modules again, since an evaluation may have left them gathered.

    Do not call this during a forward or backward pass.

    Raises:
        UsageError: if `model` is not a module.
    """
    require_model(model)
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for module in model.modules():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


def process_groups(model: nn.Module, parameters: Iterable[Tensor]) -> Iterator[ProcessGroup]:
    """Yield the process groups that train `model` together; yield nothing if a single process trains it."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        yield model.process_group
        return
    for mesh in dict.fromkeys(each.device_mesh for each in parameters if is_sharded(each)):
        yield from (mesh.get_group(axis) for axis in range(mesh.ndim))


class _HasDigest(Protocol):
    @property
    def digest(self) -> str: ...


def check_same_mask(model: nn.Module, parameters: Mapping[str, Tensor], mask: _HasDigest) -> None:
    """Check that all processes that train `model` have the same mask; all of them must call this.

    Raises:
        MaskError: in all processes, if their masks differ.
    """
    for group in process_groups(model, parameters.values()):
        import torch.distributed as dist

        device = next(local_shard(each).device for each in parameters.values())
        own = torch.tensor(list(bytes.fromhex(mask.digest)), dtype=torch.uint8, device=device)
        digests = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(digests, own, group=group)
        others = [rank for rank, each in enumerate(digests) if not torch.equal(each, digests[0])]
        if others:
            raise MaskError(
                f"the processes that train {type(model).__name__} hold different masks: rank {others[0]} has another"
                " than rank 0; prune with the same weights, batches and seed in each, or send one rank's mask to all"
            )
