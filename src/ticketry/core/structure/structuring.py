"""Kinds of structure that an unstructured mask can be turned into, and measures of fit, as plain data. Needs no torch.

`structure.apply` builds the mask, and `structure.coverage` measures the fit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ticketry.budgets.granularity import CHANNELS
from ticketry.choices import check_choice, list_choices
from ticketry.core.structure.pattern import check_collapse, check_density, parse_n_of_m
from ticketry.errors import UsageError

CHANNEL_KINDS = ("refill", "refill+", CHANNELS)
KINDS = (*CHANNEL_KINDS, "regroup", "2:4")
PLUS = 0.2
"""Default fraction of the dropped channels that refill+ fills back. The paper does not state it; the densities of
its two networks in one table, 32.84 % and 46.41 %, imply it.
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
"""Option -> kinds of structure that have it."""
_ROUNDING = 1e-9
"""Rounding error allowed for a fraction."""


@dataclass(frozen=True, kw_only=True)
class Structuring:
    """A kind of structure with its options; options of other kinds keep their defaults.

    Raises:
        UsageError: for an unknown kind or option, or an option of another kind.
    """

    kind: str
    """refill, refill+ (as many whole channels as the layer's retained weights fill), channels (whole channels by score
    alone), regroup (groups of rows), or N:M such as 2:4 (N of M consecutive weights)."""
    plus: float = 0.0
    """refill+: fraction of the channels dropped by refill that is filled back; 0 means the default, `PLUS`."""
    match: bool = False
    """refill+: instead of plus, fill back as many channels as give the density of the unstructured mask."""
    score: str = "l1"
    """For whole channels: the score that ranks them."""
    coupled: str = "agree"
    """refill: agree (coupled channels are removed together) or inner (only channels of a single layer are removed)."""
    rows: int = 16
    """regroup: number of rows of a group."""
    method: str = "similarity"
    """regroup: how rows are grouped."""
    collapse: str = "raise"
    """regroup: what to do if a layer has too few weights for one column per group: raise, or keep (fewer groups)."""
    density: float | None = None
    """Target density; None means that of the unstructured mask (refill+: the result of `plus` or `match`)."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers whose mask is unchanged; for refill and channels, of layers that retain all
    channels.
    """

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
        """N and M of an N:M structure; None for another kind."""
        return parse_n_of_m(self.kind)

    @property
    def whole_channels(self) -> bool:
        """Whether masks of this kind remove whole channels, which `shrink` can take out."""
        return self.kind in CHANNEL_KINDS

    @property
    def has_null(self) -> bool:
        """Whether coverage by chance is defined: whether rows share columns, independently of other layers."""
        return self.kind == "regroup"

    @property
    def share(self) -> float:
        """Effective value of `plus`; 0 if a density is met instead."""
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
    """How well a structured mask fits the unstructured one, for one layer or all layers; fractions are from 0 to 1.

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
    """Number of weights of one output: input channels x kernel height x kernel width."""
    groups: int
    """Number of groups of rows that retain the same columns; empty rows are not counted."""
    rows_per_group: int
    """Median over non-empty rows of the size of a row's group; 1 if rows share no columns."""
    density_before: float
    """Fraction of the layer that the unstructured mask retains."""
    density_after: float
    """Fraction of the layer that the structured mask retains."""
    coverage: float
    """Fraction of `magnitude` that the structured mask retains; 1 if `magnitude` is 0."""
    fill: float
    """Fraction of the structured mask's weights that the unstructured mask removes."""
    magnitude: float
    """Sum of |w| over the weights that the unstructured mask retains."""
    null_coverage: float | None = None
    """Coverage by the same procedure if rows have no common structure; None if not measured."""
    random_coverage: float | None = None
    """Coverage by random groups (and removals) of rows with columns chosen for them; None if not measured."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.groups, self.rows_per_group) < 0:
            raise ValueError(f"rows, columns or groups of {self.name} are below 0")
        for name in ("density_before", "density_after", "coverage", "fill", "null_coverage", "random_coverage"):
            if (value := getattr(self, name)) is not None:
                if not -_ROUNDING <= value <= 1 + _ROUNDING:
                    raise ValueError(f"{name} is {value:g}, which is no share")
                object.__setattr__(self, name, min(max(value, 0.0), 1.0))

    def as_json(self) -> dict[str, str | int | float | None]:
        """Return the fields by name."""
        return asdict(self)
