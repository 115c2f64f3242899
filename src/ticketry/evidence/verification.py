"""Does this ticket win? Trained anew from seeds that no search has used, next to what it should beat.

The verdict is about *one* ticket, its mask and its start: seeds differ in the data order (and augmentation) of its
training, and in whatever is random in a control. A ticket may be chosen by any rule, for its verdict comes from fresh
seeds. Whether the *method* finds winners is asked by `evidence.level_verdicts`, over whole searches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ticketry.core.ticket.ticket import Ticket
from ticketry.evidence.comparisons import Rivals, Trained
from ticketry.evidence.dense_references import Reference, references, train_reference
from ticketry.evidence.level_verdicts import default_margin, judgement, resolution
from ticketry.evidence.paired_comparisons import Comparison, check_budgets, compare
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.ticket_under_test import Subject, subject
from ticketry.evidence.verdict import Verdict, decide_after, verdict
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.records.evidence import LeftOut, Network, Noise
from ticketry.records.evidence import Reference as ReferenceTold
from ticketry.tasks.task import Task

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

    def told(self) -> dict[str, Any]:
        """As fields of a `VerifyRecord`: those that evidence knows."""
        noise = self.noise
        return {
            **judgement(self.verdict),
            "networks": tuple(
                Network(role, tuple(values), self.budgets[role], self.parameters[role], self.models[role])
                for role, values in self.values.items()
            ),
            "noise": noise and Noise(noise.n, noise.mean, noise.sd, noise.low, noise.high, tuple(self.again)),
            "references": tuple(
                ReferenceTold(one.role, one.steps, tuple(values), one.note) for one, values in self.references
            ),
            "left_out": tuple(LeftOut(role, why) for role, why in self.left_out.items()),
        }


def verify(
    lab: Lab,
    ticket: Ticket,
    settings: VerifySettings | None = None,
    *,
    task: Task | None = None,
    on_interim: Callable[[Verdict], None] | None = None,
) -> Verification:
    """Train a ticket and what it should beat with fresh seeds, until it is decided whether it wins.

    Seeds are added up to each planned interim analysis; the first that decides ends it. Everything is taken from the
    lab's store where it is there. Two questions are answered (`evidence.verdict`): is it as good as the dense network,
    but for the margin, and (claim "wins") better than every control? The seeds of one ticket share its mask and its
    start by design, for the verdict is about that ticket.

    Args:
        ticket: saved by a search, see `evidence.ticket_under_test`.
        settings: the controls, the claim, its margin and confidence, the plan; the defaults of `VerifySettings` if left
            out. ``small_dense`` is left out, and this is told, where the task defines none.
        task: only for a ticket whose task cannot be made by its name.
        on_interim: called with the verdict of each interim analysis.

    Raises:
        TicketError, UsageError: see `evidence.ticket_under_test`; for settings out of range; for unequal budgets.
        TrainingError: if a loss is no longer a number.
    """
    settings = settings or VerifySettings()
    plan = settings.plan
    about = subject(lab, ticket, task)
    rivals = Rivals(about, tuple(dict.fromkeys(settings.rivals)))
    trained: dict[str, list[Trained]] = {role: [] for role in rivals.roles}
    for count in plan.at if plan else (settings.seeds or 1,):
        _add_seeds(about, rivals, trained, count)
        made = _judged(about, trained, settings)
        if on_interim:
            on_interim(made)
        if made.decided:
            break
    again = _again(about, rivals, made.n) if settings.noise else []
    values = {role: _values(about, found) for role, found in trained.items()}
    return Verification(
        verdict=made,
        values=values,
        budgets={role: found[0].budget for role, found in trained.items()},
        parameters={role: rivals.parameters(role) for role in trained},
        models={role: rivals.model(role) for role in trained},
        again=again,
        noise=_compared(about, values["ticket"], again, made) if again else None,
        references=_references(about, min(REFERENCE_SEEDS, made.n)) if settings.references else [],
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


def _judged(about: Subject, trained: Mapping[str, Sequence[Trained]], settings: VerifySettings) -> Verdict:
    values = {role: _values(about, found) for role, found in trained.items()}
    budgets = {role: [one.budget for one in found] for role, found in trained.items()}
    check_budgets(budgets)
    metric = about.task.metric
    judged = verdict if settings.plan is None else partial(decide_after, interim=settings.plan)
    return judged(
        values["ticket"],
        values["dense"],
        {role: found for role, found in values.items() if role not in ("ticket", "dense")},
        claim=settings.what_is_claimed,
        margin=settings.margin or default_margin(metric.unit, values["dense"]),
        confidence=settings.confidence,
        higher_is_better=metric.higher_is_better,
        resolution=resolution(metric.unit, about.lab.sizes(about.task)["test"]),
        least_spread=settings.least_spread,
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
