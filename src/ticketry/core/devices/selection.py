"""Exact selection of the k largest numbers in many tensors, which may be sharded, without copying them.

The order of floats equals the order of their bits, apart from the sign. So the threshold is found 16 bits at a time,
each time from a histogram summed over all processes: 512 KB per round, two rounds for 32-bit floats and four for 64.
The result is one byte per weight: below, at, or above the threshold. It is computed for one parameter at a time, and
gathered if that is sharded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ticketry.core.devices.sharding import (
    gather_shards,
    is_sharded,
    local_shard,
    shard_groups,
    shard_like,
    sum_over_groups,
)
from ticketry.errors import MaskError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_DIGIT = 16
"""Number of bits decided in one round."""
_BINS = 1 << _DIGIT
_CHUNK = 1 << 20
"""Number of weights processed at a time, which bounds the additional memory."""
_EXACT_IN_FLOAT32 = (torch.float32, torch.bfloat16, torch.float16)
_UNRANKED = torch.iinfo(torch.int64).min
"""Key of excluded elements; no number has these bits."""


@dataclass(frozen=True)
class Threshold:
    """The elements to retain: all whose key exceeds `key`, and the first `at_key` elements whose key equals it."""

    key: int
    """Bits of the threshold number as an integer; larger numbers have larger keys."""
    at_key: int
    """Number of elements equal to the threshold that are retained: the first, in the order of parameters and
    positions.
    """


_EVERYTHING = Threshold(_UNRANKED, 0)
_NOTHING = Threshold(torch.iinfo(torch.int64).max, 0)


class Ranking:
    """Ranks the elements of several named tensors together. Processes that hold shards of them must all call it."""

    def __init__(
        self, numbers: Mapping[str, Tensor], within: Mapping[str, Tensor] | None, *, magnitudes: bool = False
    ) -> None:
        """Create a ranking.

        Args:
            numbers: the tensors, by name.
            within: bool tensors by name, not sharded; elements that are False are excluded.
            magnitudes: whether to rank absolute values.
        """
        self._numbers = numbers
        self._within = within
        self._magnitudes = magnitudes
        self._bits = 32 if all(each.dtype in _EXACT_IN_FLOAT32 for each in numbers.values()) else 64
        self._check_no_nan()

    def count_candidates(self, name: str) -> int:
        """Return the number of elements of a tensor that are not excluded."""
        return self._numbers[name].numel() if self._within is None else int(self._within[name].sum())

    def find_threshold(self, names: Sequence[str], count: int) -> Threshold:
        """Return the threshold that retains the `count` largest elements of the named tensors together."""
        if count == 0:
            return _NOTHING
        if count >= sum(map(self.count_candidates, names)):
            return _EVERYTHING
        return self._search_threshold(names, count)

    def _search_threshold(self, names: Sequence[str], count: int) -> Threshold:
        if self._are_small_enough_to_sort(names):
            keys = torch.cat([keys.cpu() for name in names for keys in self._order_keys(name)])
            ranked = keys[keys != _UNRANKED]
            key = int(ranked.kthvalue(len(ranked) - count + 1).values)
            return Threshold(key, count - int((ranked > key).sum()))
        above: int | None = None  # the digits found so far
        for shift in range(self._bits - _DIGIT, -1, -_DIGIT):
            histogram = self._digit_histogram(names, shift, above)
            at_least = histogram.flip(0).cumsum(0).flip(0)  # how many are in a bin or in a higher one
            place = int((at_least >= count).nonzero()[-1])
            count -= int(at_least[place] - histogram[place])
            above = place - _BINS // 2 if above is None else above << _DIGIT | place
        assert above is not None
        return Threshold(above, count)

    def _are_small_enough_to_sort(self, names: Sequence[str]) -> bool:
        """Return whether the tensors are small enough to sort directly, which is then faster than histograms."""
        numbers = [self._numbers[name] for name in names]
        return sum(each.numel() for each in numbers) <= _CHUNK and not any(map(is_sharded, numbers))

    def select_above(self, name: str, threshold: Threshold) -> tuple[Tensor, int]:
        """Return a bool tensor of the retained elements (whole, on the CPU), and how many equal the threshold."""
        numbers = self._numbers[name]
        codes = torch.zeros(local_shard(numbers).numel(), dtype=torch.uint8, device=local_shard(numbers).device)
        for keys, piece in zip(
            self._order_keys(name), torch.split(codes, _CHUNK), strict=False
        ):  # an empty shard has none
            piece.copy_(keys >= threshold.key).add_(keys > threshold.key)
        everything = gather_shards(codes.reshape(local_shard(numbers).shape), numbers).cpu().contiguous()
        mask = everything == 2
        tied = (everything.flatten() == 1).nonzero().flatten()[: threshold.at_key]
        mask.view(-1)[tied] = True
        return mask, len(tied)

    def count_to_include_all(self, names: Sequence[str]) -> int:
        """Return the smallest k such that the k largest elements include one of each non-empty tensor."""
        best = [
            (self._search_threshold([name], 1).key, -i) for i, name in enumerate(names) if self.count_candidates(name)
        ]
        lowest, last = min(best, default=(_UNRANKED, 0))
        thresholds = [
            Threshold(lowest, self.count_candidates(name) if i < -last else 0) for i, name in enumerate(names)
        ]
        counts = (int(self.select_above(name, each)[0].sum()) for name, each in zip(names, thresholds, strict=True))
        return sum(counts) + len(best[:1])

    def _order_keys(self, name: str) -> Iterator[Tensor]:
        """Yield int64 keys of this process's shard in chunks [at most _CHUNK], in the same order as the numbers."""
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

    def _digit_histogram(self, names: Sequence[str], shift: int, above: int | None) -> Tensor:
        """Count the keys by their 16-bit digit at bit `shift`, among keys whose higher digits equal `above`: int64
        [_BINS].

        If `above` is None, this is the highest digit, which includes the sign; its bins start at the lowest number.
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
            for keys in self._order_keys(name):
                if above is None:
                    digits = (keys[keys != _UNRANKED] >> shift) + _BINS // 2
                else:  # no ranked key starts with the digits of _UNRANKED
                    digits = keys[keys >> (shift + _DIGIT) == above] >> shift & (_BINS - 1)
                counts += digits.bincount(minlength=_BINS)
        for (_, groups), counts in by_groups.items():
            total += sum_over_groups(counts, groups).cpu()
        return total

    def _check_no_nan(self) -> None:
        for name, numbers in self._numbers.items():
            missing = local_shard(numbers.detach()).isnan().sum().reshape(1)
            if int(sum_over_groups(missing, shard_groups(numbers))):
                raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
