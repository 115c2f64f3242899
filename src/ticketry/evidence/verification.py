"""Verification: train a ticket or a procedure and its rivals from fresh seeds until a verdict is reached.

A claim about *a ticket*, its mask and its start: seeds differ in the data order (and augmentation) of its training, and
in the randomness of controls. The ticket may be chosen by any rule, because its verdict comes from fresh seeds. A claim
about *a procedure*, a method with its settings: the whole search is repeated from fresh seeds (`evidence.rivals`). A
run's own verdicts (`evidence.level_verdicts`) are about its procedure too, over replicates by which its settings and
level may have been chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ticketry.core.ticket.ticket import Ticket
from ticketry.evidence.comparison import Comparison, check_budgets, compare
from ticketry.evidence.level_verdicts import default_margin, judgement, resolution
from ticketry.evidence.rivals import Procedure, ProcedureRivals, Reference, Rivals, Trained
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.ticket_under_test import subject
from ticketry.evidence.verdict import Verdict, decide_after, verdict
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import Network, Noise
from ticketry.records.evidence import Reference as ReferenceTold
from ticketry.records.verdict import About, LeftOut
from ticketry.tasks.task import Task

REFERENCE_SEEDS = 3
"""Seeds of references, which are shown but not tested."""
AGAIN = "again"
"""Name of the ticket's second training in an A/A comparison."""


AnyRivals = Rivals | ProcedureRivals


@dataclass(frozen=True)
class Verification:
    """A verdict with its data."""

    about: About
    verdict: Verdict
    values: Mapping[str, Sequence[float]]
    """The metric on the test split by network (ticket, dense, controls), one value for each seed."""
    budgets: Mapping[str, int]
    """Training steps since initialisation: equal for every seed, which was checked, except for uneven roles."""
    parameters: Mapping[str, int]
    """Unpruned parameters."""
    models: Mapping[str, str]
    again: Sequence[float]
    """The ticket's values with equally many other seeds: the A/A run. Empty if not requested."""
    noise: Comparison | None
    """Ticket minus ticket: the noise floor."""
    references: Sequence[tuple[Reference, Sequence[float]]]
    """The dense network at other budgets, and its values."""
    left_out: Mapping[str, str]
    """Undefined controls, with the reason."""
    compared: AnyRivals = field(repr=False)
    trained: Sequence[Result] = field(repr=False)
    """The networks of every role and seed."""

    def to_record(self) -> dict[str, Any]:
        """Return the fields of a `VerifyRecord` that are known here."""
        noise = self.noise
        return {
            **judgement(self.verdict),
            "about": self.about,
            "networks": tuple(
                Network(role, tuple(values), self.budgets[role], self.parameters[role], self.models[role])
                for role, values in self.values.items()
            ),
            "noise": noise and Noise(n=noise.n, values=tuple(self.again), **noise.numbers()),
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
    """Train a ticket and its rivals with fresh seeds until it is decided whether it wins.

    Seeds are added up to each planned interim analysis; the first that decides ends it. Results in the lab's store are
    reused. Two hypotheses are tested (`evidence.verdict`): as good as the dense network, within the margin, and (claim
    "wins") better than every control. All seeds share the ticket's mask and start, because the verdict is about it.

    Args:
        ticket: a ticket of a search, see `evidence.ticket_under_test`.
        settings: the controls, the claim, its margin and confidence, the plan; the defaults of `VerifySettings` if left
            out. ``small_dense`` is left out, with a note, if the task defines none.
        task: only for a ticket whose task cannot be built from its name.
        on_interim: called with the verdict of each interim analysis.

    Raises:
        TicketError, UsageError: see `evidence.ticket_under_test`; for settings out of range; for unequal budgets.
        TrainingError: if a loss is no longer a number.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> settings = tk.evidence.VerifySettings(controls=("shuffled",), seeds=3, noise=False, references=False)
        >>> with tk.Lab() as lab:
        ...     found = tk.evidence.verify(lab, run.best().load(), settings)
        >>> found.verdict.n
        3
    """
    settings = settings or VerifySettings()
    rivals = Rivals(replace(subject(lab, ticket, task), after=settings.after), settings)
    made, trained = _decide(rivals, settings, on_interim)
    again = _again(rivals, made.n) if settings.noise else []
    noise = _minus_itself(rivals, _values(rivals, trained["ticket"])[: made.n], again, made) if again else None
    return _verification("ticket", rivals, settings, made, trained, again=again, noise=noise)


def verify_procedure(
    procedure: Procedure,
    settings: VerifySettings | None = None,
    *,
    on_interim: Callable[[Verdict], None] | None = None,
) -> Verification:
    """Repeat a whole search and its rivals from fresh seeds until it is decided whether it wins.

    As `verify`, but every seed has its own initialisation, data order and search, and so do the rivals: pairs share
    their seed, and seeds share nothing.

    Args:
        procedure: the search, see `Procedure`.
        settings: as of `verify`.
        on_interim: called with the verdict of each interim analysis.

    Raises:
        UsageError: for settings out of range; for unequal budgets; for a level that a repeated search does not reach.
        TrainingError: if a loss is no longer a number.

    Examples:
        >>> iterative, task = tk.search.iterative, tk.task("digits")
        >>> what = {"settings": iterative.Settings(levels=1), "recipe": tk.Recipe(length="20it"), "level": 1}
        >>> what["seeds"] = tk.search.Seeds()
        >>> settings = tk.evidence.VerifySettings(about="procedure", controls=("shuffled",), seeds=3)
        >>> with tk.Lab() as lab:
        ...     procedure = tk.evidence.Procedure(lab, iterative.search, lambda _: task, **what)
        ...     found = tk.evidence.verify_procedure(procedure, settings)
        >>> found.verdict.n
        3
    """
    settings = settings or VerifySettings()
    rivals = ProcedureRivals(replace(procedure, after=settings.after), settings)
    made, trained = _decide(rivals, settings, on_interim)
    return _verification("procedure", rivals, settings, made, trained)


def _decide(
    rivals: AnyRivals, settings: VerifySettings, on_interim: Callable[[Verdict], None] | None
) -> tuple[Verdict, dict[str, list[Trained]]]:
    """Return the verdict of the first analysis that decides, or of the last one, with its trainings."""
    plan, trained, margin = settings.plan, dict[str, list[Trained]](), settings.margin
    for count in plan.at if plan else (settings.seeds or 1,):
        _add_seeds(rivals, trained, count)
        # One margin for all analyses, so that more seeds do not change earlier answers.
        if margin is None:
            margin = default_margin(rivals.task.metric.unit, _values(rivals, trained["dense"]))
        made = _judge(rivals, trained, settings, margin)
        if on_interim:
            on_interim(made)
        if made.decided:
            break
    return made, trained


def _add_seeds(rivals: AnyRivals, trained: dict[str, list[Trained]], count: int) -> None:
    """Train every network with the seeds from those there are up to `count`."""

    def one(number: int) -> dict[str, Trained]:
        with rivals.lab.telling(f"seed {number} "):
            return rivals.of_seed(number)

    missing = range(len(trained.get("ticket", ())), count)
    for found in rivals.lab.gather([partial(one, number) for number in missing]):
        for role, result in found.items():
            trained.setdefault(role, []).append(result)
    for role in rivals.left_out:  # a control may be undefined for a later seed
        trained.pop(role, None)


def _judge(
    rivals: AnyRivals, trained: Mapping[str, Sequence[Trained]], settings: VerifySettings, margin: float
) -> Verdict:
    values = {role: _values(rivals, found) for role, found in trained.items()}
    even = {role: found for role, found in trained.items() if role not in rivals.uneven}
    for number in range(len(trained["ticket"])):
        check_budgets({role: [found[number].budget] for role, found in even.items()})
    metric = rivals.task.metric
    judged = verdict if settings.plan is None else partial(decide_after, interim=settings.plan)
    return judged(
        values["ticket"],
        values["dense"],
        {role: found for role, found in values.items() if role not in ("ticket", "dense")},
        claim=settings.what_is_claimed,
        margin=margin,
        confidence=settings.confidence,
        higher_is_better=metric.higher_is_better,
        resolution=resolution(metric.unit, rivals.lab.sizes(rivals.task)["test"]),
        least_spread=settings.least_spread,
        parents=rivals.parents(),
        unit=metric.unit,
    )


def _verification(
    about: About,
    rivals: AnyRivals,
    settings: VerifySettings,
    made: Verdict,
    trained: Mapping[str, Sequence[Trained]],
    *,
    again: Sequence[float] = (),
    noise: Comparison | None = None,
) -> Verification:
    return Verification(
        about=about,
        verdict=made,
        values={role: _values(rivals, found) for role, found in trained.items()},
        budgets={role: round(sum(one.budget for one in found) / len(found)) for role, found in trained.items()},
        parameters={role: rivals.parameters(role) for role in trained},
        models={role: rivals.model(role) for role in trained},
        again=again,
        noise=noise,
        references=rivals.references(min(REFERENCE_SEEDS, made.n)) if settings.references else [],
        left_out=rivals.left_out,
        compared=rivals,
        trained=[one.result for found in trained.values() for one in found],
    )


def _again(rivals: Rivals, count: int) -> list[float]:
    """Train the ticket with equally many separate seeds."""

    def one(number: int) -> Trained:
        with rivals.lab.telling(f"seed {number} {AGAIN} "):
            return rivals.train("ticket", rivals.subject.fresh_seeds(number, AGAIN))

    return _values(rivals, rivals.lab.gather([partial(one, number) for number in range(count)]))


def _minus_itself(rivals: Rivals, ticket: Sequence[float], again: Sequence[float], made: Verdict) -> Comparison:
    metric = rivals.task.metric
    return compare(
        ticket,
        again,
        margin=made.margin,
        confidence=made.confidence,
        higher_is_better=metric.higher_is_better,
        resolution=resolution(metric.unit, rivals.lab.sizes(rivals.task)["test"]),
        name=AGAIN,
    )


def _values(rivals: AnyRivals, trained: Sequence[Trained]) -> list[float]:
    name = rivals.task.metric.name
    return [float(one.result.metrics["test"][name]) for one in trained]
