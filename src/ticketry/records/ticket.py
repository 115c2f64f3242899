"""The entries of a ticket about how it was found and trained, and the base of records about one ticket."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, field

from ticketry.errors import StoreError, TicketError
from ticketry.records.schema import AtLeastOne, Count, Density, Part, read, reject
from ticketry.records.settings import pattern_of_structure

_Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

T = TypeVar("T", bound=Struct)


class TaskRequest(Part, frozen=True):
    """The name, model and options that create a task, see `tasks.task.Spec`."""

    name: str
    model: str | None = None
    options: dict[str, str] = field(default_factory=dict)


class TicketTask(Part, frozen=True):
    """The task on which a ticket was found."""

    name: str = ""
    key: dict[str, Any] = field(default_factory=dict)
    """All properties of the task that affect results; they are part of the keys of trainings."""
    spec: TaskRequest | None = None
    """Request that creates the task; None for a task that was built in code, and in old tickets."""


class Seeds(Part, frozen=True):
    """The seeds of a training, as in `lab.search_result.Seeds`."""

    initialisation: _Seed
    order: _Seed
    mask: _Seed


class TrainedSegment(Part, frozen=True):
    """The training of a ticket, over the steps from `first` to `last` of the schedule."""

    first: Count
    last: Count
    shrunk: bool = False
    """Whether pruned channels were physically removed before training."""
    variants: tuple[dict[str, Any], ...] = ()
    """Descriptions of the variants of training, see `lab.training.variant`; some old tickets lack these."""

    def __post_init__(self) -> None:
        if self.last < self.first:
            reject("last", f"is {self.last}, before the first step ({self.first})")


class ControlSettings(Part, frozen=True):
    """The search settings that determine how controls are built."""

    pattern: str = "unstructured"
    """Pattern of the search's masks, in tickets of format 1."""
    structure: Any = "none"
    """The setting `structure`: weights that are removed together. A user's method may store any value here."""


class TicketStructure(Part, frozen=True):
    """The structure that was applied to a ticket's mask after the search."""

    kind: str = ""
    of: str = ""
    """Digest of the mask before structuring."""


class TrainingInfo(Part, frozen=True, kw_only=True):
    """The entries of a ticket that are needed for any further training."""

    task: TicketTask
    recipe: dict[str, Any]
    seeds: Seeds


class RetrainingInfo(TrainingInfo, frozen=True, kw_only=True):
    """The entries of a ticket that are needed to train the ticket again."""

    segment: TrainedSegment
    retrain: str
    rewind_step: Count
    settings: ControlSettings = ControlSettings()
    structure: TicketStructure = TicketStructure()
    aim: str = ""
    """Text that identifies the cost budget of the mask; empty if the mask was pruned to a density."""
    method: str = ""
    replicate: Count = 0
    level: Count = 0
    search_steps: Count | None = None

    @property
    def mask_pattern(self) -> str:
        """Pattern in which the search chose the mask; unstructured under a budget, or if a structure came later."""
        if self.aim or self.structure.kind or not isinstance(self.settings.structure, str):
            return self.settings.pattern
        return pattern_of_structure(self.settings.structure) or self.settings.pattern


class SearchRequest(Part, frozen=True):
    """The requested search, as far as it differs from the ticket's own entries; old tickets lack this entry."""

    replicates: AtLeastOne
    recipe: dict[str, Any] | None = None
    """Requested recipe, if the ticket's recipe differs, as under a budget; else None."""
    task: TaskRequest | None = None
    """Requested task, if each replicate had its own task, such as another split; else None."""
    sources: dict[str, str] | None = None
    """Name of a user-defined part (method, score, kind of gates) -> digest of its source file."""


class SearchInfo(TrainingInfo, frozen=True, kw_only=True):
    """The entries of a ticket that are needed to repeat its search."""

    method: str
    settings: dict[str, Any]
    replicate: Count
    level: AtLeastOne
    search: SearchRequest | None = None
    structure: TicketStructure = TicketStructure()


class TaskInfo(Part, frozen=True):
    """The entry of a ticket that describes its task."""

    task: TicketTask | None = None


class TicketRecord(Part, frozen=True, kw_only=True):
    """Base of records about one saved ticket, with the ticket's folder, task and size."""

    format: Literal[1] = 1
    ticket: str = ""
    """Folder of the ticket."""
    task: str = ""
    model: str = ""
    weights: str = ""
    """Which weights of the ticket were used: trained or start."""
    density: Density
    """Fraction of the prunable parameters that is retained."""
    kept: Count | None = None
    """Number of prunable parameters retained."""
    prunable: Count | None = None
    """Number of prunable parameters."""
    parameters: Count | None = None
    """Number of all parameters."""
    command: str = ""


def read_ticket_info(kind: type[T], info: Mapping[str, Any], of: str) -> T:
    """Convert the info of a ticket's ticket.json to an instance of one of the classes of this module.

    Args:
        kind: class of the result.
        info: the ticket's info.
        of: name of the ticket in errors.

    Raises:
        TicketError: if the ticket has no task, or a value is missing or invalid; the message names its place in
            ticket.json.
    """
    try:
        return read(kind, {"info": dict(info)}["info"], what=of, advice="")
    except StoreError as error:
        if "task" not in info:
            raise TicketError(
                f"{of} has no task, because it was saved by a custom training loop: define a task for that training and"
                " search with it (docs/tasks.md), or compare your own measurements with tk.evidence.verdict"
                " (docs/own-loop.md)"
            ) from None
        problem = str(error).removeprefix(f"{of}: ").rstrip(". ")
        raise TicketError(f"{of}: in ticket.json, info.{problem}: the ticket is damaged or forged") from None
