"""What a procedure is compared with, seed by seed: each network from the seeds of its replicate, and as many steps.

- ``dense``: the network of the same initialisation, trained for as many steps as are in the ticket's weights.
- A control that is one of a ticket's too, such as ``shuffled``, is trained as the ticket was once its mask was known.
- ``uniform``, ``erk``: a random mask that nothing was searched for, held from the initialisation to the end, with
  whatever else acts on the ticket while it trains.
- ``small_dense``: a narrower network with no more parameters than the ticket.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from ticketry.core.budget import random_mask_of_equal_cost
from ticketry.core.scope import named_parameters
from ticketry.core.structure.controls import random_mask
from ticketry.evidence.comparison_names import (
    PROCEDURE_RIVALS,
    RIVALS,
    SMALL_DENSE,
    STATIC,
    STRUCTURED_RIVALS,
    check_rivals,
)
from ticketry.evidence.comparisons import Trained, narrower, no_narrower
from ticketry.evidence.control_steps import obstacle
from ticketry.evidence.controls import trained_control
from ticketry.evidence.dense_references import Reference, train_for
from ticketry.evidence.equal_cost import dense_of_cost
from ticketry.evidence.mask_form import WEIGHTS
from ticketry.evidence.procedure import Procedure, Replicate
from ticketry.evidence.settings import VerifySettings
from ticketry.lab.budget_masks import terms_in
from ticketry.lab.training.segment import Result
from ticketry.lab.training.variant import Variant, bound_to_mask, under_mask
from ticketry.records.network import is_matched_dense
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix


class ProcedureRivals:
    """Carries a procedure out and trains its rivals, one seed at a time."""

    def __init__(self, procedure: Procedure, settings: VerifySettings) -> None:
        """Check the names of the controls.

        Raises:
            UsageError: see `check_rivals`.
        """
        check_rivals(settings.rivals(()), (*RIVALS, *STATIC))
        self.subject, self.lab = procedure, procedure.lab
        self.left_out: dict[str, str] = {}
        """Controls that some seed has none of, and why: they are left out of all."""
        self.replicates: dict[int, Replicate] = {}
        """By number of the seed."""
        self._settings = settings

    @property
    def task(self) -> Task:
        return self.subject.task

    @property
    def uneven(self) -> tuple[str, ...]:
        """Roles that are given other steps than the tickets, by design."""
        return ("dense",) if self.subject.bounded or self._settings.dense_at == "cost" else ()

    def of_seed(self, number: int) -> dict[str, Trained]:
        """The network of every role, each from the store if it is there."""
        one = self.replicates[number] = self.subject.replicate(number)
        roles = ("ticket", "dense", *self._controls(one))
        return dict(zip(roles, self.lab.gather([partial(self._train, role, one) for role in roles]), strict=True))

    def parents(self) -> list[str] | None:
        """Of each seed its dense network, where a task makes the same one whatever its seed; else None."""
        keys = [one.dense.result.segment.key for _, one in sorted(self.replicates.items())]
        return keys if len(set(keys)) < len(keys) else None

    def parameters(self, role: str) -> int:
        """Parameters that are not pruned, of the network of a role; their mean over seeds."""
        return round(fmean(self._parameters(role, one) for one in self.replicates.values()))

    def model(self, role: str) -> str:
        """The name of the network of a role, at the first seed."""
        one = self.replicates[0]
        task = self._rival(role, one)
        assert task is not None
        return str(task.key().get("model", ""))

    @property
    def kept(self) -> int:
        """Weights that masks keep, their mean over seeds."""
        return round(fmean(self._mask_kept(one) for one in self.replicates.values()))

    @property
    def total(self) -> int:
        """Weights in the masks' scope."""
        return self.lab.store.get_mask(_mask(self.replicates[0])).total

    def references(self, count: int) -> list[tuple[Reference, Sequence[float]]]:
        """The dense network by the recipe, of every seed, and at the whole search's cost, of the first `count`."""
        metric, first = self.task.metric.name, self.replicates[0]
        shown: list[tuple[Reference, Sequence[float]]] = []
        judged, planned = self._dense_steps(first), first.dense.result.segment.steps
        if judged != planned:
            values = [float(one.dense.result.metrics["test"][metric]) for _, one in sorted(self.replicates.items())]
            shown.append((Reference("dense_by_recipe", planned, "one training by the recipe, with every seed"), values))
        if not self.subject.bounded and first.cost not in (judged, planned):  # a budget's cost is that of the recipe's
            note = f"the {first.cost:,} steps of the whole search, {first.cost / planned:.1f} trainings by the recipe"
            reference = Reference("dense_at_cost", first.cost, note)
            pieces = [
                partial(self._dense, self.replicates[number], first.cost, reference.role) for number in range(count)
            ]
            results = self.lab.gather(pieces)
            shown.append((reference, [float(one.metrics["test"][metric]) for one in results]))
        return shown

    # -- one seed ------------------------------------------------------------------------------------------------------

    def _controls(self, one: Replicate) -> list[str]:
        suited = PROCEDURE_RIVALS if one.form.kind == WEIGHTS.kind else STRUCTURED_RIVALS
        asked = [role for role in self._settings.rivals(suited) if role not in self.left_out]
        wanted = {role: self._obstacle(role, one) for role in asked}
        self.left_out |= {role: why for role, why in wanted.items() if why}
        return [role for role, why in wanted.items() if not why]

    def _obstacle(self, role: str, one: Replicate) -> str:
        """Why there is no such control; an empty text if there is one."""
        if role in STATIC:
            if one.form.kind != WEIGHTS.kind:
                return f"draws masks of single weights, and these are of {one.form.kind}"
            return bound_to_mask(one.ticket.result.segment.variants)
        if role == SMALL_DENSE:
            return "" if self._narrower(one) else no_narrower(one.task, self._parameters("ticket", one))
        return obstacle(role, one.ticket)

    def _train(self, role: str, one: Replicate) -> Trained:
        if role == "ticket":
            return Trained(one.ticket.result, one.budget)
        if role == "dense":
            steps = self._dense_steps(one)
            return Trained(self._dense(one, steps, role), steps)
        if role in STATIC:
            ticket, seed = self.lab.store.get_mask(_mask(one)), mix(one.seeds.mask, role)
            if one.form.aim:
                mask = random_mask_of_equal_cost(ticket, terms_in(self.lab, one.task, ticket, one.form.aim), seed, role)
            else:
                mask = random_mask(ticket, seed, role)
            variants = under_mask(one.ticket.result.segment.variants, self.lab.store.put_mask(mask))
            return Trained(self._for_budget(one, one.task, role, variants), one.budget)
        if role == SMALL_DENSE or is_matched_dense(role):
            task = self._rival(role, one)
            assert task is not None
            return Trained(self._for_budget(one, task, role), one.budget)
        return self._like_the_ticket(role, one)

    def _dense_steps(self, one: Replicate) -> int:
        if self.subject.bounded:
            return one.dense.result.segment.steps
        return one.cost if self._settings.dense_at == "cost" else one.budget

    def _dense(self, one: Replicate, steps: int, label: str) -> Result:
        return train_for(self.lab, one.task, self.subject.recipe, steps, one.seeds, label=label)

    def _for_budget(self, one: Replicate, task: Task, role: str, variants: Sequence[Variant] = ()) -> Result:
        return train_for(self.lab, task, self.subject.recipe, one.budget, one.seeds, variants=variants, label=role)

    def _like_the_ticket(self, role: str, one: Replicate) -> Trained:
        """A control trained as the ticket was; of one trained again at each level, as often again."""
        recipe = one.ticket.result.segment.recipe
        made = trained_control(self.lab, one.task, recipe, role, one.ticket, one.seeds, label=role)
        return Trained(made.trainings[-1], made.budget)

    def _rival(self, role: str, one: Replicate) -> Task | None:
        """The task with the network of a role."""
        if is_matched_dense(role):
            mask = self.lab.store.get_mask(_mask(one))
            return dense_of_cost(self.lab, one.task, role, mask, one.form.aim)
        return self._narrower(one) if role == SMALL_DENSE else one.task

    def _narrower(self, one: Replicate) -> Task | None:
        return narrower(one.task, self._parameters("ticket", one))

    def _parameters(self, role: str, one: Replicate) -> int:
        task = self._rival(role, one)
        assert task is not None
        everything = sum(value.numel() for value in named_parameters(self.lab.model(task)).values())
        if role in ("dense", SMALL_DENSE) or is_matched_dense(role):
            return everything
        mask = self.lab.store.get_mask(_mask(one))
        return everything - mask.total + mask.kept

    def _mask_kept(self, one: Replicate) -> int:
        return self.lab.store.get_mask(_mask(one)).kept


def _mask(one: Replicate) -> str:
    assert one.ticket.mask is not None
    return one.ticket.mask
