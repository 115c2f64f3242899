"""The ticket under test: what is needed to train it, and whatever it is compared with, from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ticketry.core.mask import Mask
from ticketry.core.pattern import UNSTRUCTURED
from ticketry.core.scope import named_parameters
from ticketry.core.seeds import mix
from ticketry.core.ticket import Ticket
from ticketry.errors import MaskError, TaskError, TicketError, UsageError
from ticketry.evidence.form import WEIGHTS, Form
from ticketry.lab.found import REWINDING, Seeds
from ticketry.lab.lab import Lab
from ticketry.tasks import registry
from ticketry.tasks.base import Spec, Task
from ticketry.tasks.recipe import Recipe, recipe_from

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
    shrunk: bool = False
    """Whether its network is trained without the channels that its mask removes."""
    form: Form = WEIGHTS
    """Of its mask, and of the controls'."""

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
        return Seeds.of(mix(self.seeds.order, purpose, number))


def subject(lab: Lab, ticket: Ticket, task: Task | None = None) -> Subject:
    """Read what a search has written into a ticket, and check that it fits the task.

    Args:
        ticket: found by a search, rewound to its start (retrain ``continue`` or ``restart``).
        task: for a ticket whose task cannot be made again by its name; otherwise it is made, or checked if given.

    Raises:
        TicketError: if the ticket does not tell how it was trained, or is of another model or task.
        UsageError: if it keeps trained weights (retrain ``rewind_lr``, ``finetune``, ``none``, ``gradual``): then there
            is no start to go from.
    """
    info = ticket.info
    missing = [name for name in _NEEDED if name not in info]
    if missing:
        raise TicketError(
            f"this ticket does not tell its {', '.join(missing)}, so it cannot be trained again: verify tickets that"
            " a search has saved, or judge your own numbers with evidence.verdict"
        )
    if info["retrain"] not in REWINDING:
        raise UsageError(
            f"this ticket keeps trained weights (retrain {info['retrain']}), so that no dense network or control has"
            " its start and its budget: verify tickets of retrain continue or restart"
        )
    task = task or made_task(info["task"])
    _check_task(task, info["task"])
    model = lab.model(task)
    try:
        ticket.mask.parameters(model)
    except MaskError as error:
        raise TicketError(f"the ticket is not of the network {_model_of(task)}: {error}") from None
    segment = info["segment"]
    shrunk = bool(segment.get("shrunk", False))
    return Subject(
        lab=lab,
        task=task,
        recipe=recipe_from(dict(info["recipe"])),
        mask=ticket.mask,
        mask_digest=lab.store.put_mask(ticket.mask),
        start=lab.store.put_tensors(ticket.start),
        step=int(info["rewind_step"]),
        first=int(segment["first"]),
        last=int(segment["last"]),
        seeds=Seeds(**info["seeds"]),
        info=info,
        parameters=sum(value.numel() for value in named_parameters(model).values()),
        shrunk=shrunk,
        form=Form.of(
            str(info.get("structure", {}).get("kind", "")),
            shrunk=shrunk,
            pattern=str(info.get("settings", {}).get("pattern", UNSTRUCTURED)),
        ),
    )


def made_task(described: Mapping[str, Any]) -> Task:
    """The task of a ticket, from the request that is written in it.

    Raises:
        TicketError: if it cannot be made.
    """
    spec, key = described.get("spec"), described.get("key", {})
    request = (
        Spec(spec["name"], spec.get("model"), tuple(sorted(spec.get("options", {}).items())))
        if spec
        else Spec(str(described["name"]), key.get("model"))  # of before tickets had a spec
    )
    try:
        return registry.make(request)
    except TaskError as error:
        raise TicketError(f"the ticket's task {described.get('name')!r} cannot be made: {error}") from None


def _check_task(task: Task, described: Mapping[str, Any]) -> None:
    own, written = json.loads(json.dumps(dict(task.key()))), dict(described["key"])
    if own == written:
        return
    differing = sorted(name for name in own.keys() | written.keys() if own.get(name) != written.get(name))
    told = ", ".join(f"{name} {str(written.get(name))[:60]!r} (here {str(own.get(name))[:60]!r})" for name in differing)
    raise TicketError(f"the ticket is of another task or network: its {told}")


def _model_of(task: Task) -> str:
    return str(task.key().get("model", task.name))
