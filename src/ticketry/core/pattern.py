"""What is asked of a mask, as words and numbers: how much is kept, how it is spread, and what goes together.

Single weights go, blocks of rows, whole rows, or n of every m inputs: a pattern is a word for a shape of mask that
hardware can use, the same wherever masks are made: in `allocate` and `prune`, on gates, in penalties, and as
``--pattern`` of searches. Needs no torch.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Literal, get_args

from ticketry.choices import check_choice, format_value
from ticketry.errors import UsageError

if TYPE_CHECKING:  # torch comes late: settings and the command line's help need the words alone
    from ticketry.core.layout import Blocks, Layout

Distribution = Literal["global", "layerwise", "uniform", "erk"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


SHARES = frozenset(("density", "densities", "sparsity", "control_densities", "at", "flops"))
"""Names of settings and options that are densities, sparsities or shares of a cost, so that they may be written as
``10%``."""


def share_of(value: object, name: str = "") -> float:
    """A share as a number: 0.1, ``"0.1"`` and ``"10%"`` are the same.

    Args:
        value: the share.
        name: what the message calls it.

    Raises:
        UsageError: for what is neither a number nor a percentage.
    """
    if not isinstance(value, bool) and isinstance(value, Real | Decimal):
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        text = value.strip()
        with suppress(ValueError, ArithmeticError):
            # Of decimals: 64.3 / 100 as floats is not 0.643.
            return float(Decimal(text[:-1]) / 100) if text.endswith("%") else float(text)
    raise UsageError(f"{name and name + ': '}{format_value(value)} is no share: write it as 0.1 or as 10%")


def check_density(density: float | str | None = None, sparsity: float | str | None = None) -> float:
    """The density asked for by either word; exactly one must be given, with 0 < density <= 1, or as ``10%``.

    Raises:
        UsageError: otherwise.
    """
    if (density is None) == (sparsity is None):
        raise UsageError("give either density= (fraction kept) or sparsity= (fraction removed), and only one of them")
    if density is None:
        assert sparsity is not None
        removed = share_of(sparsity, "sparsity")
        if not 0 <= removed < 1:
            raise UsageError(
                f"a sparsity is the fraction of weights removed, 0 <= sparsity < 1, not {_said(sparsity)}"
                f"{_percent(removed)}"
            )
        return float(1 - Fraction(str(removed)))  # exact in decimal digits: 1 - 0.9 as floats is not 0.1
    kept = share_of(density, "density")
    if not 0 < kept <= 1:
        raise UsageError(
            f"a density is the fraction of weights kept, 0 < density <= 1, not {_said(density)}{_percent(kept)}"
        )
    return kept


def check_share(name: str, value: float | str) -> float:
    """The value of an option of `SHARES` as a number; raises as `check_density`."""
    if name == "sparsity":
        check_density(sparsity=value)
        return share_of(value)
    if name == "flops":
        if not 0 < share_of(value) <= 1:
            raise UsageError(
                "flops is the share of the dense network's multiplications that is left, 0 < flops <= 1, not"
                f" {_said(value)}{_percent(share_of(value))}"
            )
        return share_of(value)
    return check_density(value)


def _said(value: float | str) -> str:
    return value if isinstance(value, str) else format_value(value)


def _percent(share: float) -> str:
    """What is probably meant by a share above 1."""
    return f": {share:g} %? write {share:g}% or {share / 100:g}" if 1 < share <= 100 else ""


def kept_elements(density: float, total: int) -> int:
    """Elements that `density` keeps of `total`: rounded half up, exact in the density's decimal digits."""
    return int(Fraction(str(density)) * total + Fraction(1, 2))


def check_at_least(count: int) -> int:
    """The number of weights that every layer keeps; `UsageError` if it is below 0."""
    if not isinstance(count, int) or count < 0:
        raise UsageError(f"keep_at_least is a number of weights, 0 or more, not {count}")
    return count


def check_collapse(collapse: str) -> str:
    """The word itself, for what is done where a layer would keep nothing; `UsageError` if it is not known."""
    if collapse not in ("raise", "keep"):
        raise UsageError(f"collapse is raise or keep, not {collapse!r}")
    return collapse


def check_distribution(distribution: str) -> str:
    """The word itself; `UsageError` if it is not known."""
    check_choice("distribution", distribution, DISTRIBUTIONS)
    return distribution


UNSTRUCTURED = "unstructured"
POSSIBLE = (
    "unstructured, channel (whole rows: filters, neurons), Rx1 such as 4x1 or 16x1 (R rows that are neighbours, at one"
    " column), N:M such as 2:4 (N of every M inputs)"
)


def n_of_m(text: str) -> tuple[int, int] | None:
    """N and M of a word such as ``2:4``, 1 <= N < M; None of another word."""
    told = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    return (int(told[1]), int(told[2])) if told and int(told[1]) < int(told[2]) else None


@dataclass(frozen=True)
class Pattern:
    """A pattern of masks. A weight is seen as rows, one for each output, times columns, one for each (input, tap).

    - ``unstructured``: every weight by itself.
    - ``4x1``: blocks of 4 rows that are neighbours (0-3, 4-7, …) at one column; any number from 2 on. So all rows of a
      block of rows keep the same columns, and form a group of `structure.groups`. If the rows are no multiple, the last
      blocks have fewer; in a grouped convolution no block has rows of two groups, which read other inputs (those of a
      depthwise one are single weights).
    - ``channel``: whole rows, the filter or the neuron of one layer. Not the same as coupled channels
      (`structure.channels`): bias, norm and the layers behind keep theirs.
    - ``2:4``: of every 4 inputs that are neighbours (0-3, 4-7, …), at one tap of one row, at most 2; any numbers N < M.
      If the inputs are no multiple, the last ones, fewer than M, may keep N too.

    Examples:
        >>> two_of_four = tk.structure.Pattern.parse("2:4")
        >>> two_of_four.n, two_of_four.m, two_of_four.densest
        (2, 4, 0.5)
        >>> two_of_four.check_density(), two_of_four.is_densest(0.5)
        (0.5, True)
        >>> blocks = tk.structure.Pattern.parse("4x1")
        >>> blocks.rows, blocks.blocks_of_rows, blocks.unstructured
        (4, True, False)
        >>> blocks.blocks((8, 3)).sizes
        tensor([[4, 4, 4],
                [4, 4, 4]])
        >>> str(blocks.check_blocks("gates"))
        '4x1'
        >>> two_of_four.check_density(0.75)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: pattern 2:4 keeps at most 2 of 4 weights, a density of 0.5, and 0.75 is ...
    """

    text: str = UNSTRUCTURED
    """The word."""
    rows: int = 1
    """Rows of a block, of Rx1."""
    whole_rows: bool = False
    """Whether a block has all columns: of ``channel``."""
    n: int = 0
    """Weights that stay, of `m`; 0 for other patterns."""
    m: int = 0
    """Inputs of a block of N:M; 0 for other patterns."""

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """The pattern of a word.

        Args:
            text: the word; a pattern is given back as it is.

        Raises:
            UsageError: for another word, with those that are possible.
        """
        if isinstance(text, Pattern):
            return text
        if text == UNSTRUCTURED:
            return cls()
        if text == "channel":
            return cls(text, whole_rows=True)
        if block := re.fullmatch(r"([1-9]\d*)x1", text):
            if text == "1x1":
                raise UsageError("pattern 1x1 is of single weights: write unstructured")
            return cls(text, rows=int(block[1]))
        if ratio := n_of_m(text):
            return cls(text, n=ratio[0], m=ratio[1])
        raise UsageError(f"pattern {text!r} is not known: {POSSIBLE}")

    def __str__(self) -> str:
        return self.text

    @property
    def unstructured(self) -> bool:
        """Whether every weight is by itself."""
        return self.text == UNSTRUCTURED

    @property
    def blocks_of_rows(self) -> bool:
        """Whether weights go in blocks: Rx1 and ``channel``."""
        return self.rows > 1 or self.whole_rows

    @property
    def densest(self) -> float:
        """The largest density of such a mask: n / m (above it only where inputs are no multiple of m), else 1."""
        return self.n / self.m if self.m else 1.0

    def check_blocks(self, of: str) -> Pattern:
        """The pattern itself; `UsageError` if it is N:M, which has no blocks: `of` says what they are needed for."""
        if self.m:
            raise UsageError(
                f"{of} need weights that go together, and of pattern {self} any {self.n} of {self.m} may stay: choose"
                " unstructured, Rx1 or channel"
            )
        return self

    def check_density(self, density: float | str | None = None, sparsity: float | str | None = None) -> float:
        """The density asked for by either word, see `core.density`; of N:M it may be left out, and is n / m then.

        Args:
            density: fraction kept.
            sparsity: share removed, instead.

        Raises:
            UsageError: for one that is none, or above what the pattern can keep.
        """
        if self.m and density is None and sparsity is None:
            return self.densest
        found = check_density(density, sparsity)
        if found > self.densest and not self.is_densest(found):
            raise UsageError(
                f"pattern {self} keeps at most {self.n} of {self.m} weights, a density of {self.densest:.4g}, and"
                f" {found:g} is asked for: ask for {self.densest:.4g} or less"
            )
        return found

    def is_densest(self, density: float) -> bool:
        """Whether a density of N:M is n / m, by which every m inputs keep n (a decimal need not be exact: 0.333333)."""
        return bool(self.m) and math.isclose(density, self.densest, rel_tol=1e-5)

    def blocks(self, shape: tuple[int, ...], layout: Layout | None = None) -> Blocks:
        """The blocks of a weight of this shape, to pool scores into and to spread decisions from.

        Args:
            layout: where the weight has its outputs; in dimension 0 if left out. See `layout.layouts`.

        Raises:
            UsageError: of N:M, which has none.
        """
        from ticketry.core.layout import Blocks, Layout

        self.check_blocks("blocks")
        return Blocks(self.text, self.rows, self.whole_rows, shape, layout or Layout())
