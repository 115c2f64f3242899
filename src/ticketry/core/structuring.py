"""Which structure an unstructured mask is turned into, and how well it fits, as values. Needs no torch.

`structure.apply` makes the mask, `structure.coverage` measures the fit.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ticketry.choices import check_choice, list_choices
from ticketry.core.costs.granularity import CHANNELS, Granularity
from ticketry.core.pattern import check_collapse, check_density, n_of_m
from ticketry.errors import UsageError

NONE = "none"
AUTO = "auto"
"""Of masks that are chosen for their time: each layer in the granularity that pays."""
BY_MEASUREMENT = "by measurement"
"""Of a latency budget: a mix of weights and groups of rows, weights, or whole channels, whichever retains most."""
CHANNEL_KINDS = ("refill", "refill+", "channels")
KINDS = (*CHANNEL_KINDS, "regroup", "2:4")
PLUS = 0.2
"""The share that refill+ fills back in addition, if no other is said. The paper gives none; the densities of its two
networks in one table, 32.84 % and 46.41 %, are this share apart."""
REGROUP_METHODS = ("similarity", "hypergraph", "paper", "random")
COUPLINGS = ("agree", "inner")
_OF = {
    "plus": ("refill+",),
    "match": ("refill+",),
    "score": CHANNEL_KINDS,
    "coupled": ("refill", "refill+"),
    "rows": ("regroup",),
    "method": ("regroup",),
    "collapse": ("regroup",),
    "density": ("refill+", "regroup", "channels"),
}
"""Which kinds an option has a meaning for."""
_ROUNDING = 1e-9
"""What rounding may add to a share."""


def in_blocks(structure: str) -> bool:
    """Whether masks are chosen in blocks by what these take, under a budget of time: ``auto``, or one granularity for
    all layers (``weights``, ``rows:4``, ``rows:16``).
    """
    if structure == AUTO:
        return True
    try:
        return Granularity.parse(structure).rows > 0
    except UsageError:
        return False


def adds_scores(structure: str) -> bool:
    """Whether scores are added up over what is removed together, so that they have to be in one unit."""
    return structure in (BY_MEASUREMENT, CHANNELS) or in_blocks(structure)


def only_of(structure: str) -> str:
    """The granularity that a structure asks for in all layers; empty for ``auto``, which leaves it to each."""
    return "" if structure == AUTO else structure


@dataclass(frozen=True, kw_only=True)
class Structuring:
    """A kind of structure with its options. An option that has no meaning for the kind keeps its default.

    Raises:
        UsageError: for an unknown kind or option, or an option of another kind.
    """

    kind: str
    """refill, refill+ (whole channels, as many as each layer's weights pay for), channels (whole channels by their
    score alone), regroup (groups of rows), or N:M such as 2:4 (N of M weights in a row)."""
    plus: float = 0.0
    """Of refill+: the share of the channels that refill drops which is filled back too; 0 stands for `PLUS`."""
    match: bool = False
    """Of refill+: instead of plus, as many channels as give the density of the unstructured mask."""
    score: str = "l1"
    """Of whole channels: what ranks them."""
    coupled: str = "agree"
    """Of refill: channels that go together across layers agree, or only inner ones, of one layer alone, go."""
    rows: int = 16
    """Of regroup: rows of a group."""
    method: str = "similarity"
    """Of regroup: how rows get into groups."""
    collapse: str = "raise"
    """Of regroup, where a layer's weights do not pay for one column of each group: raise, or keep what they pay for."""
    density: float | None = None
    """To meet; None for that of the unstructured mask (of refill+: for what `plus` or `match` gives)."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that stay as the mask has them; of refill and channels, that keep all channels."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS and self.n_of_m is None:
            raise UsageError(
                f"structure {self.kind!r} is not known: {list_choices(self.kind, KINDS)} (or another N:M, 1 <= N < M)"
            )
        for option, kinds in _OF.items():
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
        """N and M of N:M; None of another kind."""
        return n_of_m(self.kind)

    @property
    def whole_channels(self) -> bool:
        """Whether `shrink` can take out what its masks remove."""
        return self.kind in CHANNEL_KINDS

    @property
    def has_null(self) -> bool:
        """Whether coverage by chance can be told: rows share columns, and other layers take none of them away."""
        return self.kind == "regroup"

    @property
    def share(self) -> float:
        """`plus` as it holds; 0 where a density is met instead."""
        met = self.kind != "refill+" or self.match or self.density is not None
        return 0.0 if met else self.plus or PLUS

    def describe(self) -> dict[str, Any]:
        """Kind and the options that have a meaning for it, as JSON values."""
        told = {option: getattr(self, option) for option, kinds in _OF.items() if self.kind in kinds}
        told |= {"plus": self.share} if "plus" in told else {}
        return {"kind": self.kind, **told, **({"spare": list(self.spare)} if self.spare else {})}

    def __str__(self) -> str:
        """In words: ``regroup, 16 rows``."""
        more = {
            "refill+": f", {100 * self.share:g} % more" if self.share else ", density met",
            "regroup": f", {self.rows} rows" + (f", {self.method}" if self.method != "similarity" else ""),
        }
        return self.kind + more.get(self.kind, "")


@dataclass(frozen=True)
class LayerFit:
    """How well a structured mask of one layer, or of all together, fits the unstructured one; shares lie in 0 … 1.

    Examples:
        >>> model = nn.Linear(4, 2, bias=False)
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False, False, False], [False, True, False, False]])})
        >>> both = tk.Mask({"weight": torch.tensor([[True, True, False, False], [True, True, False, False]])})
        >>> fit = tk.structure.coverage(model, mask, both, null=False)["weight"]
        >>> fit.coverage, fit.fill, fit.groups, fit.as_json()["rows_per_group"]
        (1.0, 0.5, 1, 2)
    """

    name: str
    """The weight's name."""
    rows: int
    """Outputs of the layer."""
    columns: int
    """Weights that make one output: input channels x kernel height x kernel width."""
    groups: int
    """Groups of rows that keep the same columns; rows that keep nothing are in none."""
    rows_per_group: int
    """Rows of the group that a row is in: the median over rows that keep anything. 1 if rows share no columns."""
    density_before: float
    """Share of the layer that the unstructured mask keeps."""
    density_after: float
    """Share that the structured one keeps."""
    coverage: float
    """Share of `magnitude` inside the structured mask; 1 if that is 0."""
    fill: float
    """Share of the structured mask's weights that the unstructured one did not keep."""
    magnitude: float
    """Sum of |w| over the weights that the unstructured mask keeps."""
    null_coverage: float | None = None
    """Coverage that the same procedure reaches where rows have no structure in common; None if not measured."""
    random_coverage: float | None = None
    """Coverage with rows put into groups (and removed) at random and columns chosen for them; None if not measured."""

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.groups, self.rows_per_group) < 0:
            raise ValueError(f"rows, columns or groups of {self.name} are below 0")
        for name in ("density_before", "density_after", "coverage", "fill", "null_coverage", "random_coverage"):
            if (value := getattr(self, name)) is not None:
                if not -_ROUNDING <= value <= 1 + _ROUNDING:
                    raise ValueError(f"{name} is {value:g}, which is no share")
                object.__setattr__(self, name, min(max(value, 0.0), 1.0))

    def as_json(self) -> dict[str, str | int | float | None]:
        """The fields by name."""
        return asdict(self)


def structuring_of(kind: str, **options: Any) -> Structuring | None:
    """The structure that settings ask for; None for ``none``, whose options must be left out.

    Raises:
        UsageError: see `Structuring`.
    """
    if kind != NONE:
        return Structuring(kind=kind, **options)
    for option, value in options.items():
        if value != getattr(Structuring, option):
            raise UsageError(f"{option} is an option of a structure: say which, {', '.join(KINDS)}")
    return None
