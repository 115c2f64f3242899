"""Verification: train a ticket (or repeat a search) and its rivals from fresh seeds until a verdict is reached.

- A verdict on *a ticket* is about its mask and its initial weights: seeds differ in data order, augmentation and the
  randomness of controls. The ticket may have been selected by any rule, because the seeds are new.
- A verdict on *a procedure* is about a method with its settings: every seed repeats the whole search.

A run's own verdicts (`evidence.level_verdicts`) are about its procedure too, but from the same replicates by which the
user may have selected settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ticketry.core.ticket.ticket import Ticket
from ticketry.evidence.comparison import Comparison, check_budgets, compare
from ticketry.evidence.level_verdicts import metric_resolution, to_judgement_fields
from ticketry.evidence.rivals import Procedure, ProcedureRivals, Rivals, TrainedNetwork, load_tested_ticket
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verdict import Verdict, decide_after, verdict
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import Network, Noise, Reference
from ticketry.records.verdict import About, OmittedControl, default_margin
from ticketry.tasks.task import Task

REFERENCE_SEEDS = 3
"""Number of seeds of reference networks, which are shown but not tested."""
AGAIN = "again"
"""Name, in messages, of the ticket's second training when it is compared with itself (A/A)."""


AnyRivals = Rivals | ProcedureRivals


@dataclass(frozen=True)
class Verification:
    """Result of a verification: the verdict and all values that it is based on."""

    about: About
    verdict: Verdict
    values: Mapping[str, Sequence[float]]
    """Role (ticket, dense, controls) -> the metric on the test split, one value for each seed."""
    budgets: Mapping[str, int]
    """Role -> training steps since initialisation, as the mean over seeds; seeds differ only for some roles of
    procedures."""
    parameters: Mapping[str, int]
    """Role -> number of unpruned parameters."""
    models: Mapping[str, str]
    again: Sequence[float]
    """Values of the ticket with equally many other seeds, for a comparison with itself (A/A); empty if not
    requested."""
    noise: Comparison | None
    """Comparison of the ticket with itself under other seeds, which shows the noise floor; None if not requested."""
    references: Sequence[Reference]
    """Dense networks with other numbers of steps, each with its values."""
    left_out: Mapping[str, str]
    """Control that is undefined here -> reason."""
    compared: AnyRivals = field(repr=False)
    trained: Sequence[Result] = field(repr=False)
    """Results of all trained networks, of every role and seed."""

    def to_record(self) -> dict[str, Any]:
        """Return the fields of a `VerifyRecord` that can be derived from this result."""
        noise = self.noise
        return {
            **to_judgement_fields(self.verdict),
            "about": self.about,
            "networks": tuple(
                Network(role, tuple(values), self.budgets[role], self.parameters[role], self.models[role])
                for role, values in self.values.items()
            ),
            "noise": noise and Noise(n=noise.n, values=tuple(self.again), **noise.numbers()),
            "references": tuple(self.references),
            "left_out": tuple(OmittedControl(role, why) for role, why in self.left_out.items()),
        }


def verify(
    lab: Lab,
    ticket: Ticket,
    settings: VerifySettings | None = None,
    *,
    task: Task | None = None,
    on_interim: Callable[[Verdict], None] | None = None,
) -> Verification:
    """Train a ticket and its rivals with fresh seeds until an analysis decides whether the ticket wins.

    Seeds are added until a planned interim analysis decides. Results in the lab's store are reused. Two hypotheses are
    tested (`evidence.verdict`): the ticket is as good as the dense network within the margin, and, for the claim
    "wins", better than every control. All seeds share the ticket's mask and initial weights, which are the subject of
    the verdict.

    Args:
        lab: lab that trains the networks.
        ticket: a ticket of a search, see `evidence.rivals.load_tested_ticket`.
        settings: controls, claim, margin, confidence and plan; by default those of `VerifySettings`. The control
            ``small_dense`` is omitted, with a note, if the task defines no narrower network.
        task: required only if the ticket's task cannot be built from its name.
        on_interim: called with the verdict of each interim analysis.

    Raises:
        TicketError, UsageError: if the ticket cannot be tested, see `rivals.load_tested_ticket`; `UsageError` also if a
            setting is out of range or networks have different numbers of steps.
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
    rivals = Rivals(replace(load_tested_ticket(lab, ticket, task), after=settings.after), settings)
    made, trained = _train_until_decided(rivals, settings, on_interim)

    def train_again(number: int) -> TrainedNetwork:
        with lab.telling(f"seed {number} {AGAIN} "):
            return rivals.train_role("ticket", rivals.subject.fresh_seeds(number, AGAIN))

    again, noise = list[float](), None
    if settings.noise:
        again = _test_metric_values(rivals, lab.gather([partial(train_again, number) for number in range(made.n)]))
        metric = rivals.task.metric
        noise = compare(
            _test_metric_values(rivals, trained["ticket"])[: made.n],
            again,
            margin=made.margin,
            confidence=made.confidence,
            higher_is_better=metric.higher_is_better,
            resolution=metric_resolution(metric.unit, lab.sizes(rivals.task)["test"]),
            name=AGAIN,
        )
    return _make_verification("ticket", rivals, settings, made, trained, again=again, noise=noise)


def verify_procedure(
    procedure: Procedure, settings: VerifySettings | None = None, *, on_interim: Callable[[Verdict], None] | None = None
) -> Verification:
    """Repeat a whole search and its rivals from fresh seeds until an analysis decides whether its tickets win.

    Unlike in `verify`, every seed has its own initialisation, data order and search. Networks that are compared as a
    pair have the same seed; different seeds share nothing.

    Args:
        procedure: the search, see `Procedure`.
        settings: as for `verify`.
        on_interim: called with the verdict of each interim analysis.

    Raises:
        UsageError: if a setting is out of range, networks have different numbers of steps, or a repeated search does
            not reach the level.
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
    made, trained = _train_until_decided(rivals, settings, on_interim)
    return _make_verification("procedure", rivals, settings, made, trained)


def _train_until_decided(
    rivals: AnyRivals, settings: VerifySettings, on_interim: Callable[[Verdict], None] | None
) -> tuple[Verdict, dict[str, list[TrainedNetwork]]]:
    """Train with more seeds until an analysis decides or the plan ends; return (verdict, all trained networks)."""
    plan, trained, margin = settings.plan, dict[str, list[TrainedNetwork]](), settings.margin

    def train_seed(number: int) -> dict[str, TrainedNetwork]:
        with rivals.lab.telling(f"seed {number} "):
            return rivals.train_all_roles(number)

    for count in plan.at if plan else (settings.seeds or 1,):
        missing = range(len(trained.get("ticket", ())), count)
        for found in rivals.lab.gather([partial(train_seed, number) for number in missing]):
            for role, result in found.items():
                trained.setdefault(role, []).append(result)
        for role in rivals.left_out:  # a control may be undefined for a later seed
            trained.pop(role, None)
        # One margin for all analyses, so that more seeds do not change earlier answers.
        if margin is None:
            margin = default_margin(rivals.task.metric.unit, _test_metric_values(rivals, trained["dense"]))
        made = _judge_trained_networks(rivals, trained, settings, margin)
        if on_interim:
            on_interim(made)
        if made.decided:
            break
    return made, trained


def _judge_trained_networks(
    rivals: AnyRivals, trained: Mapping[str, Sequence[TrainedNetwork]], settings: VerifySettings, margin: float
) -> Verdict:
    values = {role: _test_metric_values(rivals, found) for role, found in trained.items()}
    even = {role: found for role, found in trained.items() if role not in rivals.roles_with_other_steps}
    for number in range(len(trained["ticket"])):
        check_budgets({role: [found[number].total_steps] for role, found in even.items()})
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
        resolution=metric_resolution(metric.unit, rivals.lab.sizes(rivals.task)["test"]),
        least_spread=settings.least_spread,
        parents=rivals.keys_of_shared_dense_networks(),
        unit=metric.unit,
    )


def _make_verification(
    about: About,
    rivals: AnyRivals,
    settings: VerifySettings,
    made: Verdict,
    trained: Mapping[str, Sequence[TrainedNetwork]],
    *,
    again: Sequence[float] = (),
    noise: Comparison | None = None,
) -> Verification:
    return Verification(
        about=about,
        verdict=made,
        values={role: _test_metric_values(rivals, found) for role, found in trained.items()},
        budgets={role: round(sum(one.total_steps for one in found) / len(found)) for role, found in trained.items()},
        parameters={role: rivals.count_parameters(role) for role in trained},
        models={role: rivals.network_name(role) for role in trained},
        again=again,
        noise=noise,
        references=rivals.train_references(min(REFERENCE_SEEDS, made.n)) if settings.references else [],
        left_out=rivals.left_out,
        compared=rivals,
        trained=[one.result for found in trained.values() for one in found],
    )


def _test_metric_values(rivals: AnyRivals, trained: Sequence[TrainedNetwork]) -> list[float]:
    name = rivals.task.metric.name
    return [float(one.result.metrics["test"][name]) for one in trained]
