"""What a ticket is compared with: networks with its budget, each lacking one thing that the ticket has.

All of them, the ticket too, are trained over the same steps of one schedule under one data order a seed. The dense
network and the controls with the ticket's weights start where it starts; those with other weights are first trained
densely, from a fresh initialisation, up to the step that the ticket's start is from. Whatever else than its mask acted
on the ticket while it trained acts on it and on the controls again; dense networks are trained by the recipe alone, as
a search's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from ticketry.evidence.comparison_names import CONTROLS, RIVALS, SMALL_DENSE, check_rivals
from ticketry.evidence.controls import control_start, stored_control_mask
from ticketry.evidence.dense_references import Reference, references, train_reference
from ticketry.evidence.equal_cost import dense_of_cost
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.ticket_under_test import Subject
from ticketry.lab.search_result import Seeds
from ticketry.lab.training.segment import Result, Start
from ticketry.lab.training.variant import under_mask
from ticketry.records.network import MATCHED_DENSE, is_matched_dense
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix


@dataclass(frozen=True)
class Trained:
    """A network trained with one seed."""

    result: Result
    budget: int
    """Training steps since its initialisation."""


class Rivals:
    """Trains the ticket and its rivals, one seed at a time."""

    uneven: tuple[str, ...] = ()
    """Roles that are given other steps than the ticket: none."""

    def __init__(self, subject: Subject, settings: VerifySettings) -> None:
        """Check the names of the controls.

        Raises:
            UsageError: see `check_rivals`.
        """
        controls = settings.rivals((*RIVALS, MATCHED_DENSE[0]) if subject.form.aim else RIVALS)
        check_rivals(controls)
        self.subject, self.lab, self.task = subject, subject.lab, subject.task
        self.left_out: dict[str, str] = {}
        """Controls that are not defined here, and why."""
        small = self._narrower() if SMALL_DENSE in controls else None
        self._dense_tasks = {SMALL_DENSE: small} if small else {}
        """By role, the tasks of dense networks other than the ticket's own."""
        for name in filter(is_matched_dense, controls):
            self._dense_tasks[name] = dense_of_cost(self.lab, self.task, name, subject.mask, subject.form.aim)
        self.controls = tuple(name for name in controls if name not in self.left_out)
        self.roles = ("ticket", "dense", *self.controls)

    def of_seed(self, number: int) -> dict[str, Trained]:
        """The network of every role."""
        seeds = self.subject.fresh_seeds(number)
        return dict(
            zip(self.roles, self.lab.gather([partial(self.train, role, seeds) for role in self.roles]), strict=True)
        )

    def parents(self) -> list[str] | None:
        """None: seeds of a ticket share its mask and its start by design, for the verdict is about that ticket."""
        return None

    def references(self, count: int) -> list[tuple[Reference, Sequence[float]]]:
        """The dense network at other budgets, with the first `count` seeds."""
        shown, metric = references(self.subject), self.task.metric.name

        def one(reference: Reference, seeds: Seeds) -> float:
            with self.lab.telling("reference "):
                return float(train_reference(self.subject, reference, seeds).metrics["test"][metric])

        seeds = [self.subject.fresh_seeds(number) for number in range(count)]
        values = self.lab.gather([partial(one, reference, each) for reference in shown for each in seeds])
        return [(reference, values[index * count : (index + 1) * count]) for index, reference in enumerate(shown)]

    def train(self, role: str, seeds: Seeds) -> Trained:
        """The network of a role, trained with a seed: from the store if it is there."""
        subject, lab = self.subject, self.subject.lab
        task, mask, start = subject.task, subject.mask_digest if role != "dense" else None, Start(state=subject.start)
        if role in self._dense_tasks:
            task, mask = self._dense_tasks[role], None
            start = self._fresh(task, seeds, role)
        elif role in self.controls:
            control = CONTROLS.get(role)
            if control.changes_mask:
                mask = stored_control_mask(lab, task, role, subject.mask_digest, seeds, subject.form)
            if control.fresh:
                start = self._fresh(task, seeds, role)
            if control.remakes_weights:
                assert start.state is not None
                start = control_start(lab, role, start.state, subject.mask_digest, seeds)
        segment = lab.segment(
            task,
            start=start,
            first=subject.first,
            last=subject.last,
            order_seed=seeds.order,
            recipe=subject.recipe,
            variants=() if mask is None else under_mask(subject.variants, mask),
        )
        return Trained(lab.train(segment, label=role), subject.step + segment.steps)

    def parameters(self, role: str) -> int:
        """Parameters that are not pruned, of the network of a role."""
        if role == "dense":
            return self.subject.parameters
        if role in self._dense_tasks:
            return sum(value.numel() for value in self.subject.lab.model(self._dense_tasks[role]).parameters())
        return self.subject.remaining

    def model(self, role: str) -> str:
        """The name of the network of a role."""
        task = self._dense_tasks.get(role, self.subject.task)
        return str(task.key().get("model", ""))

    def _fresh(self, task: Task, seeds: Seeds, role: str) -> Start:
        """A fresh initialisation, densely trained up to the rewind step."""
        lab, subject = self.subject.lab, self.subject
        seed = mix(seeds.initialisation, "random_reinit")
        begun = catalogue.untrained(task)
        if subject.step == 0 and begun is task:
            return Start(seed=seed)
        segment = lab.segment(begun, start=seed, last=subject.step, order_seed=seeds.order, recipe=subject.recipe)
        return Start(state=lab.train(segment, label=f"{role} (fresh start)").model)

    def _narrower(self) -> Task | None:
        task, most = self.subject.task, self.subject.remaining
        small = narrower(task, most)
        if small is None:
            self.left_out[SMALL_DENSE] = no_narrower(task, most)
        return small


def narrower(task: Task, most: int) -> Task | None:
    """The task with the largest narrower network of at most so many parameters; None where it defines none."""
    model = task.narrower(most) if task.spec else None
    return catalogue.make(replace(task.spec, model=model)) if task.spec and model else None


def no_narrower(task: Task, most: int) -> str:
    """Why there is no ``small_dense``."""
    network = task.key().get("model", "its network")
    return f"the task {task.name} defines no narrower form of {network} with at most {most:,} parameters"
