"""The record of a run: a search over replicates, with every network that it trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field
from msgspec.structs import force_setattr

from ticketry.errors import StoreError
from ticketry.records.network import Cost, Point, check_metric
from ticketry.records.schema import AtLeastOne, Count, Number, Part, Share, check_format, read, reject
from ticketry.records.verdict import Experiment, LeftOut, LevelVerdict

FORMAT: Final = 1
_ADVICE = "Repeat the run to write the record anew; what is in the store is not trained again"


_Place = Annotated[tuple[Count, Share], Meta(extra={"problem": "is not a step and a share"})]
_Gates = Annotated[int, Meta(ge=0, extra={"problem": "below 0"})]


class Round(Part, frozen=True, kw_only=True):
    """One training with gates, from which a mask comes or which was tried on the way to one."""

    replicate: Count
    level: Count
    """Of the ticket that it was trained for."""
    used: bool
    """Whether that ticket has its mask; if not, it was a try."""
    number: AtLeastOne = field(name="round")
    kind: str = ""
    """Of gates."""
    init: Number
    penalty: Number
    steps: Count
    seconds: Number | None = None
    density: Share
    """Share of the gates that are on at the end."""
    soft_density: Number | None = None
    """Mean of the gates at the end."""
    ties: Count | None = None
    validation: dict[str, Any]
    """The metrics on the validation split, of the hard network."""
    soft_validation: dict[str, Any]
    """The same of the network with soft gates."""
    path: tuple[_Place, ...] = ()
    """(step, share of the gates that are on) on the way."""
    histogram: tuple[_Gates, ...]
    """Gates by how far they are open at the end, in equal bins from 0 to 1."""
    key: str = ""
    """Of the segment in the store."""
    cut_to: Share | None = None
    """Density that the ticket's mask was cut to by the values of the gates, because no s0 was found that leaves it;
    None where the mask is that of the gates which are on."""

    def __post_init__(self) -> None:
        if not self.histogram:
            reject("histogram", "is empty")

    def metric(self, name: str, *, soft: bool) -> float:
        """On the validation split, with soft gates or of the hard network."""
        return float((self.soft_validation if soft else self.validation)[name])


class LeftOutAtLevel(LeftOut, frozen=True):
    """A control that is not defined for the tickets of a level."""

    level: Count


class ScheduleSteps(Part, frozen=True, omit_defaults=True):
    """Steps of the training schedule."""

    total: Count | None = None
    per_epoch: Count | None = None
    rewind: Count | None = None
    """That tickets start from."""


class RunRecord(Experiment, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind", tag="search"):
    """A whole run."""

    format: Literal[1]
    name: str = field(name="run")
    label: str = ""
    """The name that the user gave to the run (``--name``); empty for a run with a default name."""
    method: str
    title: str = ""
    """Of the method."""
    alias: str = ""
    """The paper's name by which the method was requested, such as snip; empty if that was the method's own."""
    points: tuple[Point, ...]
    """All trained networks: no two of one replicate, level and role."""
    recipe: dict[str, Any] = field(default_factory=dict)
    replicates: Count = 0
    seeds: dict[str, Any] = field(default_factory=dict)
    """Of the first replicate."""
    controls: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)
    """Digests of the source of method, score, kind of gates and controls, of those that are not built in."""
    steps: ScheduleSteps = ScheduleSteps()
    recorded_cost: dict[str, Any] = field(default_factory=dict, name="cost")
    config: str = ""
    """The run file."""
    verdicts: tuple[LevelVerdict, ...] = ()
    verdict_error: str = ""
    """Why there are no verdicts; empty if that is not told."""
    left_out: tuple[LeftOutAtLevel, ...] = ()
    """Controls that were asked for and could not be trained for as long as the tickets."""
    rounds: tuple[Round, ...] = ()
    """The trainings with gates that masks come from, where there are any."""
    ended: str = ""
    """Why some replicate has found less than was asked for; empty if none has."""
    scored: str = ""
    """The score that masks were chosen by, where it is not the one that the settings name."""

    @property
    def known_as(self) -> str:
        """The method's name in lists, labels and tables: the paper's name, if it was requested by that."""
        return self.alias or self.method

    @property
    def effective_settings(self) -> dict[str, Any]:
        """The settings, with the score that masks were chosen by."""
        return {**self.settings, "score": self.scored} if self.scored else self.settings

    @property
    def cost(self) -> Cost:
        """What all of it cost."""
        return Cost.from_values(self.recorded_cost)

    def __post_init__(self) -> None:
        force_setattr(self, "title", self.title or self.method)
        metric = self.task.metric.name
        seen: set[tuple[int, int, str]] = set()
        for index, point in enumerate(self.points):
            identity = (point.replicate, point.level, point.role)
            if identity in seen:
                reject(
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
            reject("rounds", "have histograms of different bins")


RunValues = RunRecord | Mapping[str, Any]
"""The record of a run, or its JSON values."""


def read_run(record: object, what: str = "run record") -> RunRecord:
    """The record of a run, from its JSON values.

    Args:
        what: what it is called in errors, or its file.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    if isinstance(record, RunRecord):
        return record
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    if isinstance(record, Mapping) and record.get("kind") != "search":
        raise StoreError(f"{what}: kind is not 'search', and only searches can be shown. {_ADVICE}")
    return read(RunRecord, record, what=what, advice=_ADVICE)
