"""What a record tells of its task, and a verdict with the numbers it rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from msgspec import Meta, field

from ticketry.records.display import Cell, build_verdict_table, describe_answers
from ticketry.records.metric import Metric
from ticketry.records.schema import Count, Density, Number, Part, Role, reject

About = Literal["ticket", "procedure"]
"""What a verdict is about: one mask with its start, or a method with its settings, the whole search repeated."""
_About = Annotated[About, Meta(extra={"problem": "neither ticket nor procedure"})]
Claim = Literal["wins", "matches"]
Answer = Literal["yes", "no", "undecided"]
Outcome = Literal["wins", "matches", "loses", "undecided"]
VERDICTS: tuple[Outcome, ...] = get_args(Outcome)
_Answer = Annotated[Answer, Meta(extra={"problem": f"not one of {', '.join(get_args(Answer))}"})]

_NO_INTERVAL = "is not two numbers, the lower one first"
_Interval = Annotated[tuple[Number, Number], Meta(extra={"problem": _NO_INTERVAL})]


class Task(Part, frozen=True):
    """What was trained: names, the metric and the sizes behind every density."""

    name: str
    model: str
    """The network's name, or its class; empty in records of tasks that did not name it, and of a run not begun."""
    metric: Metric
    parameters: Count
    """All parameters of the model; 0 if the run has not got so far as to know."""
    prunable: Count
    """Parameters in the scope: the denominator of every density; 0 if not known yet."""

    def __post_init__(self) -> None:
        if self.prunable > self.parameters:
            reject("prunable", f"is more than all parameters ({self.parameters})")

    @property
    def title(self) -> str:
        """``lenet-300-100 on digits``; the task alone where the network has no name."""
        return f"{self.model} on {self.name}" if self.model else self.name


class Experiment(Part, frozen=True, kw_only=True):
    """What records of whole experiments have in common. The mappings are shown as they are, and may be empty."""

    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    store: str = ""


class LeftOut(Part, frozen=True):
    """A control that is not defined for a ticket."""

    role: str
    why: str


class Diagnosis(Part, frozen=True, kw_only=True):
    """What paired differences tell against the assumptions of their test, in the order of seeds."""

    skewness: Number
    """Below 0: some seeds fall far short of the others."""
    correlation: Number
    """Of each difference with the next."""
    low: tuple[Count, ...] = ()
    """Seeds (from 1) that lie far below the others: collapses."""
    high: tuple[Count, ...] = ()
    collapse_rate: Number
    """Upper bound, at 95 %, of the share of seeds that collapse: with none of n, 1 - 0.05^(1/n)."""


class MeanDifference(Part, frozen=True, kw_only=True):
    """Of a ticket minus another network over paired seeds, in the metric's unit; above 0, the ticket is the better."""

    mean: Number
    low: Number | None = None
    """Lower end of the two-sided t interval of the mean; None if there is no spread."""
    high: Number | None = None
    sd: Number | None = None
    """Standard deviation of the differences (n - 1); None for one seed."""

    def numbers(self) -> dict[str, Any]:
        """These four by name, for another kind of difference."""
        return {name: getattr(self, name) for name in MeanDifference.__struct_fields__}


class Difference(MeanDifference, frozen=True, kw_only=True):
    """Ticket minus one other network."""

    role: Role
    p: Number | None = None
    diagnosis: Diagnosis | None = None
    """None for too few seeds, and where no verdict rests on it."""


class LongerDifference(Difference, frozen=True, kw_only=True):
    """Ticket minus a network that was trained for longer."""

    steps: Count | None = None
    """Of the other network."""


Missing = TypeVar("Missing")


class VerdictAnswers(Part, Generic[Missing], frozen=True, kw_only=True):
    """The answers to both questions of a verdict, and what they rest on. p-values are corrected for interim analyses.

    Lacking: None in records, of which those of before 2026-11-22 had one verdict on both questions; nothing else.
    """

    as_good_as_dense: _Answer | Missing = None  # type: ignore[assignment]
    better_than_controls: _Answer | Missing = None  # type: ignore[assignment]
    """Than every one of them; "undecided" where there are none."""
    not_beaten: tuple[Role, ...] = ()
    """Controls that the ticket is not shown to be better than."""
    claim: str
    margin: Number
    confidence: Number
    n: Count
    """Seeds, or replicates."""
    groups: Count | Missing = None  # type: ignore[assignment]
    """Of seeds that share nothing: as many as seeds, or as parents."""
    p: Number
    """Of the claim: small if it is shown."""
    p_as_good: Number | Missing = None  # type: ignore[assignment]
    p_loses: Number | Missing = None  # type: ignore[assignment]
    """Of "not as good as dense"."""
    p_better: Number | Missing = None  # type: ignore[assignment]
    """Of "better than every control"."""
    p_not_better: Number | Missing = None  # type: ignore[assignment]
    more_seeds: Count | None = None
    """About how many more would decide with a probability of 80 %, if the means and spreads stay what they are; 0 if it
    is decided, None if more than `evidence.judging.paired_comparisons.MOST_SEEDS` would be needed in all."""
    reasons: tuple[str, ...] = ()
    """Why, in words, with what the differences tell against the assumptions."""
    assumptions: tuple[str, ...] = ()
    """What all of it rests on, in words."""

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed: for "wins" both answers, unless dense has been shown to be better."""
        answered = self.claim == "matches" or self.better_than_controls != "undecided"
        return self.as_good_as_dense == "no" or (self.as_good_as_dense == "yes" and answered)

    def to_html(self, outcome: str, rows: Iterable[Sequence[Cell]]) -> str:
        """As a notebook shows it, with a row for each comparison: see `build_verdict_table`."""
        return build_verdict_table(
            outcome,
            claim=self.claim,
            margin=self.margin,
            confidence=self.confidence,
            n=self.n,
            rows=rows,
            reasons=self.reasons,
        )


class Judgement(VerdictAnswers[None], frozen=True, kw_only=True):
    """What the paired differences of one level, of one ticket, or of a repeated search show."""

    about: _About = "ticket"
    """What is claimed of. Records of before 2026-11-22 do not say it: then verifications are of tickets."""
    verdict: Annotated[Outcome, Meta(extra={"problem": f"not one of {', '.join(VERDICTS)}"})]
    difference: Number
    """Ticket minus dense."""
    interval: _Interval | None = None
    comparisons: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            reject("interval", _NO_INTERVAL)

    @property
    def claims_of(self) -> str:
        """What the verdict is about, in words: this ticket or this procedure."""
        return f"this {self.about}"

    @property
    def answers(self) -> str:
        """Both answers in words; empty in records that have none."""
        return describe_answers(
            self.as_good_as_dense, self.better_than_controls, self.not_beaten, len(self.comparisons) > 1
        )

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed; of a record without answers, whether its one verdict decides."""
        return self.verdict != "undecided" if self.as_good_as_dense is None else super().decided

    def _repr_html_(self) -> str:
        rows = [(each.role, each.mean, each.low, each.high, each.p) for each in self.comparisons]
        return self.to_html(f"{self.claims_of}: {self.verdict}", rows)


class LevelVerdict(Judgement, frozen=True, kw_only=True):
    """The judgement of one level of a run: over its replicates, and so about its procedure."""

    about: _About = "procedure"
    level: Count
    density: Density
    p_holm: Number | None = None
    """Corrected for the number of levels."""
    rule: str = ""
    """The tests: "pooled" (`evidence.judging.pooled_tests`); empty in records from before 2026-12, whose levels were
    judged one by one. Such verdicts are computed again from the record's points when they are shown."""
    probability: Number | None = None
    """P(difference to dense > -margin): 1 minus the p-value that is not corrected for the number of levels; None for
    fewer than three replicates."""
    beside: tuple[LongerDifference, ...] = ()
    """Networks with more training steps, that the verdict does not rest on."""
