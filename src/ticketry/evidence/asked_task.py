"""The task that a ticket asks for: made only if it is granted, and used only if the ticket fits it."""

from __future__ import annotations

import torch

from ticketry.core.scope import normal_name
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TaskError, TicketError, UsageError
from ticketry.records.ticket import TaskInfo, TaskRequest, TicketTask, read_info
from ticketry.tasks import catalogue
from ticketry.tasks.file_requests import is_widened
from ticketry.tasks.task import Spec, Task
from ticketry_engine.support.process_state import private_random_state


def name_of(ticket: Ticket) -> str:
    """What errors call a ticket: its folder, if it has one."""
    return str(ticket.path or "this ticket")


def asked_of(ticket: Ticket) -> TicketTask | None:
    """What the ticket says of its task; None if it says nothing.

    Raises:
        TicketError: if that cannot be.
    """
    return read_info(TaskInfo, ticket.info, name_of(ticket)).task


def made_task(ticket: Ticket, *, request: TaskRequest | None = None, trust: bool = False) -> Task:
    """The task of a ticket, from the request that is written in it.

    Args:
        request: another that is written in it, in place of its own.
        trust: whether a user has allowed whatever the ticket names, see `tasks.file_requests`. If not, and the network
            may be larger than memory, the ticket has to fit it before memory is taken.

    Raises:
        TrustError: if the request is not granted.
        TicketError: if there is none, it cannot be carried out, or the ticket is of another network.
    """
    of, asked = name_of(ticket), asked_of(ticket)
    if asked is None:
        raise TicketError(f"{of} does not tell its task, from which its model is built: name it with --task")
    model = asked.key.get("model")
    request = request or asked.spec
    spec = (
        Spec(request.name, request.model, tuple(sorted(request.options.items())))
        if request
        else Spec(asked.name, model if isinstance(model, str) else None)  # of before tickets had a spec
    )
    try:
        task = catalogue.make_asked_by(of, spec, trust=trust)
    except (TaskError, UsageError) as error:
        raise TicketError(f"the task {asked.name!r:.80} of {of} cannot be made: {error}") from None
    if not trust and is_widened(spec.model):
        _require_fit(task, ticket)
    return task


def _require_fit(task: Task, ticket: Ticket) -> None:
    """`TicketError` unless the built-in network has all of the ticket's weights in their shapes."""
    of = name_of(ticket)
    try:
        with private_random_state([]), torch.device("meta"):
            own = task.build().state_dict()
    except RuntimeError as error:
        raise TicketError(f"the network that {of} names cannot be made: {str(error).splitlines()[0]:.120}") from None
    shapes = {normal_name(name): tuple(tensor.shape) for name, tensor in own.items()}
    for name, tensor in ticket.start.items():
        if shapes.get(name) != tuple(tensor.shape):
            found = shapes.get(name, "none")
            raise TicketError(
                f"{of} is not of the network {task.key().get('model', task.name)} that it names: {name!r:.80} has the"
                f" shape {tuple(tensor.shape)}, and there {found}"
            )
