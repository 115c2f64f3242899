"""Kinds of numbers that results are declared with, and the base of their parts."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

LARGEST = 1e30
"""Beyond it, a number is a mistake; below it, no sum or square overflows."""
LARGEST_COUNT = 10**18

Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""Finite."""
Positive = Annotated[float, Meta(gt=0, le=LARGEST, extra={"problem": "not more than 0"})]
NotNegative = Annotated[float, Meta(ge=0, le=LARGEST, extra={"problem": "is less than 0"})]
Density = Annotated[float, Meta(gt=0, le=1, extra={"problem": "which does not lie in (0, 1]"})]
"""Fraction kept."""
Share = Annotated[float, Meta(ge=0, le=1, extra={"problem": "which does not lie in [0, 1]"})]
NearShare = Annotated[float, Meta(ge=-1e-9, le=1 + 1e-9, extra={"problem": "which is no share"})]
"""A share up to rounding: `share` puts it into [0, 1]."""
Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
AtLeastOne = Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]


class Part(msgspec.Struct, frozen=True):
    """A part of a record. Fields that are not known are ignored when it is read."""
