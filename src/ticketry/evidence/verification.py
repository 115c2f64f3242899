"""Does this ticket win? Trained anew from seeds that no search has used, next to what it should beat.

The verdict is about *one* ticket, its mask and its start: seeds differ in the data order (and augmentation) of its
training, and in whatever is random in a control. A ticket may be chosen by any rule, for its verdict comes from fresh
seeds. Whether the *method* finds winners is asked by `evidence.judge`, over whole searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ticketry.core.ticket import Ticket
from ticketry.errors import UsageError
from ticketry.evidence.judge import default_margin, described, resolution
from ticketry.evidence.names import RIVALS
from ticketry.evidence.paired import Comparison, check_budgets, compare
from ticketry.evidence.references import Reference, references, train_reference
from ticketry.evidence.rivals import Rivals, Trained
from ticketry.evidence.subject import Subject, subject
from ticketry.evidence.verdict import Claim, Looks, Verdict, verdict
from ticketry.lab.found import Seeds
from ticketry.lab.lab import Lab
from ticketry.tasks.base import Task

REFERENCE_SEEDS = 3
"""The references are shown, not tested: a few seeds tell where they stand."""
AGAIN = "again"
"""The ticket once more, of an A/A comparison."""


@dataclass(frozen=True)
class Verification:
    """A verdict with all that it rests on."""

    verdict: Verdict
    values: Mapping[str, Sequence[float]]
    """The metric on the test split by network (ticket, dense, controls), one value a seed."""
    budgets: Mapping[str, int]
    """Training steps since initialisation: equal, which was checked."""
    parameters: Mapping[str, int]
    """That are not pruned."""
    models: Mapping[str, str]
    again: Sequence[float]
    """The ticket's values with as many other seeds: the A/A run. Empty if it was not asked for."""
    noise: Comparison | None
    """Ticket minus ticket: what a difference of nothing looks like, the noise floor."""
    references: Sequence[tuple[Reference, Sequence[float]]]
    """The dense network at other budgets, and its values."""
    left_out: Mapping[str, str]
    """Controls that are not defined for this ticket, and why."""
    subject: Subject = field(repr=False)

    def describe(self) -> dict[str, Any]:
        """As JSON values: the part of a verify record that the lab knows."""
        noise = self.noise
        return {
            **described(self.verdict),
            "networks": [
                {
                    "role": role,
                    "values": list(values),
                    "budget": self.budgets[role],
                    "parameters": self.parameters[role],
                    "model": self.models[role],
                }
                for role, values in self.values.items()
            ],
            "noise": None
            if noise is None
            else {
                "values": list(self.again),
                "n": noise.n,
                "mean": noise.mean,
                "sd": noise.sd,
                "low": noise.low,
                "high": noise.high,
            },
            "references": [
                {"role": one.role, "steps": one.steps, "values": list(values), "note": one.note}
                for one, values in self.references
            ],
            "left_out": [{"role": role, "why": why} for role, why in self.left_out.items()],
        }


def verify(
    lab: Lab,
    ticket: Ticket,
    *,
    task: Task | None = None,
    controls: Sequence[str] = tuple(RIVALS),
    claim: Claim = "wins",
    margin: float | None = None,
    confidence: float = 0.95,
    looks: Looks | None = None,
    seeds: int | None = None,
    noise: bool = True,
    with_references: bool = True,
    on_look: Callable[[Verdict], None] | None = None,
) -> Verification:
    """Train a ticket and what it should beat with fresh seeds, until it is decided whether it wins.

    Seeds are added up to each planned look; it stops at the first look that decides. Everything is taken from the
    lab's store where it is there. Two halves are tested (`evidence.verdict`): no worse than the dense network by the
    margin, and (claim "wins") better than every control.

    Args:
        ticket: saved by a search, see `evidence.subject`.
        task: only for a ticket whose task cannot be made by its name.
        controls: names of `RIVALS`; ``small_dense`` is left out, and this is told, where the task defines none.
        margin: in the metric's unit; by default half a point for a metric in %, else 1 % of the dense network's mean.
        looks: the plan, by default at 3, 5, 7 and 10 seeds.
        seeds: so many seeds, judged once, instead of a plan.
        noise: whether to train the ticket with as many seeds again, for the noise floor.
        with_references: whether to train the dense network at the search's cost and at the ticket's FLOPs.
        on_look: called with the verdict of each look.

    Raises:
        TicketError, UsageError: see `evidence.subject`; for settings out of range; for unequal budgets.
        TrainingError: if a loss is no longer a number.
    """
    if looks is not None and seeds is not None:
        raise UsageError("looks plans the numbers of seeds: give either looks or seeds")
    if seeds is not None and seeds < 1:
        raise UsageError(f"{seeds} seeds: give at least 1")
    plan = None if seeds is not None else looks or Looks()
    about = subject(lab, ticket, task)
    rivals = Rivals(about, tuple(dict.fromkeys(controls)))
    trained: dict[str, list[Trained]] = {role: [] for role in rivals.roles}
    judge = partial(_judged, about, claim=claim, margin=margin, confidence=confidence, plan=plan)
    for count in plan.at if plan else (seeds or 1,):
        _add_seeds(about, rivals, trained, count)
        made = judge(trained)
        if on_look:
            on_look(made)
        if made.outcome != "undecided":
            break
    again = _again(about, rivals, made.n) if noise else []
    values = {role: _values(about, found) for role, found in trained.items()}
    return Verification(
        verdict=made,
        values=values,
        budgets={role: found[0].budget for role, found in trained.items()},
        parameters={role: rivals.parameters(role) for role in trained},
        models={role: rivals.model(role) for role in trained},
        again=again,
        noise=_compared(about, values["ticket"], again, made) if again else None,
        references=_references(about, min(REFERENCE_SEEDS, made.n)) if with_references else [],
        left_out=rivals.left_out,
        subject=about,
    )


def _add_seeds(about: Subject, rivals: Rivals, trained: dict[str, list[Trained]], count: int) -> None:
    """Train every network with the seeds from those there are up to `count`."""
    wanted = [(role, number) for number in range(len(trained["ticket"]), count) for role in rivals.roles]

    def one(role: str, number: int) -> Trained:
        with about.lab.telling(f"seed {number} "):
            return rivals.train(role, about.fresh_seeds(number))

    results = about.lab.gather([partial(one, role, number) for role, number in wanted])
    for (role, _), result in zip(wanted, results, strict=True):
        trained[role].append(result)


def _judged(
    about: Subject,
    trained: Mapping[str, Sequence[Trained]],
    *,
    claim: Claim,
    margin: float | None,
    confidence: float,
    plan: Looks | None,
) -> Verdict:
    values = {role: _values(about, found) for role, found in trained.items()}
    budgets = {role: [one.budget for one in found] for role, found in trained.items()}
    check_budgets(budgets)
    metric = about.task.metric
    return verdict(
        values["ticket"],
        values["dense"],
        {role: found for role, found in values.items() if role not in ("ticket", "dense")},
        claim=claim,
        margin=margin or default_margin(metric.unit, values["dense"]),
        confidence=confidence,
        higher_is_better=metric.higher_is_better,
        resolution=resolution(metric.unit, about.lab.sizes(about.task)["test"]),
        looks=plan,
    )


def _again(about: Subject, rivals: Rivals, count: int) -> list[float]:
    """The ticket with as many seeds of its own."""

    def one(number: int) -> Trained:
        with about.lab.telling(f"seed {number} {AGAIN} "):
            return rivals.train("ticket", about.fresh_seeds(number, AGAIN))

    return _values(about, about.lab.gather([partial(one, number) for number in range(count)]))


def _compared(about: Subject, ticket: Sequence[float], again: Sequence[float], made: Verdict) -> Comparison:
    metric = about.task.metric
    return compare(
        ticket,
        again,
        margin=made.margin,
        confidence=made.confidence,
        higher_is_better=metric.higher_is_better,
        resolution=resolution(metric.unit, about.lab.sizes(about.task)["test"]),
        name=AGAIN,
    )


def _references(about: Subject, count: int) -> list[tuple[Reference, Sequence[float]]]:
    shown = references(about)

    def one(reference: Reference, seeds: Seeds) -> float:
        with about.lab.telling("reference "):
            result = train_reference(about, reference, seeds)
        return float(result.metrics["test"][about.task.metric.name])

    pieces = [partial(one, reference, about.fresh_seeds(number)) for reference in shown for number in range(count)]
    values = about.lab.gather(pieces)
    return [(reference, values[index * count : (index + 1) * count]) for index, reference in enumerate(shown)]


def _values(about: Subject, trained: Sequence[Trained]) -> list[float]:
    name = about.task.metric.name
    return [float(one.result.metrics["test"][name]) for one in trained]
