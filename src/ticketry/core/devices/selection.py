"""The largest magnitudes among parameters in parts, exact to the element, without gathering one.

Magnitudes that are not negative are ordered as their bits are. So the threshold is found digit by digit, 16 bits a
round, from a histogram that all processes add up: 512 KB a round, two rounds in 32 bits and four in 64. What is then
gathered is a byte for each weight, a parameter at a time: below, at, or above the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ticketry.core.devices.parts import groups_of, part, part_like, summed, whole
from ticketry.errors import MaskError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_DIGIT = 16
"""Bits looked at in a round."""
_BINS = 1 << _DIGIT
_CHUNK = 1 << 20
"""Weights looked at together: what bounds the memory beside the parameters."""
_SHORT = (torch.float32, torch.bfloat16, torch.float16)
"""Types whose magnitudes float32 has exactly."""


@dataclass(frozen=True)
class Cut:
    """What a ranking keeps: all above a threshold, and some of those at it."""

    threshold: int
    """As the bits of a magnitude."""
    at_threshold: int
    """How many at the threshold are kept: the first, in the order of parameters and positions."""


EVERYTHING = Cut(-1, 0)
NOTHING = Cut(torch.iinfo(torch.int64).max, 0)


class Ranking:
    """Parameters whose weights are ranked by magnitude. All processes that have parts of them make it and call it."""

    def __init__(self, parameters: dict[str, Tensor], within: dict[str, Tensor] | None) -> None:
        """`within`: name -> bool, whole: only these weights are ranked."""
        self._parameters = parameters
        self._within = within
        self._bits = 32 if all(each.dtype in _SHORT for each in parameters.values()) else 64
        self._require_numbers()

    def available(self, name: str) -> int:
        """How many weights of a parameter are ranked."""
        return self._parameters[name].numel() if self._within is None else int(self._within[name].sum())

    def cut(self, names: Sequence[str], count: int) -> Cut:
        """What keeps the `count` largest of the parameters `names` together."""
        if count == 0:
            return NOTHING
        if count >= sum(map(self.available, names)):
            return EVERYTHING
        above = 0  # the digits found so far
        for shift in range(self._bits - _DIGIT, -1, -_DIGIT):
            histogram = self._histogram(names, shift, above)
            at_least = histogram.flip(0).cumsum(0).flip(0)  # how many are in a bin or in a higher one
            digit = int((at_least >= count).nonzero()[-1])
            count -= int(at_least[digit] - histogram[digit])
            above = (above << _DIGIT) | digit
        return Cut(above, count)

    def kept(self, name: str, cut: Cut) -> tuple[Tensor, int]:
        """(bool, whole, on the CPU: what a cut keeps of a parameter; how many at the threshold these are)."""
        parameter = self._parameters[name]
        codes = torch.zeros(part(parameter).numel(), dtype=torch.uint8, device=part(parameter).device)
        for keys, place in zip(self._keys(name), torch.split(codes, _CHUNK), strict=False):  # none of an empty part
            place.copy_(keys >= cut.threshold).add_(keys > cut.threshold)
        everything = whole(codes.reshape(part(parameter).shape), parameter).cpu().contiguous()
        kept = everything == 2
        tied = (everything.flatten() == 1).nonzero().flatten()[: cut.at_threshold]
        kept.view(-1)[tied] = True
        return kept, len(tied)

    def _keys(self, name: str) -> Iterator[Tensor]:
        """The magnitudes of this process's part in order, as int64 [at most _CHUNK]; -1 for what is not ranked."""
        parameter = self._parameters[name]
        values = part(parameter.detach()).flatten()
        ranked = None if self._within is None else part_like(self._within[name], parameter).flatten().to(values.device)
        for begin in range(0, len(values), _CHUNK):
            piece = slice(begin, begin + _CHUNK)
            if self._bits == 32:
                keys = values[piece].abs().float().view(torch.int32).long()
            else:
                keys = values[piece].abs().double().view(torch.int64)
            yield keys if ranked is None else keys.masked_fill(~ranked[piece], -1)

    def _histogram(self, names: Sequence[str], shift: int, above: int) -> Tensor:
        """int64 [_BINS]: ranked weights by the digit at `shift`, of those whose higher digits are `above`."""
        total = torch.zeros(_BINS, dtype=torch.int64)
        # One sum for parameters that lie in the same processes.
        by_groups: dict[tuple[torch.device, tuple[ProcessGroup, ...]], Tensor] = {}
        for name in names:
            parameter = self._parameters[name]
            device = part(parameter).device
            counts = by_groups.setdefault(
                (device, groups_of(parameter)), torch.zeros(_BINS, dtype=torch.int64, device=device)
            )
            for keys in self._keys(name):
                # -1 has no digits of a magnitude: shifted, it stays -1
                digits = keys[(keys >= 0) & (keys >> shift >> _DIGIT == above)] >> shift & _BINS - 1
                counts += digits.bincount(minlength=_BINS)
        for (_, groups), counts in by_groups.items():
            total += summed(counts, groups).cpu()
        return total

    def _require_numbers(self) -> None:
        for name, parameter in self._parameters.items():
            strange = part(parameter.detach()).isnan().sum().reshape(1)
            if int(summed(strange, groups_of(parameter))):
                raise MaskError(f"the scores of {name!r} are not all numbers (NaN)")
