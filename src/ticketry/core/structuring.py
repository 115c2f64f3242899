"""Which structure an unstructured mask is turned into, as a value. Needs no torch until it is applied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.core.density import check_density
from ticketry.core.pattern import n_of_m
from ticketry.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from ticketry.core.mask import Mask
    from ticketry.core.score import Loss
    from ticketry.core.structure.group import Structure
    from ticketry.core.structure.twin import Inputs

NONE = "none"
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
            raise UsageError(f"structure {self.kind!r} is not known: {', '.join(KINDS)} (or another N:M, 1 <= N < M)")
        for option, kinds in _OF.items():
            if self.kind not in kinds and getattr(self, option) != getattr(type(self), option):
                raise UsageError(f"{option} is an option of {' and '.join(kinds)}, not of {self.kind}: leave it out")
        if not 0 <= self.plus <= 1:
            raise UsageError(f"plus is a share of the dropped channels, 0 < plus <= 1, not {self.plus:g}")
        if self.rows < 1:
            raise UsageError(f"rows of a group must be at least 1, not {self.rows}")
        if self.method not in REGROUP_METHODS:
            raise UsageError(f"method {self.method!r} of regroup is not known: {', '.join(REGROUP_METHODS)}")
        if self.coupled not in COUPLINGS:
            raise UsageError(f"coupled channels {' or '.join(COUPLINGS)}, not {self.coupled!r}")
        if self.collapse not in ("raise", "keep"):
            raise UsageError(f"collapse of regroup is raise or keep, not {self.collapse!r}")
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

    def check_score(self) -> None:
        """Raises `UsageError` for a score of channels that is not known. Imports torch."""
        from ticketry.core.structure.refill_scores import check_refill_score
        from ticketry.core.structure.saliency import check_channel_score

        if self.whole_channels:
            (check_channel_score if self.kind == "channels" else check_refill_score)(self.score)

    @property
    def needs_data(self) -> bool:
        """Whether channels are ranked by what examples make of them. Imports torch."""
        from ticketry.core.score import about, names
        from ticketry.core.structure.about import CHANNEL_ONLY

        plain = self.score.rpartition(":")[2]
        plain = "activation" if plain == "activation_l1" else plain
        known = CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain) if plain in names() else None
        return self.whole_channels and known is not None and known.data != "no"

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

    def apply(
        self,
        model: nn.Module,
        mask: Mask,
        example_inputs: Inputs,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        structure: Structure | None = None,
    ) -> Mask:
        """The structured mask made from an unstructured one, see `ticketry.structure`.

        Args:
            model: with the weights that the mask was chosen by.
            mask: unstructured, of single weights.
            example_inputs: a tensor, or a tuple of the model's arguments.
            batches, loss: what the score needs, if it needs any.
            structure: the model's coupled channels, if they are known: following them takes seconds.
        """
        from ticketry.core import structure as made_by
        from ticketry.core.scope import Scope, named_parameters

        options: dict[str, Any]
        seen: dict[str, Any] = {"batches": batches, "loss": loss, "seed": seed}
        if self.kind == "channels":
            density = mask.density if self.density is None else self.density
            total = sum(parameter.numel() for parameter in named_parameters(model).values())
            scope = Scope(mask.shapes, total)
            options = {"score": self.score, "scope": scope, "spare": self.spare}
            return made_by.channels(model, example_inputs, density, **options, **seen)
        if self.whole_channels:
            met = mask.density if self.match else self.density
            options = {"coupled": self.coupled, "density": met, "structure": structure, "spare": self.spare}
            return made_by.refill(model, mask, example_inputs, self.score, self.share, **options, **seen)
        if self.kind == "regroup":
            options = {"method": self.method, "collapse": self.collapse, "spare": self.spare}
            return made_by.regroup(model, mask, self.density, self.rows, **options, seed=seed)
        n, m = self.n_of_m or (0, 0)
        return made_by.n_m(model, mask, n, m, spare=self.spare)


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
