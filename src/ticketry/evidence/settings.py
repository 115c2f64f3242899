"""Settings of a verification and of a stability analysis. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ticketry.choices import check_choices, check_storable_numbers
from ticketry.errors import UsageError
from ticketry.evidence.comparison import INTERIM, InterimAnalyses, check_comparison_settings
from ticketry.evidence.control import CONTROLS, LONGER_CONTROLS, check_barrier_settings, check_controls
from ticketry.records.verdict import Claim
from ticketry.step import Step


@dataclass(frozen=True, kw_only=True)
class VerifySettings:
    """Settings of a verification, see `evidence.verify`.

    Examples:
        >>> settings = tk.evidence.VerifySettings(margin=0.5, interim=(5, 10))
        >>> settings.what_is_claimed, settings.rivals(("shuffled",))
        ('wins', ('shuffled',))
        >>> settings.plan.last, tk.evidence.VerifySettings(seeds=5).plan
        (10, None)
    """

    about: Literal["", "ticket", "procedure"] = ""
    """Subject of the verdict: ticket (this mask and these initial weights, trained again with other data orders) or
    procedure (method and settings: the whole search is repeated from fresh seeds). By default ticket if the ticket has
    initial weights to train from, else procedure."""
    controls: tuple[str, ...] = ()
    """Controls: random_reinit, shuffled, random_prune, small_dense, others of `ticketry list controls`, for a procedure
    also uniform and erk; or none. By default the first four for a ticket, and shuffled, uniform, erk for a
    procedure."""
    dense_at: Literal["budget", "cost"] = "budget"
    """Training steps of the dense network that a procedure is compared with: budget (as many as the weights of its
    tickets) or cost (as many as the whole search)."""
    claim: Claim | None = None
    """wins (no worse than dense and better than every control) or matches (no worse than dense); by default wins if
    there are controls."""
    margin: float | None = None
    """How much worse than dense still counts as no worse, in the metric's unit; by default 0.5 points, or 1 % of the
    dense network's mean for a metric that is not in %."""
    confidence: float = 0.95
    """1 - the probability of a false verdict."""
    least_spread: float | None = None
    """SD floor of seeds, in the metric's unit; by default the margin."""
    interim: tuple[int, ...] = INTERIM
    """Numbers of seeds after which to judge (interim analyses). The last number is the limit; each earlier analysis
    costs some power."""
    seeds: int | None = None
    """Number of seeds of a single analysis, which replaces the interim analyses."""
    after: int = 0
    """Number of fresh seeds to skip, because an earlier verification used them. Extending a plan after its seeds were
    analysed raises the error rate."""
    noise: bool = True
    """Also train the ticket with equally many other seeds (A/A) to measure the noise floor; --no-noise saves it. Not
    available for a procedure, which would need as many searches again."""
    references: bool = True
    """Also train the dense network at the search's whole cost and, for a ticket, at its FLOPs; --no-references saves
    it."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_storable_numbers(self)
        check_comparison_settings(1.0 if self.margin is None else self.margin, self.confidence, None, self.least_spread)
        if self.claim == "wins" and self.controls == ("none",):
            raise UsageError("'wins' needs a control to win against: name controls, or claim 'matches'")
        if self.after < 0:
            raise UsageError(f"after {self.after} seeds: give the number of seeds to skip, at least 0")
        if self.seeds is None:
            return
        if self.interim != INTERIM:
            raise UsageError("interim plans the numbers of seeds: give either interim or seeds")
        if self.seeds < 1:
            raise UsageError(f"{self.seeds} seeds: give at least 1")

    @property
    def plan(self) -> InterimAnalyses | None:
        """The plan of interim analyses; None for a single analysis."""
        return None if self.seeds is not None else InterimAnalyses(self.interim)

    def rivals(self, suited: tuple[str, ...]) -> tuple[str, ...]:
        """Return the requested controls without duplicates, or `suited` if no controls were requested."""
        return () if self.controls == ("none",) else tuple(dict.fromkeys(self.controls or suited))

    @property
    def what_is_claimed(self) -> Claim:
        """The claim to test: the setting `claim`; by default wins with controls, matches without."""
        return self.claim or ("matches" if self.controls == ("none",) else "wins")


@dataclass(frozen=True, kw_only=True)
class StabilitySettings:
    """Settings of a stability analysis."""

    rewinds: tuple[str, ...] = ("0", "1%", "3%", "7%", "20%")
    """Rewind steps; the search is run once for each."""
    at: tuple[float, ...] = ()
    """Densities of the tickets to analyse; by default all tickets."""
    masks: tuple[str, ...] = ("shuffled", "random_prune")
    """Other masks of the ticket's weights to analyse like the ticket: shuffled, random_prune, or none."""
    points: int = 11
    """Number of points on the line between two networks at which to measure the error, including both ends; 0 skips
    error barriers."""
    splits: tuple[str, ...] = ("train", "test")
    """Splits of the examples: train, validation, test."""
    recalibrate: int = 20
    """Training batches for recomputing batch-norm statistics at each point; 0 interpolates them."""
    dense: bool = True
    """Also train the dense network of each rewind step with a second data order."""
    layers: bool = True
    """Also record the distances of each layer."""

    @property
    def analysed_roles(self) -> tuple[str | None, ...]:
        """Names of the networks to analyse at a density: None for the ticket, then its controls."""
        return (None, *(() if self.masks == ("none",) else self.masks))

    def __post_init__(self) -> None:
        check_storable_numbers(self)
        if not self.rewinds:
            raise UsageError("rewinds names no rewind step: give some, such as 0,1%,3%")
        for rewind in self.rewinds:
            Step.parse(rewind)
        for name in ("masks", "splits"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        check_controls(tuple(role for role in self.analysed_roles if role))
        if self.points:
            for split in self.splits:
                check_barrier_settings(self.points, split, self.recalibrate)
        if others := [name for name in self.analysed_roles if name and CONTROLS.get(name).changes_weights]:
            raise UsageError(f"{others[0]} changes the weights, not the mask: name it among the controls")
        if longer := [name for name in self.masks if name in LONGER_CONTROLS]:
            raise UsageError(f"{longer[0]} is trained for longer: name it among the controls")
