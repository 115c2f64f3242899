"""Kinds of structured masks derived from an unstructured mask, and measures of fit, as plain data without torch.

`structure.apply` builds the structured mask, and `structure.coverage` measures the fit.
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
    """How to derive a structured mask: the kind of structure and its options.

    Options that belong to other kinds keep their defaults.

    Raises:
        UsageError: for an unknown kind, an invalid value, or an option that belongs to another kind.
    """

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
    def has_null(self) -> bool:
        """Whether rows share columns within each layer, so that coverage can be compared with random groups of rows."""
        return self.kind == "regroup"

    @property
    def share(self) -> float:
        """The value of `plus` that applies: `PLUS` if it is left at 0, and 0 if a density is to be met instead."""
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
