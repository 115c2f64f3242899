"""Positions in training, written as ``500it``, ``2ep``, ``3%``, ``0`` or ``end``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ticketry.errors import UsageError

_PATTERN = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,18})?)\s*(?P<unit>it|ep|%)")


@dataclass(frozen=True)
class Step:
    """A position in training, given by a number of iterations, of epochs, or of per cent of the whole training.

    `at` converts the position to a number of iterations, given the length of training.

    Examples:
        >>> tk.Step.parse("3%").at(total=1000, per_epoch=100)
        30
        >>> tk.Step.parse("2ep").at(total=1000, per_epoch=100)
        200
        >>> tk.Step.parse("2ep").iterations(per_epoch=100)
        200
        >>> str(tk.Step.parse("end"))
        '100%'
        >>> tk.Step.parse("500")
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: '500' is not a point in training: write 500it, 2ep, 3%, 0 or end
    """

    value: Fraction
    """Number of units, as an exact fraction, so that 0.1 % has no rounding error."""
    unit: str
    """``it`` (iterations), ``ep`` (epochs) or ``%`` (of the whole training)."""

    def __post_init__(self) -> None:
        if self.unit not in ("it", "ep", "%"):
            raise UsageError(f"the unit of a step must be it, ep or %, got {self.unit!r}")
        if self.value < 0:
            raise UsageError(f"a step cannot be negative: {self.value}{self.unit}")
        if self.unit == "it" and self.value.denominator != 1:
            raise UsageError(f"an iteration is a whole number, not {float(self.value)}")
        if self.unit == "%" and self.value > 100:
            raise UsageError(f"a share of training is at most 100%, not {float(self.value):g}%")

    @classmethod
    def parse(cls, text: str | Step) -> Step:
        """Parse ``500it``, ``2ep``, ``0.5ep``, ``3%``, ``0`` or ``end`` (= ``100%``).

        Args:
            text: the text; a `Step` is returned unchanged.

        Raises:
            UsageError: for other text. A bare number other than 0 is refused, because its unit is unclear.
        """
        return text if isinstance(text, Step) else _parse_position(text)

    def at(self, *, total: int, per_epoch: int, of: str = "") -> int:
        """Return the number of iterations before this position; halves are rounded up.

        Args:
            total: iterations of the whole training.
            per_epoch: iterations of an epoch.
            of: name of the setting that has this value, for the error message.

        Raises:
            UsageError: if the position is later than the end of training.
        """
        iteration = self.iterations(per_epoch=per_epoch, total=total)
        if iteration > total:
            named = f"{of} {self}".strip()
            raise UsageError(f"{named} is iteration {iteration}, beyond the end of training at {total}")
        return iteration

    def iterations(self, *, per_epoch: int, total: int | None = None) -> int:
        """Return the number of iterations before this position, even if it is later than the end of training.

        Args:
            per_epoch: iterations of an epoch.
            total: iterations of the whole training; required for a percentage.

        Raises:
            UsageError: for a percentage without `total`.
        """
        if self.unit == "it":
            return int(self.value)
        if self.unit == "ep":
            return _round_half_up(self.value * per_epoch)
        if total is None:
            raise UsageError(f"{self} is a share of a length that is not given: write iterations (it) or epochs (ep)")
        return _round_half_up(self.value * total / 100)

    def scaled(self, factor: Fraction, *, per_epoch: int) -> Step:
        """Return the corresponding position of a training that is `factor` times as long.

        A percentage stays the same; other positions are returned in iterations.

        Args:
            factor: the new length of training / the old length, as an exact fraction.
            per_epoch: iterations of an epoch.

        Examples:
            >>> from fractions import Fraction
            >>> str(tk.Step.parse("2ep").scaled(Fraction(1, 2), per_epoch=100))
            '100it'
        """
        if self.unit == "%":
            return self
        value = self.value * (per_epoch if self.unit == "ep" else 1) * factor
        return Step(Fraction(_round_half_up(value)), "it")

    def __str__(self) -> str:
        if self.value.denominator == 1:
            return f"{self.value.numerator}{self.unit}"
        denominator = self.value.denominator
        digits = next((count for count in range(denominator.bit_length()) if 10**count % denominator == 0), None)
        if digits is None:  # such as 1/3; parsed steps are finite decimals
            return f"{float(self.value)!r}{self.unit}"
        scaled = str(self.value.numerator * 10**digits // denominator).rjust(digits + 1, "0")
        return f"{scaled[:-digits]}.{scaled[-digits:]}{self.unit}"


@lru_cache(maxsize=1024)  # learning-rate schedules call this at every step
def _parse_position(text: str) -> Step:
    cleaned = str(text).strip().lower()
    if cleaned == "end":
        return Step(Fraction(100), "%")
    if cleaned == "0":
        return Step(Fraction(0), "it")
    match = _PATTERN.fullmatch(cleaned)
    if match is None:
        raise UsageError(f"{text!r} is not a point in training: write 500it, 2ep, 3%, 0 or end")
    return Step(Fraction(match["number"]), match["unit"])


def _round_half_up(value: Fraction) -> int:
    return int(value + Fraction(1, 2))
