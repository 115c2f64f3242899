"""Sharded parameters (DTensors, as `fully_shard` creates them): access, and selection of the k largest elements.

torch.distributed is imported only for sharded tensors, so that single-device users do not wait for the import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

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
    """Return the whole tensor, given each process's shard `local`; the shards are those of a tensor like `like`.

    All processes must call this. If `like` is not sharded, return `local`.
    """
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
    """Return the process groups over which a tensor is split, one for each mesh dimension that splits it."""
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


def sum_over_process_groups(counts: Tensor, groups: Iterable[ProcessGroup]) -> Tensor:
    """Add up `counts` in place over the processes of each group; all of these processes must call this."""
    for group in groups:
        import torch.distributed as dist

        dist.all_reduce(counts, group=group)
    return counts


def check_shards(parameters: Mapping[str, Tensor]) -> None:
    """Check that parameters have values, supported placements, and shards on the same number of processes."""
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


def check_same_mask(model: nn.Module, parameters: Mapping[str, Tensor], digest: str) -> None:
    """Check that all processes that train `model` have a mask with the same `digest`; all of them must call this."""
    for group in process_groups(model, parameters.values()):
        import torch.distributed as dist

        device = next(local_shard(each).device for each in parameters.values())
        own = torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8, device=device)
        digests = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(digests, own, group=group)
        others = [rank for rank, each in enumerate(digests) if not torch.equal(each, digests[0])]
        if others:
            raise MaskError(
                f"the processes that train {type(model).__name__} hold different masks: rank {others[0]} has another"
                " than rank 0; prune with the same weights, batches and seed in each, or send one rank's mask to all"
            )


_DIGIT = 16
"""Number of bits of the threshold that each round of the search finds."""
_BINS = 1 << _DIGIT
_CHUNK = 1 << 20
"""Number of weights processed at a time, which bounds the additional memory."""
_EXACT_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)
_UNRANKED = torch.iinfo(torch.int64).min
"""Key (sortable integer) of elements excluded from the ranking; no number has this key."""


@dataclass(frozen=True)
class Threshold:
    """The smallest number that a ranking retains, and how many of the elements equal to this number it retains."""

    key: int
    """Bits of the threshold number as an integer; larger numbers have larger keys."""
    at_key: int
    """Number of retained elements whose key equals `key`: the first ones in the order of parameters and positions."""


_EVERYTHING = Threshold(_UNRANKED, 0)
_NOTHING = Threshold(torch.iinfo(torch.int64).max, 0)


class Ranking:
    """Selects exactly the k largest numbers among several named tensors, without copying the tensors.

    All processes with shards must call each method. Positive floats have the same order as their bits. So the k-th
    largest number, the threshold, is found 16 bits at a time: each round sums a histogram of 512 KB over all processes.
    Then each weight gets one byte that says whether it is below, at, or above the threshold.
    """

    def __init__(
        self, numbers: Mapping[str, Tensor], within: Mapping[str, Tensor] | None, *, magnitudes: bool = False
    ) -> None:
        """Create a ranking of the elements, or with `magnitudes` of their absolute values, of all tensors in `numbers`.

        Elements for which the bool tensors in `within` are False are excluded. Only `numbers` may be sharded.
        """
        self._numbers = numbers
        self._within = within
        self._magnitudes = magnitudes
        self._bits = 32 if all(each.dtype in _EXACT_IN_FLOAT32 for each in numbers.values()) else 64
        for name, tensor in numbers.items():
            missing = local_shard(tensor.detach()).isnan().sum().reshape(1)
            if int(sum_over_process_groups(missing, shard_groups(tensor))):
                raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")

    def count_candidates(self, name: str) -> int:
        """Return the number of elements of the tensor `name` that are not excluded from the ranking."""
        return self._numbers[name].numel() if self._within is None else int(self._within[name].sum())

    def find_threshold(self, names: Sequence[str], count: int) -> Threshold:
        """Return the threshold that retains the `count` largest elements among all tensors in `names`."""
        if count == 0:
            return _NOTHING
        if count >= sum(map(self.count_candidates, names)):
            return _EVERYTHING
        return self._search_threshold(names, count)

    def _search_threshold(self, names: Sequence[str], count: int) -> Threshold:
        numbers = [self._numbers[name] for name in names]
        # Sorting is faster than histograms for few numbers.
        if sum(each.numel() for each in numbers) <= _CHUNK and not any(map(is_sharded, numbers)):
            keys = torch.cat([keys.cpu() for name in names for keys in self._iterate_sort_keys(name)])
            ranked = keys[keys != _UNRANKED]
            key = int(ranked.kthvalue(len(ranked) - count + 1).values)
            return Threshold(key, count - int((ranked > key).sum()))
        above: int | None = None  # the digits found so far
        for shift in range(self._bits - _DIGIT, -1, -_DIGIT):
            histogram = self._count_keys_by_digit(names, shift, above)
            at_least = histogram.flip(0).cumsum(0).flip(0)  # how many are in a bin or in a higher one
            place = int((at_least >= count).nonzero()[-1])
            count -= int(at_least[place] - histogram[place])
            above = place - _BINS // 2 if above is None else above << _DIGIT | place
        assert above is not None
        return Threshold(above, count)

    def select_above(self, name: str, threshold: Threshold) -> tuple[Tensor, int]:
        """Return the mask of retained elements (unsharded, on the CPU), and how many of them equal the threshold."""
        numbers = self._numbers[name]
        codes = torch.zeros(local_shard(numbers).numel(), dtype=torch.uint8, device=local_shard(numbers).device)
        for keys, piece in zip(
            self._iterate_sort_keys(name), torch.split(codes, _CHUNK), strict=False
        ):  # an empty shard has none
            piece.copy_(keys >= threshold.key).add_(keys > threshold.key)
        everything = gather_shards(codes.reshape(local_shard(numbers).shape), numbers).cpu().contiguous()
        mask = everything == 2
        tied = (everything.flatten() == 1).nonzero().flatten()[: threshold.at_key]
        mask.view(-1)[tied] = True
        return mask, len(tied)

    def count_to_include_all(self, names: Sequence[str]) -> int:
        """Return the smallest k such that the k largest elements include an element of every non-empty tensor."""
        best = [
            (self._search_threshold([name], 1).key, -i) for i, name in enumerate(names) if self.count_candidates(name)
        ]
        lowest, last = min(best, default=(_UNRANKED, 0))
        thresholds = [
            Threshold(lowest, self.count_candidates(name) if i < -last else 0) for i, name in enumerate(names)
        ]
        counts = (int(self.select_above(name, each)[0].sum()) for name, each in zip(names, thresholds, strict=True))
        return sum(counts) + len(best[:1])

    def _iterate_sort_keys(self, name: str) -> Iterator[Tensor]:
        """Yield, in chunks, an int64 key for each element of this process's shard; keys order like the numbers."""
        numbers = self._numbers[name]
        values = local_shard(numbers.detach()).flatten()
        ranked = None if self._within is None else shard_like(self._within[name], numbers).flatten().to(values.device)
        for begin in range(0, len(values), _CHUNK):
            piece = values[begin : begin + _CHUNK]
            if self._magnitudes:
                piece = piece.abs()
            # + 0 turns -0.0, and denormals where arithmetic flushes them, into 0.0
            if self._bits == 32:
                keys = (piece.float() + 0).view(torch.int32).long()
            else:
                keys = (piece.double() + 0).view(torch.int64)
            negative = keys >> 63  # all bits, or none
            keys ^= negative & ((1 << (self._bits - 1)) - 1)  # of negative numbers the larger magnitude ranks lower
            yield keys if ranked is None else keys.masked_fill_(~ranked[begin : begin + _CHUNK], _UNRANKED)

    def _count_keys_by_digit(self, names: Sequence[str], shift: int, above: int | None) -> Tensor:
        """Count the keys by the 16 bits from bit `shift` on, over all processes: int64 [_BINS].

        Only keys whose higher bits equal `above` are counted. If `above` is None, the 16 bits are the highest ones;
        they include the sign, and the first bin then holds the lowest negative numbers.
        """
        total = torch.zeros(_BINS, dtype=torch.int64)
        # One exchange for all parameters sharded over the same processes.
        by_groups: dict[tuple[torch.device, tuple[ProcessGroup, ...]], Tensor] = {}
        for name in names:
            numbers = self._numbers[name]
            device = local_shard(numbers).device
            counts = by_groups.setdefault(
                (device, shard_groups(numbers)), torch.zeros(_BINS, dtype=torch.int64, device=device)
            )
            for keys in self._iterate_sort_keys(name):
                if above is None:
                    digits = (keys[keys != _UNRANKED] >> shift) + _BINS // 2
                else:  # no ranked key starts with the digits of _UNRANKED
                    digits = keys[keys >> (shift + _DIGIT) == above] >> shift & (_BINS - 1)
                counts += digits.bincount(minlength=_BINS)
        for (_, groups), counts in by_groups.items():
            total += sum_over_process_groups(counts, groups).cpu()
        return total
