"""The ticket under test: what is needed to train it, and whatever it is compared with, from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import convert, structs

from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern
from ticketry.core.scope import named_parameters
from ticketry.core.ticket.state_dicts import state_for
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import MaskError, TicketError, UsageError
from ticketry.evidence.asked_task import made_task, name_of
from ticketry.evidence.mask_form import WEIGHTS, Form
from ticketry.evidence.told_variants import told_variants
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import GRADUAL, REWINDING, Seeds
from ticketry.lab.training.variant import Variant
from ticketry.records.ticket import RetrainingInfo, TicketTask, read_info
from ticketry.tasks.recipe import Recipe, recipe_from
from ticketry.tasks.task import Task, written_key
from ticketry_engine.support.seeds import mix

_NEEDED = ("task", "recipe", "seeds", "segment", "retrain", "rewind_step")


@dataclass(frozen=True)
class Subject:
    """A ticket with its task, ready to be trained again in a lab."""

    lab: Lab
    task: Task
    recipe: Recipe
    mask: Mask
    mask_digest: str
    start: str
    """Digest of the stored state that the ticket's training starts from, unmasked."""
    step: int
    """The rewind step k: how many steps the start has behind it."""
    first: int
    """Of the schedule: where the ticket's training enters it."""
    last: int
    seeds: Seeds
    """Of the replicate that found it."""
    info: Mapping[str, Any]
    parameters: int
    """Of the dense network."""
    variants: tuple[Variant, ...]
    """What acts on the network while it trains: the mask, and whatever the method has added."""
    form: Form = WEIGHTS
    """Of its mask, and of the controls'."""
    after: int = 0
    """Fresh seeds that are passed over, see `VerifySettings.after`."""

    @property
    def remaining(self) -> int:
        """Parameters that the ticket has: what the mask keeps, and all that no mask touches."""
        return self.parameters - self.mask.total + self.mask.kept

    @property
    def budget(self) -> int:
        """Training steps that are in the trained ticket, those of its start among them."""
        return self.step + self.last - self.first

    def fresh_seeds(self, number: int, purpose: str = "verify") -> Seeds:
        """Seeds that no search has used: those of seed number `number` of a verification."""
        return Seeds.of(mix(self.seeds.order, purpose, self.after + number))


def subject(lab: Lab, ticket: Ticket, task: Task | None = None) -> Subject:
    """Read what a search has written into a ticket, and check that it fits the task.

    Args:
        ticket: found by a search, and rewound to its start (retrain ``continue`` or ``restart``) or pruned before any
            training.
        task: for a ticket whose task cannot be made again by its name; otherwise it is made, or checked if given.

    Raises:
        TicketError: if the ticket does not tell how it was trained, or is of another model or task.
        TrustError: if it names a task or network that is not built in, or a place of this machine, or was trained with
            a variant of training whose module nobody has imported here.
        UsageError: if it keeps trained weights, see `begins_anew`: then there is no start to go from.
    """
    info = ticket.info
    missing = [name for name in _NEEDED if name not in info]
    if missing:
        raise TicketError(
            f"this ticket does not tell its {', '.join(missing)}, so it cannot be trained again: verify tickets that"
            " a search has saved, or judge your own numbers with evidence.verdict"
        )
    told = read_info(RetrainingInfo, info, name_of(ticket))
    if not begins_anew(told):
        raise UsageError(
            f"this ticket keeps trained weights (retrain {told.retrain:.40}), so that no dense network or control has"
            " its start and its budget: verify its procedure, the whole search (--about procedure), or tickets of"
            " retrain continue or restart"
        )
    recipe, form = recipe_from(told.recipe), _form(told, ticket.mask, name_of(ticket))
    task = task or made_task(ticket)
    check_task(task, told.task)
    model = lab.model(task)
    try:
        ticket.mask.parameters(model)
        state_for(model, ticket.start)
    except (MaskError, TicketError) as error:
        raise TicketError(f"the ticket is not of the network {_model_of(task)}: {error}") from None
    _check_steps(told, recipe.steps(lab.per_epoch(task, recipe)), name_of(ticket))
    return Subject(
        lab=lab,
        task=task,
        recipe=recipe,
        mask=ticket.mask,
        mask_digest=lab.store.put_mask(ticket.mask),
        start=lab.store.put_tensors(ticket.start),
        step=told.rewind_step,
        first=told.segment.first,
        last=told.segment.last,
        seeds=convert(structs.asdict(told.seeds), Seeds),
        info=info,
        parameters=sum(value.numel() for value in named_parameters(model).values()),
        variants=told_variants(lab, told, ticket.mask, name_of(ticket)),
        form=form,
    )


def _form(told: RetrainingInfo, mask: Mask, of: str) -> Form:
    """The form of the ticket's mask; `TicketError` if it has groups that are larger than any layer."""
    pattern = Pattern.parse(told.settings.pattern)
    form = Form.of(told.structure.kind, shrunk=told.segment.shrunk, pattern=str(pattern), aim=told.aim)
    largest = max((size for shape in mask.shapes.values() for size in shape), default=0)
    if max(form.m, pattern.m, pattern.rows) > max(largest, 1):
        raise TicketError(
            f"{of}: in ticket.json, a pattern has groups of more rows or inputs than any layer ({largest})"
        )
    return form


def _check_steps(told: RetrainingInfo, total: int, of: str) -> None:
    """Refuse steps that are beyond the recipe's schedule."""
    for name, step in (("segment.last", told.segment.last), ("rewind_step", told.rewind_step)):
        if step > total:
            raise TicketError(
                f"{of}: in ticket.json, info.{name} is {step:,}, and the ticket's recipe has {total:,} steps"
            )


def begins_anew(told: RetrainingInfo) -> bool:
    """Whether all of the ticket's training follows its mask: rewound, or pruned before the first step."""
    return told.retrain in REWINDING or (told.retrain == GRADUAL and told.rewind_step == told.segment.first == 0)


def check_task(task: Task, asked: TicketTask) -> None:
    """Raises `TicketError` unless it is the task that the ticket was found on."""
    own, written = written_key(task), asked.key
    if own == written:
        return
    differing = sorted(name for name in own.keys() | written.keys() if own.get(name) != written.get(name))
    told = ", ".join(
        f"{name:.40} {str(written.get(name))[:60]!r} (here {str(own.get(name))[:60]!r})" for name in differing
    )
    raise TicketError(f"the ticket is of another task or network: its {told}")


def _model_of(task: Task) -> str:
    return str(task.key().get("model", task.name))
