"""What can be set of a verification and of a stability analysis. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ticketry.choices import check_choices, check_numbers
from ticketry.errors import UsageError
from ticketry.evidence.comparison_names import CONTROLS, LONGER, check_controls, check_line
from ticketry.evidence.judging.interim_analyses import INTERIM, InterimAnalyses
from ticketry.evidence.judging.ranges import check_settings
from ticketry.records.verdict import Claim
from ticketry.step import Step


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Of a verification, see `evidence.verify`.

    Examples:
        >>> settings = tk.evidence.VerifySettings(margin=0.5, interim=(5, 10))
        >>> settings.what_is_claimed, settings.rivals(("shuffled",))
        ('wins', ('shuffled',))
        >>> settings.plan.last, tk.evidence.VerifySettings(seeds=5).plan
        (10, None)
    """

    about: Literal["", "ticket", "procedure"] = ""
    """What the verdict is about: ticket (this mask and this start, trained again with other orders of the data) or
    procedure (method and settings: the whole search, again from fresh seeds). By default ticket where there is a start
    to train from, else procedure."""
    controls: tuple[str, ...] = ()
    """What should be beaten: random_reinit, shuffled, random_prune, small_dense, others of `ticketry list controls`, of
    a procedure also uniform and erk; or none. By default the first four for a ticket, and shuffled, uniform, erk for a
    procedure."""
    dense_at: Literal["budget", "cost"] = "budget"
    """Training steps of the dense network that a procedure is compared with: budget (as many as are in its tickets'
    weights) or cost (as many as the whole search has trained)."""
    claim: Claim | None = None
    """wins (no worse than dense and better than every control) or matches (no worse than dense); by default wins where
    there are controls."""
    margin: float | None = None
    """How much worse than dense still counts as no worse, in the metric's unit; by default 0.5 points, or 1 % of the
    dense network's mean for a metric that is not in %."""
    confidence: float = 0.95
    """1 - the probability of a false verdict."""
    least_spread: float | None = None
    """Standard deviation of seeds below which none is believed, in the metric's unit; by default the margin."""
    interim: tuple[int, ...] = INTERIM
    """Interim analyses: numbers of seeds at which to judge. The last is the limit; earlier ones are paid for."""
    seeds: int | None = None
    """So many seeds, judged once, without interim analyses."""
    after: int = 0
    """Fresh seeds that are passed over: those by which an earlier verification was judged, whose plan or settings were
    not these. A plan's end that is moved once its seeds have been seen errs more often than it says."""
    noise: bool = True
    """The ticket with as many seeds again (A/A), for what a difference of nothing looks like; --no-noise saves it. Of a
    procedure there is none: it would be as many searches again."""
    references: bool = True
    """The dense network at the search's whole cost and, of a ticket, at its FLOPs; --no-references saves them."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_numbers(self)
        check_settings(1.0 if self.margin is None else self.margin, self.confidence, None, self.least_spread)
        if self.claim == "wins" and self.controls == ("none",):
            raise UsageError("'wins' needs a control to win against: name controls, or claim 'matches'")
        if self.after < 0:
            raise UsageError(f"after {self.after} seeds: give the number of seeds that are passed over, at least 0")
        if self.seeds is None:
            return
        if self.interim != INTERIM:
            raise UsageError("interim plans the numbers of seeds: give either interim or seeds")
        if self.seeds < 1:
            raise UsageError(f"{self.seeds} seeds: give at least 1")

    @property
    def plan(self) -> InterimAnalyses | None:
        """The interim analyses; None where all seeds are judged once."""
        return None if self.seeds is not None else InterimAnalyses(self.interim)

    def rivals(self, suited: tuple[str, ...]) -> tuple[str, ...]:
        """The controls: those asked for, each once, or those that are `suited` if that was left open."""
        return () if self.controls == ("none",) else tuple(dict.fromkeys(self.controls or suited))

    @property
    def what_is_claimed(self) -> Claim:
        """The claim that holds, if it was left open."""
        return self.claim or ("matches" if self.controls == ("none",) else "wins")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """Of a stability analysis."""

    rewinds: tuple[str, ...] = ("0", "1%", "3%", "7%", "20%")
    """Rewind steps: a search for each."""
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
    """Also train the dense network of each rewind step with a second data order."""
    layers: bool = True
    """Write the distances of each layer, too."""

    @property
    def roles(self) -> tuple[str | None, ...]:
        """What is analysed at a density: the ticket (None) and other masks."""
        return (None, *(() if self.masks == ("none",) else self.masks))

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.rewinds:
            raise UsageError("rewinds names no rewind step: give some, such as 0,1%,3%")
        for rewind in self.rewinds:
            Step.parse(rewind)
        for name in ("masks", "splits"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        check_controls(tuple(role for role in self.roles if role))
        if self.points:
            for split in self.splits:
                check_line(self.points, split, self.recalibrate)
        if others := [name for name in self.roles if name and CONTROLS.get(name).changes_weights]:
            raise UsageError(f"{others[0]} has other weights, not another mask: name it among the controls")
        if longer := [name for name in self.masks if name in LONGER]:
            raise UsageError(f"{longer[0]} is trained for longer, which is not stability: name it among the controls")
