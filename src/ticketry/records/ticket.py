"""What a search writes into a ticket, as far as it is read again: how it was found, and how it is trained.

And what records of one ticket have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, field

from ticketry.errors import StoreError, TicketError
from ticketry.records.schema import AtLeastOne, Count, Density, Part, read, reject

_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T", bound=Struct)


class TaskRequest(Part, frozen=True):
    """The request that made a task, see `tasks.task.Spec`."""

    name: str
    model: str | None = None
    options: dict[str, str] = field(default_factory=dict)


class TicketTask(Part, frozen=True):
    """A ticket's task."""

    name: str = ""
    key: dict[str, Any] = field(default_factory=dict)
    """What tells its numbers from another's."""
    spec: TaskRequest | None = None
    """None where no request made it, and in tickets of before they had one."""


class Seeds(Part, frozen=True):
    """See `lab.search_result.Seeds`."""

    initialisation: _Seed
    order: _Seed
    mask: _Seed


class TrainedSegment(Part, frozen=True):
    """The segment of training in which the ticket was trained."""

    first: Count
    last: Count
    shrunk: bool = False
    variants: tuple[dict[str, Any], ...] = ()
    """What acted on the network, see `lab.training.variant`. Some tickets of before lack it."""

    def __post_init__(self) -> None:
        if self.last < self.first:
            reject("last", f"is {self.last}, before the first step ({self.first})")


class ControlSettings(Part, frozen=True):
    """Of the search, those that decide how controls are made."""

    pattern: str = "unstructured"


class StructureKind(Part, frozen=True):
    """What the mask was turned into."""

    kind: str = ""


class TrainingInfo(Part, frozen=True, kw_only=True):
    """What a ticket has to tell for whatever is trained for it."""

    task: TicketTask
    recipe: dict[str, Any]
    seeds: Seeds


class RetrainingInfo(TrainingInfo, frozen=True, kw_only=True):
    """All that a ticket has to tell to be trained again."""

    segment: TrainedSegment
    retrain: str
    rewind_step: Count
    settings: ControlSettings = ControlSettings()
    structure: StructureKind = StructureKind()
    aim: str = ""
    """What its mask has a budget of, and by which costs; empty where it was pruned to a density."""
    method: str = ""
    replicate: Count = 0
    level: Count = 0
    search_steps: Count | None = None


class SearchRequest(Part, frozen=True):
    """The search as it was asked for, where the ticket's own entries do not tell it. Tickets of before lack it."""

    replicates: AtLeastOne
    recipe: dict[str, Any] | None = None
    """Where the ticket's is another, as of a budget."""
    task: TaskRequest | None = None
    """Where each replicate had its own, such as a split."""
    sources: dict[str, str] | None = None
    """Digests of the source of method, score and kind of gates, where one of them is not built in."""


class StructureOrigin(Part, frozen=True):
    """What the ticket became after its search; `of` is the mask that it had then."""

    of: str = ""


class SearchInfo(TrainingInfo, frozen=True, kw_only=True):
    """All that a ticket has to tell for its search to be repeated."""

    method: str
    settings: dict[str, Any]
    replicate: Count
    level: AtLeastOne
    search: SearchRequest | None = None
    structure: StructureOrigin = StructureOrigin()


class TaskInfo(Part, frozen=True):
    """A ticket's task alone."""

    task: TicketTask | None = None


class TicketRecord(Part, frozen=True, kw_only=True):
    """A record of one saved ticket."""

    format: Literal[1] = 1
    ticket: str = ""
    """Its folder."""
    task: str = ""
    model: str = ""
    weights: str = ""
    """trained or start: which ones were looked at."""
    density: Density
    kept: Count | None = None
    prunable: Count | None = None
    parameters: Count | None = None
    command: str = ""


def read_info(kind: type[T], info: Mapping[str, Any], of: str) -> T:
    """What a ticket says of itself, as one of the classes here.

    Args:
        of: the ticket, as errors call it.

    Raises:
        TicketError: that names the place in ticket.json, if something is missing or impossible; of a ticket that tells
            no task, what can be done with it.
    """
    try:
        return read(kind, {"info": dict(info)}["info"], what=of, advice="")
    except StoreError as error:
        if "task" not in info:
            raise TicketError(
                f"{of} does not tell how it was trained, as a ticket that was saved in a loop of one's own: make a task"
                " of that training and search with it (docs/tasks.md), or compare what you measured yourself by"
                " tk.evidence.verdict (docs/own-loop.md)"
            ) from None
        told = str(error).removeprefix(f"{of}: ").rstrip(". ")
        raise TicketError(f"{of}: in ticket.json, info.{told}: the ticket is damaged or forged") from None
