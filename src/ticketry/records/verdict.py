"""What a record tells of its task, and a verdict with the numbers it rests on."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from ticketry.records.display import answers_text, verdict_table
from ticketry.records.schema import Count, Density, Number, Part, Role, fault

About = Literal["ticket", "procedure"]
"""What a verdict is about: one mask with its start, or a method with its settings, the whole search repeated."""
_About = Annotated[About, Meta(extra={"problem": "neither ticket nor procedure"})]
VERDICTS = ("wins", "matches", "loses", "undecided")
ANSWERS = ("yes", "no", "undecided")
_Answer = Annotated[Literal["yes", "no", "undecided"], Meta(extra={"problem": f"not one of {', '.join(ANSWERS)}"})]

_NO_INTERVAL = "is not two numbers, the lower one first"
_Interval = Annotated[tuple[Number, Number], Meta(extra={"problem": _NO_INTERVAL})]


class Metric(Part, frozen=True):
    """The number by which networks are compared (the records' own copy: that of the tasks needs torch)."""

    name: str
    unit: str
    higher_is_better: bool
    scale: str = "linear"
    """Of its axis: linear or log."""
    summary: Annotated[Literal["mean", "iqm"], Meta(extra={"problem": "neither mean nor iqm"})] = "mean"
    """Over replicates: mean, or iqm (interquartile mean)."""

    @property
    def words(self) -> str:
        """Its name as it is read: bits per character."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1


class Task(Part, frozen=True):
    """What was trained: names, the metric and the sizes behind every density."""

    name: str
    model: str
    metric: Metric
    parameters: Count
    """All parameters of the model; 0 if the run has not got so far as to know."""
    prunable: Count
    """Parameters in the scope: the denominator of every density; 0 if not known yet."""

    def __post_init__(self) -> None:
        if self.prunable > self.parameters:
            fault("prunable", f"is more than all parameters ({self.parameters})")


class Diagnosis(Part, frozen=True):
    """What paired differences tell against the assumptions of their test."""

    skewness: Number
    """Below 0: some seeds fall far short of the others."""
    correlation: Number
    """Of each difference with the next, in the order of seeds."""
    low: tuple[Count, ...] = ()
    """Seeds (from 1) that lie far below the others: collapses."""
    high: tuple[Count, ...] = ()
    collapse_rate: Number | None = None
    """Upper bound, at 95 %, of the share of seeds that collapse."""


class Difference(Part, frozen=True):
    """Ticket minus one other network over paired seeds; above 0, the ticket is the better one."""

    role: Role
    mean: Number
    low: Number | None = None
    high: Number | None = None
    p: Number | None = None
    sd: Number | None = None
    """Sample standard deviation (ddof = 1)."""
    diagnosis: Diagnosis | None = None
    """None for too few seeds, and where no verdict rests on it."""


class LongerDifference(Difference, frozen=True):
    """Ticket minus a network that was trained for longer."""

    steps: Count | None = None
    """Of the other network."""


class Judgement(Part, frozen=True, kw_only=True):
    """What the paired differences of one level, of one ticket, or of a repeated search show."""

    about: _About = "ticket"
    """What is claimed of. Records of before 2026-11-22 do not say it: then verifications are of tickets."""
    verdict: Annotated[
        Literal["wins", "matches", "loses", "undecided"], Meta(extra={"problem": f"not one of {', '.join(VERDICTS)}"})
    ]
    as_good_as_dense: _Answer | None = None
    """None in records of before 2026-11-22, which had one verdict on both questions."""
    better_than_controls: _Answer | None = None
    """Than every one of them."""
    not_beaten: tuple[Role, ...] = ()
    """Controls that the ticket is not shown to be better than."""
    claim: str
    margin: Number
    confidence: Number
    n: Count
    """Seeds, or replicates."""
    groups: Count | None = None
    """Of seeds that share nothing: as many as seeds, or as parents. None in older records."""
    difference: Number
    """Ticket minus dense."""
    interval: _Interval | None = None
    p: Number
    p_as_good: Number | None = None
    p_loses: Number | None = None
    p_better: Number | None = None
    p_not_better: Number | None = None
    more_seeds: Count | None = None
    """That would likely decide."""
    reasons: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    """What it rests on, in words."""
    comparisons: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            fault("interval", _NO_INTERVAL)

    @property
    def claims_of(self) -> str:
        """What the verdict is about, in words: this ticket or this procedure."""
        return f"this {self.about}"

    @property
    def answers(self) -> str:
        """Both answers in words; empty in records that have none."""
        return answers_text(
            self.as_good_as_dense, self.better_than_controls, self.not_beaten, len(self.comparisons) > 1
        )

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed: for "wins" both answers, unless dense has been shown to be better."""
        if self.as_good_as_dense is None:
            return self.verdict != "undecided"
        answered = self.claim == "matches" or self.better_than_controls != "undecided"
        return self.as_good_as_dense == "no" or (self.as_good_as_dense == "yes" and answered)

    def _repr_html_(self) -> str:
        rows = [(each.role, each.mean, each.low, each.high, each.p) for each in self.comparisons]
        return verdict_table(
            f"{self.claims_of}: {self.verdict}",
            claim=self.claim,
            margin=self.margin,
            confidence=self.confidence,
            n=self.n,
            rows=rows,
            reasons=self.reasons,
        )


class LevelVerdict(Judgement, frozen=True, kw_only=True):
    """The judgement of one level of a run: over its replicates, and so about its procedure."""

    about: _About = "procedure"
    level: Count
    density: Density
    p_holm: Number | None = None
    """Corrected for the number of levels."""
    beside: tuple[LongerDifference, ...] = ()
    """Networks with more training steps, that the verdict does not rest on."""
