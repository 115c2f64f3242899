"""The largest of many numbers, whole or in parts on several devices: exact to the element, without a copy of them.

Numbers are ordered as their bits are, but for the sign. So the threshold is found digit by digit, 16 bits a round, from
a histogram that all processes add up: 512 KB a round, two rounds in 32 bits and four in 64. What is then made (of
parameters in parts, gathered) is a byte for each weight, a parameter at a time: below, at, or above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ticketry.core.devices.parts import groups_of, is_spread, part, part_like, summed, whole
from ticketry.errors import MaskError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_DIGIT = 16
"""Bits looked at in a round."""
_BINS = 1 << _DIGIT
_CHUNK = 1 << 20
"""Weights looked at together: what bounds the memory beside the parameters."""
_SHORT = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose numbers float32 has exactly."""
_UNRANKED = torch.iinfo(torch.int64).min
"""In place of the bits of what is not ranked: no number has these."""


@dataclass(frozen=True)
class Cut:
    """What a ranking keeps: all above a threshold, and some of those at it."""

    threshold: int
    """As the bits of a number, in their order."""
    at_threshold: int
    """How many at the threshold are kept: the first, in the order of parameters and positions."""


EVERYTHING = Cut(_UNRANKED, 0)
NOTHING = Cut(torch.iinfo(torch.int64).max, 0)


class Ranking:
    """Numbers by name that are ranked together. All processes that have parts of them make it and call it."""

    def __init__(
        self, numbers: Mapping[str, Tensor], within: Mapping[str, Tensor] | None, *, magnitudes: bool = False
    ) -> None:
        """`within`: name -> bool, whole: only these are ranked. `magnitudes`: by size, whatever the sign is."""
        self._numbers = numbers
        self._within = within
        self._magnitudes = magnitudes
        self._bits = 32 if all(each.dtype in _SHORT for each in numbers.values()) else 64
        self._require_numbers()

    def available(self, name: str) -> int:
        """How many of the numbers called so are ranked."""
        return self._numbers[name].numel() if self._within is None else int(self._within[name].sum())

    def cut(self, names: Sequence[str], count: int) -> Cut:
        """What keeps the `count` largest of those called `names` together."""
        if count == 0:
            return NOTHING
        if count >= sum(map(self.available, names)):
            return EVERYTHING
        return self._cut(names, count)

    def _cut(self, names: Sequence[str], count: int) -> Cut:
        if self._are_few(names):
            keys = torch.cat([keys.cpu() for name in names for keys in self._keys(name)])
            ranked = keys[keys != _UNRANKED]
            threshold = int(ranked.kthvalue(len(ranked) - count + 1).values)
            return Cut(threshold, count - int((ranked > threshold).sum()))
        above: int | None = None  # the digits found so far
        for shift in range(self._bits - _DIGIT, -1, -_DIGIT):
            histogram = self._histogram(names, shift, above)
            at_least = histogram.flip(0).cumsum(0).flip(0)  # how many are in a bin or in a higher one
            place = int((at_least >= count).nonzero()[-1])
            count -= int(at_least[place] - histogram[place])
            above = place - _BINS // 2 if above is None else above << _DIGIT | place
        assert above is not None
        return Cut(above, count)

    def _are_few(self, names: Sequence[str]) -> bool:
        """Whether these may be looked at together: histograms of a few take longer."""
        numbers = [self._numbers[name] for name in names]
        return sum(each.numel() for each in numbers) <= _CHUNK and not any(map(is_spread, numbers))

    def kept(self, name: str, cut: Cut) -> tuple[Tensor, int]:
        """(bool, whole, on the CPU: what a cut keeps of those called so; how many at the threshold these are)."""
        numbers = self._numbers[name]
        codes = torch.zeros(part(numbers).numel(), dtype=torch.uint8, device=part(numbers).device)
        for keys, place in zip(self._keys(name), torch.split(codes, _CHUNK), strict=False):  # none of an empty part
            place.copy_(keys >= cut.threshold).add_(keys > cut.threshold)
        everything = whole(codes.reshape(part(numbers).shape), numbers).cpu().contiguous()
        kept = everything == 2
        tied = (everything.flatten() == 1).nonzero().flatten()[: cut.at_threshold]
        kept.view(-1)[tied] = True
        return kept, len(tied)

    def count_to_reach(self, names: Sequence[str]) -> int:
        """How many of the largest have at least one of each of `names` that has any, ties going to the earlier ones."""
        best = [(self._cut([name], 1).threshold, -place) for place, name in enumerate(names) if self.available(name)]
        lowest, last = min(best, default=(_UNRANKED, 0))
        cuts = [Cut(lowest, self.available(name) if place < -last else 0) for place, name in enumerate(names)]
        return sum(int(self.kept(name, cut)[0].sum()) for name, cut in zip(names, cuts, strict=True)) + len(best[:1])

    def _keys(self, name: str) -> Iterator[Tensor]:
        """The numbers of this process's part, as int64 [at most _CHUNK] in their order; `_UNRANKED` if so."""
        numbers = self._numbers[name]
        values = part(numbers.detach()).flatten()
        ranked = None if self._within is None else part_like(self._within[name], numbers).flatten().to(values.device)
        for begin in range(0, len(values), _CHUNK):
            piece = values[begin : begin + _CHUNK]
            if self._magnitudes:
                piece = piece.abs()
            # + 0: -0.0 is 0.0, and what arithmetic takes for 0 here (denormals, in a training) is 0 as well
            if self._bits == 32:
                keys = (piece.float() + 0).view(torch.int32).long()
            else:
                keys = (piece.double() + 0).view(torch.int64)
            below_0 = keys >> 63  # all bits, or none
            keys ^= below_0 & ((1 << (self._bits - 1)) - 1)  # the larger its magnitude, the lower it is
            yield keys if ranked is None else keys.masked_fill_(~ranked[begin : begin + _CHUNK], _UNRANKED)

    def _histogram(self, names: Sequence[str], shift: int, above: int | None) -> Tensor:
        """int64 [_BINS]: what is ranked, by the digit at `shift`, of those whose higher digits are `above`.

        The highest digit (`above` is None) has the sign: its bins begin with the lowest.
        """
        total = torch.zeros(_BINS, dtype=torch.int64)
        # One sum for parameters that lie in the same processes.
        by_groups: dict[tuple[torch.device, tuple[ProcessGroup, ...]], Tensor] = {}
        for name in names:
            numbers = self._numbers[name]
            device = part(numbers).device
            counts = by_groups.setdefault(
                (device, groups_of(numbers)), torch.zeros(_BINS, dtype=torch.int64, device=device)
            )
            for keys in self._keys(name):
                if above is None:
                    digits = (keys[keys != _UNRANKED] >> shift) + _BINS // 2
                else:  # nothing ranked begins as _UNRANKED does
                    digits = keys[keys >> (shift + _DIGIT) == above] >> shift & (_BINS - 1)
                counts += digits.bincount(minlength=_BINS)
        for (_, groups), counts in by_groups.items():
            total += summed(counts, groups).cpu()
        return total

    def _require_numbers(self) -> None:
        for name, numbers in self._numbers.items():
            strange = part(numbers.detach()).isnan().sum().reshape(1)
            if int(summed(strange, groups_of(numbers))):
                raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
