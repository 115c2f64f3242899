"""A ticket under test: its task, training and variants, restored from its folder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from msgspec import convert, structs

from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters, normal_name
from ticketry.core.structure.pattern import Pattern
from ticketry.core.ticket.state_dicts import match_state_to_model
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import MaskError, TaskError, TicketError, UsageError
from ticketry.evidence.control import WEIGHTS, Form
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import GRADUAL, REWINDING, Seeds
from ticketry.lab.training.variant import Variant, is_known, variant_from, with_other_mask
from ticketry.lab.training.variants import HeldMask, Penalty, Shrunk
from ticketry.records.ticket import RetrainingInfo, TaskInfo, TaskRequest, TicketTask, read_info
from ticketry.registry import import_from_here, load
from ticketry.tasks import catalogue
from ticketry.tasks.file_requests import is_widened, quote, refusal
from ticketry.tasks.recipe import Recipe, recipe_from
from ticketry.tasks.task import Spec, Task, json_key
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix


def name_of(ticket: Ticket) -> str:
    """Return a ticket's name in errors: its folder, if it has one."""
    return str(ticket.path or "this ticket")


def asked_of(ticket: Ticket) -> TicketTask | None:
    """Return a ticket's description of its task; None if it has none.

    Raises:
        TicketError: if it is invalid.
    """
    return read_info(TaskInfo, ticket.info, name_of(ticket)).task


def made_task(ticket: Ticket, *, request: TaskRequest | None = None, trust: bool = False) -> Task:
    """Build the task of a ticket from the request that it contains.

    Args:
        request: another request in the ticket, in place of its own.
        trust: whether the user trusts everything that the ticket names, see `tasks.file_requests`. If not, and the
            network may be larger than memory, its shapes are checked before memory is allocated.

    Raises:
        TrustError: if the request is not granted.
        TicketError: if it is missing, cannot be built, or the ticket has another network.
    """
    of, asked = name_of(ticket), asked_of(ticket)
    if asked is None:
        raise TicketError(f"{of} does not contain its task, from which its model is built: name it with --task")
    model = asked.key.get("model")
    request = request or asked.spec
    spec = (
        Spec(request.name, request.model, tuple(sorted(request.options.items())))
        if request
        else Spec(asked.name, model if isinstance(model, str) else None)  # tickets from before specs
    )
    try:
        task = catalogue.create_task_from_file(of, spec, trust=trust)
    except (TaskError, UsageError) as error:
        raise TicketError(f"the task {asked.name!r:.80} of {of} cannot be built: {error}") from None
    if not trust and is_widened(spec.model):
        _require_fit(task, ticket)
    return task


def _require_fit(task: Task, ticket: Ticket) -> None:
    """Raise `TicketError` unless the built-in network has all of the ticket's weights in their shapes."""
    of = name_of(ticket)
    try:
        with private_random_state([]), torch.device("meta"):
            own = task.build().state_dict()
    except RuntimeError as error:
        raise TicketError(f"the network that {of} names cannot be built: {str(error).splitlines()[0]:.120}") from None
    shapes = {normal_name(name): tuple(tensor.shape) for name, tensor in own.items()}
    for name, tensor in ticket.start.items():
        if shapes.get(name) != tuple(tensor.shape):
            found = shapes.get(name, "none")
            raise TicketError(
                f"{of} does not fit the network {task.key().get('model', task.name)} that it names: {name!r:.80} has"
                f" the shape {tuple(tensor.shape)}, not {found}"
            )


_HOLDING = (HeldMask, Shrunk)
_REGISTERED = (*_HOLDING, Penalty)
"""Variants that `restore_variants` finds by name; importing their classes registers them."""


def restore_variants(lab: Lab, info: RetrainingInfo, mask: Mask, of: str) -> tuple[Variant, ...]:
    """Restore the variants of a ticket's training for its current mask.

    The mask may have been given a structure since; then the network may be trained without its removed channels.

    Args:
        of: the ticket's name in errors.

    Raises:
        TrustError: for a custom variant whose module is not imported.
        TicketError: for one that cannot be restored, or needs blobs that this store lacks.
    """
    digest, holding = lab.store.put_mask(mask), Shrunk if info.segment.shrunk else HeldMask
    made = [_restore(each, of) for each in info.segment.variants]
    if not any(one.masked_by() for one in made):
        made.append(holding(mask=digest))
    try:
        found = with_other_mask(made, digest)
    except UsageError as error:
        raise TicketError(f"{of}: {error}") from None
    for one in found:
        if missing := [blob for blob in one.blobs() if blob != digest and not lab.store.has(blob)]:
            raise TicketError(
                f"{of} was trained with {one.name}, which needs {quote(missing[0])} from the store of its search:"
                " verify it there (--store)"
            )
    return tuple(holding(mask=digest) if isinstance(one, _HOLDING) else one for one in found)


def import_variants(ticket: Ticket) -> None:
    """Import the modules that a ticket names for the variants of its training, which the user has allowed.

    Raises:
        UsageError: if one cannot be imported.
    """
    for each in read_info(RetrainingInfo, ticket.info, name_of(ticket)).segment.variants:
        if "place" in each:
            import_from_here()
            load(str(each["place"]))


def _restore(described: Mapping[str, Any], of: str) -> Variant:
    name = described.get("variant")
    if not is_known(described):
        raise refusal("variant of training", described.get("place", name), of, "import its module, or, ")
    try:
        return variant_from(described)
    except UsageError as error:
        raise TicketError(f"{of} was trained with {quote(name)}, which cannot be restored: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError):
        what = f"info.segment.variants has invalid fields for {quote(name)}"
        raise TicketError(f"{of}: in ticket.json, {what}") from None


_NEEDED = ("task", "recipe", "seeds", "segment", "retrain", "rewind_step")


@dataclass(frozen=True)
class Subject:
    """A ticket with its task, ready for training in a lab."""

    lab: Lab
    task: Task
    recipe: Recipe
    mask: Mask
    mask_digest: str
    start: str
    """Digest of the stored unmasked state that the ticket's training starts from."""
    step: int
    """The rewind step k: training steps of the start."""
    first: int
    """First step of the schedule that the ticket is trained on."""
    last: int
    seeds: Seeds
    """Seeds of the replicate that found it."""
    info: Mapping[str, Any]
    parameters: int
    """Parameters of the dense network."""
    variants: tuple[Variant, ...]
    """Modifications of the training: the mask, and those that the method added."""
    form: Form = WEIGHTS
    """Form of its mask and the controls'."""
    after: int = 0
    """Fresh seeds that are skipped, see `VerifySettings.after`."""

    @property
    def remaining(self) -> int:
        """Parameters of the ticket: retained weights, and all that have no mask."""
        return self.parameters - self.mask.total + self.mask.kept

    @property
    def budget(self) -> int:
        """Training steps of the trained ticket, including those of its start."""
        return self.step + self.last - self.first

    def fresh_seeds(self, number: int, purpose: str = "verify") -> Seeds:
        """Return seeds that no search has used, for seed number `number` of a verification."""
        return Seeds.of(mix(self.seeds.order, purpose, self.after + number))


def subject(lab: Lab, ticket: Ticket, task: Task | None = None) -> Subject:
    """Read a ticket of a search, and check that it fits the task.

    Args:
        ticket: a ticket of a search, rewound to its start (retrain ``continue`` or ``restart``) or pruned before any
            training.
        task: for a ticket whose task cannot be built from its name; otherwise optional, and checked.

    Raises:
        TicketError: if the ticket lacks data about its training, or has another model or task.
        TrustError: if it names a task or network that is not built in, or a path of this machine, or was trained with a
            variant whose module is not imported.
        UsageError: if it keeps trained weights, see `begins_anew`: then it has no start.
    """
    info = ticket.info
    missing = [name for name in _NEEDED if name not in info]
    if missing:
        raise TicketError(
            f"this ticket lacks its {', '.join(missing)}, so it cannot be trained again: verify tickets that a search"
            " has saved, or judge your own numbers with evidence.verdict"
        )
    training = read_info(RetrainingInfo, info, name_of(ticket))
    if not begins_anew(training):
        raise UsageError(
            f"this ticket keeps trained weights (retrain {training.retrain:.40}), so no dense network or control has"
            " its start and its budget: verify its procedure, the whole search (--about procedure), or tickets of"
            " retrain continue or restart"
        )
    recipe, form = recipe_from(training.recipe), _form(training, ticket.mask, name_of(ticket))
    task = task or made_task(ticket)
    check_task(task, training.task)
    model = lab.model(task)
    try:
        ticket.mask.parameters(model)
        match_state_to_model(model, ticket.start)
    except (MaskError, TicketError) as error:
        raise TicketError(f"the ticket does not fit the network {_model_of(task)}: {error}") from None
    _check_steps(training, recipe.steps(lab.per_epoch(task, recipe)), name_of(ticket))
    return Subject(
        lab=lab,
        task=task,
        recipe=recipe,
        mask=ticket.mask,
        mask_digest=lab.store.put_mask(ticket.mask),
        start=lab.store.put_tensors(ticket.start),
        step=training.rewind_step,
        first=training.segment.first,
        last=training.segment.last,
        seeds=convert(structs.asdict(training.seeds), Seeds),
        info=info,
        parameters=sum(value.numel() for value in named_parameters(model).values()),
        variants=restore_variants(lab, training, ticket.mask, name_of(ticket)),
        form=form,
    )


def _form(training: RetrainingInfo, mask: Mask, of: str) -> Form:
    """Return the form of the ticket's mask; `TicketError` if its groups are larger than any layer."""
    pattern = Pattern.parse(training.mask_pattern)
    form = Form.from_structure(
        training.structure.kind, shrunk=training.segment.shrunk, pattern=str(pattern), aim=training.aim
    )
    largest = max((size for shape in mask.shapes.values() for size in shape), default=0)
    if max(form.m, pattern.m, pattern.rows) > max(largest, 1):
        raise TicketError(
            f"{of}: in ticket.json, a pattern has groups of more rows or inputs than any layer ({largest})"
        )
    return form


def _check_steps(training: RetrainingInfo, total: int, of: str) -> None:
    """Raise `TicketError` for steps beyond the recipe's schedule."""
    for name, step in (("segment.last", training.segment.last), ("rewind_step", training.rewind_step)):
        if step > total:
            raise TicketError(
                f"{of}: in ticket.json, info.{name} is {step:,}, but the ticket's recipe has {total:,} steps"
            )


def begins_anew(info: RetrainingInfo) -> bool:
    """Whether all of the ticket's training comes after its mask: rewound, or pruned before the first step."""
    return info.retrain in REWINDING or (info.retrain == GRADUAL and info.rewind_step == info.segment.first == 0)


def check_task(task: Task, asked: TicketTask) -> None:
    """Raise `TicketError` unless the ticket was found on this task."""
    own, written = json_key(task), asked.key
    if own == written:
        return
    differing = sorted(name for name in own.keys() | written.keys() if own.get(name) != written.get(name))
    differences = ", ".join(
        f"{name:.40} {str(written.get(name))[:60]!r} (here {str(own.get(name))[:60]!r})" for name in differing
    )
    raise TicketError(f"the ticket has another task or network: its {differences}")


def _model_of(task: Task) -> str:
    return str(task.key().get("model", task.name))
