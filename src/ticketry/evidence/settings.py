"""What can be set of a verification and of a stability analysis. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.errors import UsageError
from ticketry.evidence.names import LONGER, RIVALS, check_controls, check_line
from ticketry.evidence.verdict import Claim
from ticketry.step import Step


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Of a verification, see `evidence.verify`."""

    controls: tuple[str, ...] = tuple(RIVALS)
    """What the ticket should beat: random_reinit, shuffled, random_prune, small_dense, or none."""
    claim: Claim | None = None
    """wins (no worse than dense and better than every control) or matches (no worse than dense); by default wins where
    there are controls."""
    margin: float | None = None
    """How much worse than dense still counts as no worse, in the metric's unit; by default 0.5 points, or 1 % of the
    dense network's mean for a metric that is not in %."""
    confidence: float = 0.95
    """1 - the probability of a false verdict."""
    looks: tuple[int, ...] = (3, 5, 7, 10)
    """Numbers of seeds at which to judge; the last is the limit. Earlier looks are paid for."""
    seeds: int | None = None
    """So many seeds, judged once, instead of looks."""
    noise: bool = True
    """The ticket with as many seeds again (A/A), for what a difference of nothing looks like; --no-noise saves it."""
    references: bool = True
    """The dense network at the search's whole cost and at the ticket's FLOPs; --no-references saves them."""

    @property
    def rivals(self) -> tuple[str, ...]:
        return () if self.controls == ("none",) else self.controls

    @property
    def what_is_claimed(self) -> Claim:
        """The claim that holds, if it was left open."""
        return self.claim or ("wins" if self.rivals else "matches")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """Of a stability analysis."""

    rewinds: tuple[str, ...] = ("0", "1%", "3%", "7%", "20%")
    """Rewind points: a search for each."""
    at: tuple[float, ...] = ()
    """Densities of the tickets that are analysed; all of the search's by default."""
    masks: tuple[str, ...] = ("shuffled", "random_prune")
    """Other masks with the ticket's weights, analysed like the ticket: shuffled, random_prune, or none."""
    points: int = 11
    """Points on the line of an error barrier, its ends included; 0 leaves barriers out."""
    splits: tuple[str, ...] = ("train", "test")
    """On whose examples: train, validation, test."""
    recalibrate: int = 20
    """Training batches from which batch-norm statistics are recomputed at each point; 0 interpolates them."""
    dense: bool = True
    """Also train the dense network of each rewind point with a second data order."""
    layers: bool = True
    """Write the distances of each layer, too."""

    @property
    def roles(self) -> tuple[str | None, ...]:
        """What is analysed at a density: the ticket (None) and other masks."""
        return (None, *(() if self.masks == ("none",) else self.masks))

    def __post_init__(self) -> None:
        if not self.rewinds:
            raise UsageError("rewinds names no rewind point: give some, such as 0,1%,3%")
        for rewind in self.rewinds:
            Step.parse(rewind)
        check_controls(tuple(role for role in self.roles if role))
        if self.points:
            for split in self.splits:
                check_line(self.points, split, self.recalibrate)
        if "random_reinit" in self.masks:
            raise UsageError("random_reinit has other weights, not another mask: name it among the controls")
        if longer := [name for name in self.masks if name in LONGER]:
            raise UsageError(f"{longer[0]} is trained for longer, which is not stability: name it among the controls")
