"""The record of a run (a search over several replicates), and the progress of a run that is being executed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr

from ticketry.errors import StoreError
from ticketry.records.network import Cost, Point, check_metric
from ticketry.records.schema import (
    AtLeastOne,
    Count,
    Density,
    NotNegative,
    Number,
    Part,
    Role,
    Share,
    check_format,
    decode_record,
    raise_invalid_field,
)
from ticketry.records.verdict import Experiment, LevelVerdict, OmittedControl

FORMAT: Final = 1
_ADVICE = "Repeat the run to rewrite the record; trainings in the store are reused"


_Place = Annotated[tuple[Count, Share], Meta(extra={"problem": "is not a step and a share"})]
_Gates = Annotated[int, Meta(ge=0, extra={"problem": "below 0"})]


class Round(Part, frozen=True, kw_only=True):
    """One training with gates (learned on/off switches of weights): it gave a ticket's mask, or was a trial."""

    replicate: Count
    level: Count
    used: bool
    """Whether the ticket uses the resulting mask; if False, the training was only a trial."""
    number: AtLeastOne = field(name="round")
    kind: str = ""
    init: Number
    penalty: Number
    steps: Count
    seconds: Number | None = None
    density: Share
    """Share of gates that are on at the end of the training."""
    soft_density: Number | None = None
    """Mean gate value at the end of the training."""
    ties: Count | None = None
    validation: dict[str, Any]
    """Metrics on the validation split with gates rounded to on or off."""
    soft_validation: dict[str, Any]
    """Metrics on the validation split with soft gates."""
    path: tuple[_Place, ...] = ()
    """Course of the share of gates that are on during the training, as (step, share)."""
    histogram: tuple[_Gates, ...]
    """Histogram of gate values at the end of the training, with equal bins from 0 to 1."""
    key: str = ""
    cut_to: Share | None = None
    """Density to which the mask was pruned by gate values, because no initial value s0 of gates led to this density;
    None if the mask retains exactly the weights whose gates are on."""

    def __post_init__(self) -> None:
        if not self.histogram:
            raise_invalid_field("histogram", "is empty")

    def metric(self, name: str, *, soft: bool) -> float:
        """Return the metric `name` on the validation split, with fractional gates if `soft`, else rounded."""
        return float((self.soft_validation if soft else self.validation)[name])


class OmittedControlAtLevel(OmittedControl, frozen=True):
    """A control that was omitted because it is not defined for the tickets of one level."""

    level: Count


class ScheduleSteps(Part, frozen=True, omit_defaults=True):
    """Number of steps of the whole training and of an epoch, and the rewind step."""

    total: Count | None = None
    per_epoch: Count | None = None
    rewind: Count | None = None
    """Step whose weights tickets start from."""


class RunRecord(Experiment, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="search"):
    """The record of a run: a search method on a task, repeated over replicates, with all trained networks."""

    format: Literal[1]
    name: str = field(name="run")
    label: str = ""
    """The name that the user gave to the run (``--name``); empty for a run with a default name."""
    method: str
    title: str = ""
    alias: str = ""
    """The paper's name by which the method was requested, such as snip; empty if the method's own name was used."""
    points: tuple[Point, ...]
    """All trained networks; each is identified by replicate, level and role."""
    recipe: dict[str, Any] = field(default_factory=dict)
    replicates: Count = 0
    seeds: dict[str, Any] = field(default_factory=dict)
    """Seeds of the first replicate."""
    controls: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    """Name of a user-defined part (method, score, kind of gates, control) -> digest of its source file."""
    steps: ScheduleSteps = ScheduleSteps()
    recorded_cost: dict[str, Any] = field(default_factory=dict, name="cost")
    config: str = ""
    verdicts: tuple[LevelVerdict, ...] = ()
    verdict_error: str = ""
    """Reason why the run has no verdicts; empty if no reason is known."""
    left_out: tuple[OmittedControlAtLevel, ...] = ()
    """Requested controls that were omitted, because they could not be trained for as long as the tickets."""
    rounds: tuple[Round, ...] = ()
    """All trainings with gates, if the method derives masks from gates."""
    ended: str = ""
    """Reason why a replicate has fewer tickets than requested; empty if all replicates are complete."""
    scored: str = ""
    """Pruning score that was used, if it is not the score in the settings; else empty."""

    @property
    def known_as(self) -> str:
        """Name by which the user requested the method, shown in lists, labels and tables."""
        return self.alias or self.method

    @property
    def effective_settings(self) -> dict[str, Any]:
        """The settings, with the pruning score that was actually used."""
        return {**self.settings, "score": self.scored} if self.scored else self.settings

    @property
    def cost(self) -> Cost:
        """Cost of the whole run; values that are invalid in the record are omitted."""
        return Cost.from_values(self.recorded_cost)

    def __post_init__(self) -> None:
        force_setattr(self, "title", self.title or self.method)
        metric = self.task.metric.name
        seen: set[tuple[int, int, str]] = set()
        for index, point in enumerate(self.points):
            identity = (point.replicate, point.level, point.role)
            if identity in seen:
                raise_invalid_field(
                    f"points[{index}]",
                    f"is the second {point.role} of replicate {point.replicate} at level {point.level}: "
                    "it would be counted twice",
                )
            seen.add(identity)
            for split in ("validation", "test"):
                check_metric(getattr(point, split), metric, f"points[{index}].{split}")
        for index, one in enumerate(self.rounds):
            for split in ("validation", "soft_validation"):
                check_metric(getattr(one, split), metric, f"rounds[{index}].{split}")
        if len({len(one.histogram) for one in self.rounds}) > 1:
            raise_invalid_field("rounds", "have histograms of different bins")


RunValues = RunRecord | Mapping[str, Any]
"""A record of a run, or the JSON values of one."""


def read_run(record: object, what: str = "run record") -> RunRecord:
    """Convert JSON values to the record of a run; return a record unchanged."""
    if isinstance(record, RunRecord):
        return record
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    if isinstance(record, Mapping) and record.get("kind") != "search":
        raise StoreError(f"{what}: kind is not 'search', and only searches can be shown. {_ADVICE}")
    return decode_record(RunRecord, record, what=what, advice=_ADVICE)


PROGRESS_FILE: Final = "progress.json"
PROGRESS_SECONDS: Final = 2.0
"""Seconds between two writes of the file."""


class ProgressPoint(Part, frozen=True):
    """A trained network of a run that is being executed, with its test metric."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    value: Number


class ActiveSegment(Part, frozen=True):
    """A training that is running now: its label, and the number of steps that are done."""

    label: str
    done: Count
    of: Count
    waiting: bool = False
    """Whether the run waits for another process that is training the same segment."""


class Progress(Part, frozen=True, kw_only=True):
    """Progress of a run that is being executed: trained networks, running trainings, and times."""

    format: int = FORMAT
    run: str
    title: str
    task: str
    metric: str
    unit: str
    higher_is_better: bool
    expected: Count = 0
    """Number of networks that the run will have; 0 if the method cannot predict this number."""
    trained: Count = 0
    """Number of networks that this process trained; all other networks were already in the store."""
    began: NotNegative
    """Start of the run, in seconds since 1970."""
    at: NotNegative
    """Time at which this file was written, in seconds since 1970."""
    since: NotNegative = 0.0
    """Time of the first training step, in seconds since 1970; 0 if there was none yet or the time is unknown."""
    at_once: Count = 0
    """Largest number of networks that were trained simultaneously so far."""
    points: tuple[ProgressPoint, ...] = ()
    active: tuple[ActiveSegment, ...] = ()

    @property
    def seconds_left(self) -> float | None:
        """Estimated remaining time in seconds; None if it cannot be estimated yet."""
        return estimate_time_left(
            self.at - (self.since or self.began), self.trained, len(self.points), self.expected, at_once=self.at_once
        )


def estimate_time_left(seconds: float, trained: int, finished: int, expected: int, *, at_once: int = 1) -> float | None:
    """Return the estimated remaining time of a run in seconds; None if this is not possible yet.

    Args:
        seconds: training time so far, without the time in which workers started.
        trained: number of networks trained in that time.
        finished: number of networks that the run has, including networks found in the store.
        expected: number of networks that the run will have; 0 if unknown.
        at_once: number of networks that are trained simultaneously. Before this many networks are trained, there is no
        estimate, because networks that start together end at nearly the same time.
    """
    if not expected or trained < max(at_once, 1):
        return None
    return seconds / trained * max(expected - finished, 0)
