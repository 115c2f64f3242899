"""Structure for masks that were found without any: settings and steps that several searches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ticketry.budgets.granularity import NONE, in_blocks
from ticketry.core.structure.structuring import Structuring, structuring_of
from ticketry.lab.search_result import Structured

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result
    from ticketry.search.common.method import Replicate


@dataclass(frozen=True, kw_only=True)
class Restructuring:
    """A structure that each mask is given after it was found."""

    structure: str = "none"
    """What each ticket's mask is turned into after it was found, while the search goes on with it as it was: refill,
    refill+ (whole channels, trained as a physically smaller network), regroup (groups of rows that keep the same
    columns), 2:4 (or another N:M), none. Positions that are filled back start from the weights that tickets start
    from (0 where those are final weights that were pruned before). Under a budget of time: auto, by which the search's
    own masks keep single weights in some layers, groups of rows or all of them in others, whatever keeps most for its
    time (by the score kfac, for which magnitude stands here); or one granularity for all layers, which is what auto is
    compared with: weights, rows:4, rows:16. Blocks bring back what was pruned in them."""
    plus: float = 0.0
    """Of refill+: the share of the channels that refill drops which is filled back as well; 0 stands for 0.2."""
    refill_match: bool = False
    """Of refill+: instead of plus, as many channels as give the density of the mask without structure."""
    rows: int = 16
    """Of regroup: rows of a group."""
    regroup_method: str = "similarity"
    """Of regroup: similarity, hypergraph, paper or random: how rows get into groups."""
    regroup_collapse: str = "raise"
    """Of regroup, where a layer's weights do not pay for one column of each group: raise (an error), or keep (what they
    pay for)."""
    refill_score: str = "l1"
    """Of refill: what ranks the channels of a layer: remaining (how many of its weights are kept), l1, l2, taylor,
    activation_l1, activation_l2, or another score of whole channels."""
    refill_coupled: str = "agree"
    """Of refill: channels that go together across layers agree on their rank, or only inner ones, of one layer alone,
    go."""

    @property
    def structuring(self) -> Structuring | None:
        """The structure asked for; None for none, and for auto and granularities, which masks have from the first.

        Raises:
            UsageError: for a word that is not known, or an option of another structure.
        """
        return structuring_of(
            NONE if in_blocks(self.structure) else self.structure,
            plus=self.plus,
            match=self.refill_match,
            collapse=self.regroup_collapse,
            rows=self.rows,
            method=self.regroup_method,
            score=self.refill_score,
            coupled=self.refill_coupled,
        )


def structuring_in(settings: object) -> Structuring | None:
    """What settings of any method ask for."""
    return settings.structuring if isinstance(settings, Restructuring) else None


def check_structure_score(settings: Restructuring) -> None:
    """Raises `UsageError` for a score that is not known, before anything is trained."""
    from ticketry.core.structure import apply

    if (by := settings.structuring) is not None:
        apply.check_structure_score(by)


def given(replicate: Replicate, weights: Result, mask: str, settings: object) -> tuple[str, Structured | None]:
    """The digest of a ticket's mask that is made of a found one, and how; that mask itself without a structure.

    Args:
        weights: the network whose weights chose `mask`.
    """
    from ticketry.lab.structured_masks import structured_mask

    if (by := structuring_in(settings)) is None:
        return mask, None
    made = structured_mask(replicate.lab, replicate.task, weights, mask, by, replicate.seeds)
    return made, Structured(of=mask, weights=weights.model, by=by)
