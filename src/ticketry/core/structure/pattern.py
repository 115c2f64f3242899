"""Patterns of masks, and kinds of structured masks, as plain data; this module does not import torch.

A `Pattern` says which weights are retained or removed together: single weights, blocks of rows, whole rows, or N of
every M inputs. It means the same in `allocate`, in `prune`, for gates, in penalties, and as an option of searches. A
`Structuring` says how a structured mask is derived from an unstructured mask, and `LayerFit` how well the two fit.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

from ticketry.budgets.units import CHANNELS
from ticketry.choices import check_choice, format_value, list_choices
from ticketry.errors import UsageError

if TYPE_CHECKING:  # torch comes late: settings and the command line's help need the words alone
    from ticketry.core.structure.layout import Blocks, Layout


Distribution = Literal["global", "layerwise", "uniform", "erk"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


SHARES = frozenset(("density", "densities", "sparsity", "control_densities", "at", "flops"))
"""Names of settings and options whose value is a fraction, which users may write as a percentage, such as ``10%``."""


def parse_share(value: object, name: str = "") -> float:
    """Return a fraction as a number; the fraction may be written as 0.1, ``"0.1"`` or ``"10%"``."""
    if not isinstance(value, bool) and isinstance(value, Real | Decimal):
        return value  # type: ignore[return-value]
    if isinstance(value, str):
        text = value.strip()
        with suppress(ValueError, ArithmeticError):
            # In decimals, because 64.3 / 100 as floats is not 0.643.
            return float(Decimal(text[:-1]) / 100) if text.endswith("%") else float(text)
    raise UsageError(f"{name and name + ': '}{format_value(value)} is no share: write it as 0.1 or as 10%")


def check_density(density: float | str | None = None, sparsity: float | str | None = None) -> float:
    """Return the density as a number in (0, 1], given either the density or the sparsity."""
    if (density is None) == (sparsity is None):
        raise UsageError("give either density= (fraction kept) or sparsity= (fraction removed), and only one of them")
    if density is None:
        assert sparsity is not None
        removed = parse_share(sparsity, "sparsity")
        if not 0 <= removed < 1:
            raise UsageError(
                f"a sparsity is the fraction of weights removed, 0 <= sparsity < 1, not {_format_share(sparsity)}"
                f"{_hint_at_percentage(removed)}"
            )
        return float(1 - Fraction(str(removed)))  # exact in decimal digits: 1 - 0.9 as floats is not 0.1
    kept = parse_share(density, "density")
    if not 0 < kept <= 1:
        raise UsageError(
            f"a density is the fraction of weights kept, 0 < density <= 1, not {_format_share(density)}"
            f"{_hint_at_percentage(kept)}"
        )
    return kept


def parse_share_option(name: str, value: float | str) -> float:
    """Return the fraction `value`, given for the option `name`, as a number; raise `UsageError` if out of range."""
    if name == "sparsity":
        check_density(sparsity=value)
        return parse_share(value)
    if name == "flops":
        if not 0 < parse_share(value) <= 1:
            raise UsageError(
                "flops is the share of the dense network's multiplications that is left, 0 < flops <= 1, not"
                f" {_format_share(value)}{_hint_at_percentage(parse_share(value))}"
            )
        return parse_share(value)
    return check_density(value)


def _format_share(value: float | str) -> str:
    return value if isinstance(value, str) else format_value(value)


def _hint_at_percentage(share: float) -> str:
    """Return a hint for an error message if a fraction above 1 was probably meant as a percentage, else ""."""
    return f": {share:g} %? write {share:g}% or {share / 100:g}" if 1 < share <= 100 else ""


def count_retained(density: float, total: int) -> int:
    """Return `density * total`, rounded half up; computed with the density's decimal digits, without float errors."""
    return int(Fraction(str(density)) * total + Fraction(1, 2))


def check_layer_minimum_option(count: int) -> int:
    """Return `count`, the smallest number of weights of each layer; raise `UsageError` unless it is an int >= 0."""
    if not isinstance(count, int) or count < 0:
        raise UsageError(f"keep_at_least is a number of weights, 0 or more, not {count}")
    return count


def check_collapse(collapse: str) -> str:
    """Return `collapse`, the action for layers left empty; raise `UsageError` unless it is raise or keep."""
    if collapse not in ("raise", "keep"):
        raise UsageError(f"collapse is raise or keep, not {collapse!r}")
    return collapse


def parse_layer_minimum(collapse: str, keep_at_least: int) -> int:
    """Return the smallest number of weights that each layer retains: `keep_at_least`, with ``collapse="keep"`` >= 1."""
    least = 1 if check_collapse(collapse) == "keep" else 0
    return max(check_layer_minimum_option(keep_at_least), least)


def check_distribution(distribution: str) -> str:
    """Return `distribution`; raise `UsageError` if it is not in `DISTRIBUTIONS`."""
    check_choice("distribution", distribution, DISTRIBUTIONS)
    return distribution


UNSTRUCTURED = "unstructured"
POSSIBLE = (
    "unstructured, channel (whole rows: filters, neurons), Rx1 such as 4x1 or 16x1 (R rows that are neighbours, at one"
    " column), N:M such as 2:4 (N of every M inputs)"
)


def parse_n_of_m(text: str) -> tuple[int, int] | None:
    """Return N and M of a text such as ``2:4``, where 1 <= N < M; None for any other text."""
    match = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
    return (int(match[1]), int(match[2])) if match and int(match[1]) < int(match[2]) else None


@dataclass(frozen=True)
class Pattern:
    """A pattern of masks: states which weights are retained or removed together.

    A weight is viewed as rows (one per output) times columns (one per input and kernel position).

    - ``unstructured``: single weights.
    - ``4x1`` (or any other number from 2 on): blocks of 4 neighbouring rows (0-3, 4-7, …) at one column. The 4 rows
      then retain the same columns, so they are a group of `structure.groups`. The last block may have fewer rows.
      Blocks do not cross the groups of a grouped convolution; in a depthwise convolution they are single weights.
    - ``channel``: whole rows, that is, filters or neurons of one layer. They differ from the coupled channels of
      `structure.channels`, which include bias, norm and the inputs of later layers.
    - ``2:4`` (or any other N:M with N < M): at most 2 of every 4 neighbouring inputs (0-3, 4-7, …) of one row at one
      kernel position. If the number of inputs is no multiple of M, the last inputs may retain N too.

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
        >>> str(blocks.require_blocks("gates"))
        '4x1'
        >>> two_of_four.check_density(0.75)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: pattern 2:4 keeps at most 2 of 4 weights, a density of 0.5, and 0.75 is ...
    """

    text: str = UNSTRUCTURED
    """The pattern as users write it."""
    rows: int = 1
    """Number of rows of a block: R of Rx1, otherwise 1."""
    whole_rows: bool = False
    """Whether a block contains all columns of its row (``channel``)."""
    n: int = 0
    """N of an N:M pattern: largest number of weights retained of `m`; 0 for other patterns."""
    m: int = 0
    """M of an N:M pattern: number of neighbouring inputs, `n` of them retained; 0 for other patterns."""

    @classmethod
    def parse(cls, text: str | Pattern) -> Pattern:
        """Parse the text of a pattern; return an argument that is a `Pattern` already unchanged.

        Args:
            text: ``unstructured``, ``channel``, ``4x1``, ``2:4`` …

        Raises:
            UsageError: for any other text.
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
        if ratio := parse_n_of_m(text):
            return cls(text, n=ratio[0], m=ratio[1])
        raise UsageError(f"pattern {text!r} is not known: {POSSIBLE}")

    def __str__(self) -> str:
        return self.text

    @property
    def unstructured(self) -> bool:
        """Whether weights are retained or removed one by one."""
        return self.text == UNSTRUCTURED

    @property
    def blocks_of_rows(self) -> bool:
        """Whether weights are retained or removed in blocks, as for the patterns Rx1 and ``channel``."""
        return self.rows > 1 or self.whole_rows

    @property
    def densest(self) -> float:
        """Largest density of a mask: n / m, which a shorter last run may exceed slightly; 1 if not N:M."""
        return self.n / self.m if self.m else 1.0

    def require_blocks(self, of: str) -> Pattern:
        """Return the pattern itself; raise `UsageError` if it is N:M, which has no blocks.

        Args:
            of: what needs blocks, such as "gates"; the error message begins with it.
        """
        if self.m:
            raise UsageError(
                f"{of} need weights that go together, and of pattern {self} any {self.n} of {self.m} may stay: choose"
                " unstructured, Rx1 or channel"
            )
        return self

    def check_density(self, density: float | str | None = None, sparsity: float | str | None = None) -> float:
        """Return the density as a number, given a density or a sparsity; for N:M the default is n / m.

        Args:
            density: fraction retained.
            sparsity: fraction removed, instead of `density`.

        Raises:
            UsageError: for an invalid density, or a density above the largest of the pattern.
        """
        if self.m and density is None and sparsity is None:
            return self.densest
        found = check_density(density, sparsity)
        if found > self.densest and not self.is_densest(found):
            raise UsageError(
                f"pattern {self} keeps at most {self.n} of {self.m} weights, a density of {self.densest:.4g},"
                " and"
                f" {found:g} is asked for: ask for {self.densest:.4g} or less"
            )
        return found

    def is_densest(self, density: float) -> bool:
        """Return whether this is an N:M pattern and `density` is n / m, up to rounding (0.333333)."""
        return bool(self.m) and math.isclose(density, self.densest, rel_tol=1e-5)

    def blocks(self, shape: tuple[int, ...], layout: Layout | None = None) -> Blocks:
        """Return the division of a weight into blocks.

        Args:
            shape: shape of the weight.
            layout: output and input dimensions of the weight, see `layout.layouts`; by default outputs come first.

        Raises:
            UsageError: for N:M, which has no blocks.
        """
        from ticketry.core.structure.layout import Blocks, Layout

        self.require_blocks("blocks")
        return Blocks(self.text, self.rows, self.whole_rows, shape, layout or Layout())


CHANNEL_KINDS = ("refill", "refill+", CHANNELS)
KINDS = (*CHANNEL_KINDS, "regroup", "2:4")
PLUS = 0.2
"""Default fraction of the dropped channels that refill+ retains in addition.

The paper does not state this fraction; the densities 32.84 % and 46.41 % of the two networks in its table imply it.
"""
REGROUP_METHODS = ("similarity", "hypergraph", "paper", "random")
COUPLINGS = ("agree", "inner")
_KINDS_WITH_OPTION = {
    "plus": ("refill+",),
    "match": ("refill+",),
    "score": CHANNEL_KINDS,
    "coupled": ("refill", "refill+"),
    "rows": ("regroup",),
    "method": ("regroup",),
    "collapse": ("regroup",),
    "density": ("refill+", "regroup", "channels"),
}
"""Option -> kinds of structure that have the option."""
_ROUNDING = 1e-9
"""Rounding error by which a fraction may be outside [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Structuring:
    """How to derive a structured mask: the kind of structure and its options."""

    kind: str
    """Kind of structure.

    refill: as many whole channels as the layer's retained weights would fill; refill+: some more of them; channels:
    whole channels, chosen by score alone; regroup: groups of rows with the same columns; N:M such as 2:4: N of every M
    consecutive weights.
    """
    plus: float = 0.0
    """For refill+: fraction of the channels dropped by refill that is retained in addition; 0 stands for `PLUS`."""
    match: bool = False
    """For refill+, instead of `plus`: retain so many channels that the density is that of the unstructured mask."""
    score: str = "l1"
    """For refill, refill+ and channels: the score that ranks channels."""
    coupled: str = "agree"
    """For refill and refill+: agree (coupled channels go together), or inner (only channels of a single layer go)."""
    rows: int = 16
    """For regroup: number of rows of a group."""
    method: str = "similarity"
    """For regroup: how rows are grouped, see `regroup`."""
    collapse: str = "raise"
    """For regroup: what to do if a layer has too few weights for a column in each group: raise, or keep some groups."""
    density: float | None = None
    """Target density; None means the density of the unstructured mask, or for refill+ what `plus` or `match` give."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers whose mask is unchanged; whole-channel kinds retain all channels of these layers."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS and self.n_of_m is None:
            raise UsageError(
                f"structure {self.kind!r} is not known: {list_choices(self.kind, KINDS)} (or another N:M, 1 <= N < M)"
            )
        for option, kinds in _KINDS_WITH_OPTION.items():
            if self.kind not in kinds and getattr(self, option) != getattr(type(self), option):
                raise UsageError(f"{option} is an option of {' and '.join(kinds)}, not of {self.kind}: leave it out")
        if not 0 <= self.plus <= 1:
            raise UsageError(f"plus is a share of the dropped channels, 0 < plus <= 1, not {self.plus:g}")
        if self.rows < 1:
            raise UsageError(f"rows of a group must be at least 1, not {self.rows}")
        check_choice("method", self.method, REGROUP_METHODS)
        if self.coupled not in COUPLINGS:
            raise UsageError(f"coupled channels {' or '.join(COUPLINGS)}, not {self.coupled!r}")
        check_collapse(self.collapse)
        if self.density is not None:
            check_density(self.density)
        if (self.plus > 0) + self.match + (self.kind == "refill+" and self.density is not None) > 1:
            raise UsageError("plus, match and density each say how many channels refill+ fills back: give one of them")

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """N and M if this is an N:M structure; None for any other kind."""
        return parse_n_of_m(self.kind)

    @property
    def whole_channels(self) -> bool:
        """Whether masks of this kind remove whole channels, which `shrink` can take out."""
        return self.kind in CHANNEL_KINDS

    @property
    def share(self) -> float:
        """Fraction of the emptied channels that are filled in addition: for refill+ the field `plus` or its default.

        It is 0 for other kinds, and if channels are filled until a density is met.
        """
        met = self.kind != "refill+" or self.match or self.density is not None
        return 0.0 if met else self.plus or PLUS

    def describe(self) -> dict[str, Any]:
        """Return the kind and its options as JSON values."""
        options = {option: getattr(self, option) for option, kinds in _KINDS_WITH_OPTION.items() if self.kind in kinds}
        options |= {"plus": self.share} if "plus" in options else {}
        return {"kind": self.kind, **options, **({"spare": list(self.spare)} if self.spare else {})}

    def __str__(self) -> str:
        """Return a short description, such as ``regroup, 16 rows``."""
        more = {
            "refill+": f", {100 * self.share:g} % more" if self.share else ", density met",
            "regroup": f", {self.rows} rows" + (f", {self.method}" if self.method != "similarity" else ""),
        }
        return self.kind + more.get(self.kind, "")


@dataclass(frozen=True)
class LayerFit:
    """How well a structured mask fits an unstructured mask, for one layer or for all layers; fractions are in [0, 1].

    Examples:
        >>> model = nn.Linear(4, 2, bias=False)
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False, False, False], [False, True, False, False]])})
        >>> both = tk.Mask({"weight": torch.tensor([[True, True, False, False], [True, True, False, False]])})
        >>> fit = tk.structure.coverage(model, mask, both, null=False)["weight"]
        >>> fit.coverage, fit.fill, fit.groups, fit.as_json()["rows_per_group"]
        (1.0, 0.5, 1, 2)
    """

    name: str
    """Name of the weight."""
    rows: int
    """Number of outputs of the layer."""
    columns: int
    """Number of weights of each output: input channels times kernel height times kernel width."""
    groups: int
    """Number of groups of rows that retain the same columns, without the group of empty rows."""
    rows_per_group: int
    """Median number of rows in a row's group, over all rows that are not empty; 1 if no rows share their columns."""
    density_before: float
    """Fraction of the layer that the unstructured mask retains."""
    density_after: float
    """Fraction of the layer that the structured mask retains."""
    coverage: float
    """Fraction of `magnitude` that the structured mask retains; 1 if `magnitude` is 0."""
    fill: float
    """Fraction of the weights retained by the structured mask that the unstructured mask removes."""
    magnitude: float
    """Sum of |w| over the weights that the unstructured mask retains."""
    null_coverage: float | None = None
    """Coverage that the same procedure reaches on shuffled columns, without common structure; None if not measured."""
    random_coverage: float | None = None
    """Coverage of random groups of rows, with columns chosen for these groups; None if not measured."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.groups, self.rows_per_group) < 0:
            raise ValueError(f"rows, columns or groups of {self.name} are below 0")
        for name in ("density_before", "density_after", "coverage", "fill", "null_coverage", "random_coverage"):
            if (value := getattr(self, name)) is not None:
                if not -_ROUNDING <= value <= 1 + _ROUNDING:
                    raise ValueError(f"{name} is {value:g}, which is no share")
                object.__setattr__(self, name, min(max(value, 0.0), 1.0))

    def as_json(self) -> dict[str, str | int | float | None]:
        """Return a dictionary of all fields, by name."""
        return asdict(self)
