"""Restore all that testing a ticket needs from its folder: its task, training, and variants of training."""

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
from ticketry.evidence.control import WEIGHTS, MaskForm
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import GRADUAL, REWINDING, Seeds
from ticketry.lab.training.variant import Variant, is_known, variant_from, with_other_mask
from ticketry.lab.training.variants import HeldMask, Penalty, Shrunk
from ticketry.records.ticket import RetrainingInfo, TaskInfo, TaskRequest, TicketTask, read_ticket_info
from ticketry.registry import import_from_here, load
from ticketry.tasks import catalogue
from ticketry.tasks.file_requests import is_widened, quote, refusal
from ticketry.tasks.recipe import Recipe, recipe_from
from ticketry.tasks.task import Spec, Task, json_key
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix


def name_in_errors(ticket: Ticket) -> str:
    """Return how error messages name a ticket: by its folder, or "this ticket" if it has no folder."""
    return str(ticket.path or "this ticket")


def read_task_description(ticket: Ticket) -> TicketTask | None:
    """Read the description of a ticket's task; return None if the ticket has no such description.

    Raises:
        TicketError: if the description is invalid.
    """
    return read_ticket_info(TaskInfo, ticket.info, name_in_errors(ticket)).task


def build_task(ticket: Ticket, *, request: TaskRequest | None = None, trust: bool = False) -> Task:
    """Build a ticket's task from the description in the ticket.

    Args:
        request: description to use instead of the ticket's own.
        trust: whether the user trusts everything that the ticket names, see `tasks.file_requests`. If False, the shapes
            of a large network are checked before memory is allocated.

    Raises:
        TrustError: if the ticket names something that needs the user's trust.
        TicketError: if the description is missing or invalid, or the ticket's weights are of another network.
    """
    of, asked = name_in_errors(ticket), read_task_description(ticket)
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
        _require_same_shapes(task, ticket)
    return task


def _require_same_shapes(task: Task, ticket: Ticket) -> None:
    """Raise `TicketError` unless the task's network has all weights of the ticket, in the same shapes."""
    of = name_in_errors(ticket)
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
"""Variants that `restore_variants` can find by name, because importing their classes registers them."""


def restore_variants(lab: Lab, info: RetrainingInfo, mask: Mask, of: str) -> tuple[Variant, ...]:
    """Restore the variants of training with which a ticket was trained, adapted to its current mask.

    If pruned channels were physically removed before training, they are removed here too.

    Args:
        info: entries of the ticket about its training.
        mask: the ticket's mask.
        of: name of the ticket in errors.

    Raises:
        TrustError: if the module of a custom variant is not imported.
        TicketError: if a variant cannot be restored, or needs data that this store lacks.
    """
    digest, holding = lab.store.put_mask(mask), Shrunk if info.segment.shrunk else HeldMask
    made = [_restore_variant(each, of) for each in info.segment.variants]
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
    """Import the modules of custom variants that a ticket names; call this only if the user trusts the ticket.

    Raises:
        UsageError: if a module cannot be imported.
    """
    for each in read_ticket_info(RetrainingInfo, ticket.info, name_in_errors(ticket)).segment.variants:
        if "place" in each:
            import_from_here()
            load(str(each["place"]))


def _restore_variant(described: Mapping[str, Any], of: str) -> Variant:
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
class TestedTicket:
    """A ticket with everything that is needed to train it and its controls again in a lab."""

    lab: Lab
    task: Task
    recipe: Recipe
    mask: Mask
    mask_digest: str
    start: str
    """Digest of the stored state, before masking, from which the ticket's training starts."""
    step: int
    """The rewind step k: number of steps for which the state `start` was trained."""
    first: int
    """First step of the schedule at which the ticket's training begins."""
    last: int
    seeds: Seeds
    """Seeds of the replicate that found the ticket."""
    info: Mapping[str, Any]
    parameters: int
    """Number of parameters of the dense network."""
    variants: tuple[Variant, ...]
    """Variants of the ticket's training: its mask, and variants that the method added."""
    form: MaskForm = WEIGHTS
    """Structure of the ticket's mask, which the masks of controls must also have."""
    after: int = 0
    """Number of fresh seeds to skip, see `VerifySettings.after`."""

    @property
    def remaining(self) -> int:
        """Number of unpruned parameters: weights that the mask retains, and all parameters that it does not cover."""
        return self.parameters - self.mask.total + self.mask.kept

    @property
    def budget(self) -> int:
        """Number of steps from the initialisation to the end of the ticket's training."""
        return self.step + self.last - self.first

    def fresh_seeds(self, number: int, purpose: str = "verify") -> Seeds:
        """Return seeds, used by no search, of repetition `number`; another `purpose` gives other seeds."""
        return Seeds.of(mix(self.seeds.order, purpose, self.after + number))


def load_tested_ticket(lab: Lab, ticket: Ticket, task: Task | None = None) -> TestedTicket:
    """Prepare a ticket for testing, and check that it fits its task.

    Args:
        lab: lab that will train.
        ticket: a ticket that was rewound (retrain ``continue`` or ``restart``) or pruned before any training.
        task: the task; required only if it cannot be built from its name.

    Raises:
        TicketError: if the ticket lacks data about its training, or belongs to another model or task.
        TrustError: if the ticket names a task or network that is not built in or a path of this machine, or was trained
            with a variant whose module is not imported.
        UsageError: if the ticket continued from trained weights, so that it has no initial state to train from again.
    """
    info = ticket.info
    missing = [name for name in _NEEDED if name not in info]
    if missing:
        raise TicketError(
            f"this ticket lacks its {', '.join(missing)}, so it cannot be trained again: verify tickets that a search"
            " has saved, or judge your own numbers with evidence.verdict"
        )
    training = read_ticket_info(RetrainingInfo, info, name_in_errors(ticket))
    if not trains_after_pruning_only(training):
        raise UsageError(
            f"this ticket keeps trained weights (retrain {training.retrain:.40}), so no dense network or control has"
            " its start and its budget: verify its procedure, the whole search (--about procedure), or tickets of"
            " retrain continue or restart"
        )
    recipe, form = recipe_from(training.recipe), _mask_form(training, ticket.mask, name_in_errors(ticket))
    task = task or build_task(ticket)
    check_task(task, training.task)
    model = lab.model(task)
    try:
        ticket.mask.parameters(model)
        match_state_to_model(model, ticket.start)
    except (MaskError, TicketError) as error:
        raise TicketError(f"the ticket does not fit the network {_model_name(task)}: {error}") from None
    _check_steps(training, recipe.steps(lab.per_epoch(task, recipe)), name_in_errors(ticket))
    return TestedTicket(
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
        variants=restore_variants(lab, training, ticket.mask, name_in_errors(ticket)),
        form=form,
    )


def _mask_form(training: RetrainingInfo, mask: Mask, of: str) -> MaskForm:
    """Return the structure of the ticket's mask; raise `TicketError` if it has groups larger than any layer."""
    pattern = Pattern.parse(training.mask_pattern)
    form = MaskForm.from_structure(
        training.structure.kind, shrunk=training.segment.shrunk, pattern=str(pattern), aim=training.aim
    )
    largest = max((size for shape in mask.shapes.values() for size in shape), default=0)
    if max(form.m, pattern.m, pattern.rows) > max(largest, 1):
        raise TicketError(
            f"{of}: in ticket.json, a pattern has groups of more rows or inputs than any layer ({largest})"
        )
    return form


def _check_steps(training: RetrainingInfo, total: int, of: str) -> None:
    """Raise `TicketError` if a step of the ticket exceeds the `total` steps of its recipe."""
    for name, step in (("segment.last", training.segment.last), ("rewind_step", training.rewind_step)):
        if step > total:
            raise TicketError(
                f"{of}: in ticket.json, info.{name} is {step:,}, but the ticket's recipe has {total:,} steps"
            )


def trains_after_pruning_only(info: RetrainingInfo) -> bool:
    """Return whether all training of a ticket's weights followed pruning, after rewinding or from step 0 on."""
    return info.retrain in REWINDING or (info.retrain == GRADUAL and info.rewind_step == info.segment.first == 0)


def check_task(task: Task, asked: TicketTask) -> None:
    """Raise `TicketError` unless `asked`, the task that the ticket was found on, is the same as `task`."""
    own, written = json_key(task), asked.key
    if own == written:
        return
    differing = sorted(name for name in own.keys() | written.keys() if own.get(name) != written.get(name))
    differences = ", ".join(
        f"{name:.40} {str(written.get(name))[:60]!r} (here {str(own.get(name))[:60]!r})" for name in differing
    )
    raise TicketError(f"the ticket has another task or network: its {differences}")


def _model_name(task: Task) -> str:
    return str(task.key().get("model", task.name))
