"""Points in training, written as the field writes them: ``500it``, ``2ep``, ``3%``, ``0``, ``end``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from ticketry.errors import UsageError

_PATTERN = re.compile(r"(?P<number>\d{1,18}(?:\.\d{1,18})?)\s*(?P<unit>it|ep|%)")


@dataclass(frozen=True)
class Step:
    """A point in training: an iteration, an epoch or a share of the whole.

    An epoch and a share become an iteration only where the length of training is known, see `at`.

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
    """How many of the unit; exact, so that 0.1 % is 0.1 %."""
    unit: str
    """``it`` (iterations), ``ep`` (epochs) or ``%`` (of the whole training)."""

    def __post_init__(self) -> None:
        if self.unit not in ("it", "ep", "%"):
            raise UsageError(f"a step is counted in it, ep or %, not in {self.unit!r}")
        if self.value < 0:
            raise UsageError(f"a step cannot be negative: {self.value}{self.unit}")
        if self.unit == "it" and self.value.denominator != 1:
            raise UsageError(f"an iteration is a whole number, not {float(self.value)}")
        if self.unit == "%" and self.value > 100:
            raise UsageError(f"a share of training is at most 100%, not {float(self.value):g}%")

    @classmethod
    def parse(cls, text: str | Step) -> Step:
        """Read ``500it``, ``2ep``, ``0.5ep``, ``3%``, ``0`` or ``end`` (= ``100%``).

        Args:
            text: what is read; a step is given back as it is.

        Raises:
            UsageError: for anything else; a bare number other than 0 is refused because it could mean any unit.
        """
        return text if isinstance(text, Step) else _parse_text(text)

    def at(self, *, total: int, per_epoch: int, of: str = "") -> int:
        """The iteration this is, rounded half up, in a training of `total` iterations, `per_epoch` an epoch.

        Args:
            of: the setting that it is the value of, for the error.

        Raises:
            UsageError: if it lies beyond the end of training.
        """
        iteration = self.iterations(per_epoch=per_epoch, total=total)
        if iteration > total:
            named = f"{of} {self}".strip()
            raise UsageError(f"{named} is iteration {iteration}, beyond the end of training at {total}")
        return iteration

    def iterations(self, *, per_epoch: int, total: int | None = None) -> int:
        """The number of iterations, with no bound; a share needs the `total` that it is a share of.

        Args:
            per_epoch: iterations of an epoch.
            total: iterations of the whole training; needed for a share of it.

        Raises:
            UsageError: for a share without a total.
        """
        if self.unit == "it":
            return int(self.value)
        if self.unit == "ep":
            return _round_half_up(self.value * per_epoch)
        if total is None:
            raise UsageError(f"{self} is a share of a length that is not given: write iterations (it) or epochs (ep)")
        return _round_half_up(self.value * total / 100)

    def scaled(self, factor: Fraction, *, per_epoch: int) -> Step:
        """The same point of a training that is `factor` times as long: a share stays, others in whole iterations.

        Args:
            factor: how many times as long; exact.
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
        digits = _decimal_places(self.value.denominator)
        if digits is None:  # only a Step made in code can be such a fraction; a parsed one is a finite decimal
            return f"{float(self.value)!r}{self.unit}"
        scaled = str(self.value.numerator * 10**digits // self.value.denominator).rjust(digits + 1, "0")
        return f"{scaled[:-digits]}.{scaled[-digits:]}{self.unit}"


@lru_cache(maxsize=1024)  # learning rates are functions of the step, and ask at every one of them
def _parse_text(text: str) -> Step:
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


def _decimal_places(denominator: int) -> int | None:
    """How many decimals write 1/denominator exactly, or None if no number of them does."""
    twos = fives = 0
    while denominator % 2 == 0:
        denominator //= 2
        twos += 1
    while denominator % 5 == 0:
        denominator //= 5
        fives += 1
    return max(twos, fives) if denominator == 1 else None
