"""Records of tasks, and of verdicts with the statistics that justify the verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

from msgspec import Meta, field

from ticketry.records.metric import Cell, Metric, build_html_table
from ticketry.records.schema import Count, Density, Number, Part, Role, raise_invalid_field

About = Literal["ticket", "procedure"]
"""Subject of a verdict: a ticket (one mask with its initial weights), or a procedure (a method with its settings, whose
search is repeated for each replicate)."""
_About = Annotated[About, Meta(extra={"problem": "neither ticket nor procedure"})]
Claim = Literal["wins", "matches"]
Answer = Literal["yes", "no", "undecided"]
Outcome = Literal["wins", "matches", "loses", "undecided"]
VERDICTS: tuple[Outcome, ...] = get_args(Outcome)
_Answer = Annotated[Answer, Meta(extra={"problem": f"not one of {', '.join(get_args(Answer))}"})]

_NO_INTERVAL = "is not two numbers, the lower one first"
_Interval = Annotated[tuple[Number, Number], Meta(extra={"problem": _NO_INTERVAL})]

MARGIN_POINTS = 0.5
MARGIN_SHARE = 0.01
"""Default margins of verdicts: points for a metric in %, and a share of the dense network's mean for other units."""


def default_margin(unit: str, dense: Sequence[float]) -> float:
    """Return the default margin of a verdict: 0.5 points for a metric in %, else 1 % of the mean of `dense`."""
    return MARGIN_POINTS if unit == "%" else MARGIN_SHARE * abs(sum(dense) / len(dense))


def describe_answers(as_good: str | None, better: str | None, not_beaten: Sequence[str], controls: bool = True) -> str:
    """Return a sentence with the two answers of a verdict; empty if `as_good` and `better` are None.

    Args:
        as_good: whether the ticket is as good as the dense network: yes, no or undecided.
        better: whether the ticket is better than every control: yes, no or undecided.
        not_beaten: names, for display, of the controls that the ticket was not shown to beat.
        controls: whether there are controls.
    """
    if as_good is None:
        return ""
    if not controls or better is None:
        return f"as good as dense: {as_good}"
    text = f"as good as dense: {as_good}; better than every control: {better}"
    return f"{text} (not shown to beat {', '.join(not_beaten)})" if not_beaten and better != "yes" else text


class Task(Part, frozen=True):
    """The task and network that a record is about: names, metric and parameter counts."""

    name: str
    model: str
    """Name of the network or of its class; empty if the task did not name the network or the run has not started."""
    metric: Metric
    parameters: Count
    """Number of all parameters of the model; 0 if not yet known."""
    prunable: Count
    """Number of prunable parameters, the denominator of every density; 0 if not yet known."""

    def __post_init__(self) -> None:
        if self.prunable > self.parameters:
            raise_invalid_field("prunable", f"is more than all parameters ({self.parameters})")

    @property
    def title(self) -> str:
        """Names of network and task: ``lenet-300-100 on digits``; only the task's name if the network is unnamed."""
        return f"{self.model} on {self.name}" if self.model else self.name


class Experiment(Part, frozen=True, kw_only=True):
    """Base class of records of whole experiments: task, settings, environment, command and store."""

    task: Task
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    store: str = ""


class OmittedControl(Part, frozen=True):
    """A control that was omitted because it is not defined for a ticket."""

    role: str
    why: str


class Diagnosis(Part, frozen=True, kw_only=True):
    """Statistics that show whether paired differences, in the order of seeds, meet the assumptions of their test."""

    skewness: Number
    """Skewness of the differences; below 0 if a few seeds are far worse than the others."""
    correlation: Number
    """Correlation between the differences of successive seeds (lag 1)."""
    low: tuple[Count, ...] = ()
    """Numbers, from 1, of the seeds whose differences are far below the others, which count as collapsed."""
    high: tuple[Count, ...] = ()
    """Numbers, from 1, of the seeds whose differences are far above the others."""
    collapse_rate: Number
    """Upper 95 % confidence bound of the share of seeds that collapse; 1 - 0.05^(1/n) if none of n did."""


class MeanDifference(Part, frozen=True, kw_only=True):
    """Mean of ticket minus other network over paired seeds, in the metric's unit; positive if the ticket is better."""

    mean: Number
    low: Number | None = None
    """Lower end of the two-sided t interval of the mean; None if the differences have no variance."""
    high: Number | None = None
    """Upper end of the two-sided t interval of the mean."""
    sd: Number | None = None
    """Standard deviation of the differences, with denominator n - 1; None for one seed."""

    def numbers(self) -> dict[str, Any]:
        """Return mean, low, high and sd by name, as arguments for another record of a difference."""
        return {name: getattr(self, name) for name in MeanDifference.__struct_fields__}


class Difference(MeanDifference, frozen=True, kw_only=True):
    """Mean difference between the ticket and the network with the role `role`, and the test of this difference."""

    role: Role
    """Role of the other network."""
    p: Number | None = None
    """p-value of the test of this difference; None if no test uses the difference."""
    diagnosis: Diagnosis | None = None
    """Checks of the test's assumptions; None if there are too few seeds or no verdict uses the difference."""


class LongerDifference(Difference, frozen=True, kw_only=True):
    """Mean difference between the ticket and a network with more training steps."""

    steps: Count | None = None


Missing = TypeVar("Missing")


class VerdictAnswers(Part, Generic[Missing], frozen=True, kw_only=True):
    """The two answers of a verdict and their statistics; p-values are corrected for interim analyses.

    The type parameter `Missing` is None in records, because records from before 2026-11-22 lack the two answers.
    """

    as_good_as_dense: _Answer | Missing = None  # type: ignore[assignment]
    """Whether the ticket is at most `margin` worse than the dense network."""
    better_than_controls: _Answer | Missing = None  # type: ignore[assignment]
    """Whether the ticket is better than every control; "undecided" without controls."""
    not_beaten: tuple[Role, ...] = ()
    """Roles of the controls that the ticket was not shown to beat."""
    claim: str
    """Claim that was tested: wins or matches."""
    margin: Number
    """How much worse than dense still counts as equally good, in the metric's unit."""
    confidence: Number
    """Confidence level, as a fraction."""
    n: Count
    """Number of seeds or replicates."""
    groups: Count | Missing = None  # type: ignore[assignment]
    """Number of independent groups of seeds; seeds that share a dense network form one group."""
    p: Number
    """p-value of the claim; small if the data support it."""
    p_as_good: Number | Missing = None  # type: ignore[assignment]
    """p-value for "as good as dense"."""
    p_loses: Number | Missing = None  # type: ignore[assignment]
    """p-value for "not as good as dense"."""
    p_better: Number | Missing = None  # type: ignore[assignment]
    """p-value for "better than every control"."""
    p_not_better: Number | Missing = None  # type: ignore[assignment]
    """p-value for "not better than every control"."""
    more_seeds: Count | None = None
    """Estimated number of further seeds until a decision, with 80 % power, if means and variances stay as they are. 0
    if decided; None if more than `evidence.significance.MOST_SEEDS` seeds would be needed in total."""
    reasons: tuple[str, ...] = ()
    """Sentences that explain the verdict, including violated assumptions."""
    assumptions: tuple[str, ...] = ()
    """Sentences that state the assumptions of the test."""

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed to judge the claim.

        The claim "matches" needs only the answer whether the ticket is as good as dense. The claim "wins" needs both
        answers, unless the first answer is "no".
        """
        answered = self.claim == "matches" or self.better_than_controls != "undecided"
        return self.as_good_as_dense == "no" or (self.as_good_as_dense == "yes" and answered)

    def to_html(self, outcome: str, rows: Iterable[Sequence[Cell]]) -> str:
        """Return the HTML table that notebooks show; each row is ``(network, mean, low, high, p)``."""
        confidence = f"confidence {100 * self.confidence:g} %"
        caption = f"{outcome} (claim: {self.claim}; margin {self.margin:g}, {confidence}, n = {self.n})"
        return build_html_table(caption, ("ticket minus", "mean", "from", "to", "p"), rows, self.reasons)


class Judgement(VerdictAnswers[None], frozen=True, kw_only=True):
    """A verdict, from paired differences, on a level of a run, a ticket, or a repeated search."""

    about: _About = "ticket"
    """Subject of the verdict; records from before 2026-11-22 lack this field, and their subject is a ticket."""
    verdict: Annotated[Outcome, Meta(extra={"problem": f"not one of {', '.join(VERDICTS)}"})]
    difference: Number
    """Mean of ticket minus dense network, in the metric's unit."""
    interval: _Interval | None = None
    """Confidence interval of `difference`; None if it is undefined."""
    comparisons: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        if self.interval is not None and self.interval[0] > self.interval[1]:
            raise_invalid_field("interval", _NO_INTERVAL)

    @property
    def claims_of(self) -> str:
        """What the verdict is about, as text: "this ticket" or "this procedure"."""
        return f"this {self.about}"

    @property
    def answers(self) -> str:
        """Both answers of the verdict as a sentence; empty in old records, which lack the answers."""
        return describe_answers(
            self.as_good_as_dense, self.better_than_controls, self.not_beaten, len(self.comparisons) > 1
        )

    @property
    def decided(self) -> bool:
        """Whether no more seeds are needed; for an old record without answers, whether `verdict` is a decision."""
        return self.verdict != "undecided" if self.as_good_as_dense is None else super().decided

    def _repr_html_(self) -> str:
        rows = [(each.role, each.mean, each.low, each.high, each.p) for each in self.comparisons]
        return self.to_html(f"{self.claims_of}: {self.verdict}", rows)


class LevelVerdict(Judgement, frozen=True, kw_only=True):
    """The verdict on one level of a run over all replicates; it is about the search procedure."""

    about: _About = "procedure"
    level: Count
    density: Density
    p_holm: Number | None = None
    """p-value of the claim, Holm-corrected for the number of levels."""
    rule: str = ""
    """Name of the tests: "pooled" (`evidence.significance`). It is empty in records from before 2026-12, whose
    levels were tested separately; their verdicts are recomputed from the record's points for display."""
    probability: Number | None = None
    """1 - p, with the p-value of "as good as dense" before correction for the number of levels; None for fewer than
    three replicates."""
    beside: tuple[LongerDifference, ...] = ()
    """Differences between the ticket and networks with more training steps, which the verdict does not use."""
