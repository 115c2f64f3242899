"""Records about one ticket: its entries in ticket.json, the structure of its mask, and its timings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType, defstruct, field
from msgspec.structs import force_setattr

from ticketry.core.structure.pattern import LayerFit as LayerFit
from ticketry.core.structure.pattern import Structuring
from ticketry.errors import StoreError, TicketError
from ticketry.records.schema import (
    AtLeastOne,
    Count,
    Density,
    NearShare,
    NotNegative,
    Number,
    Part,
    clip_to_unit,
    decode_record,
    raise_invalid_field,
)
from ticketry.records.settings import pattern_of_structure
from ticketry_engine.results import SpeedLayer, TimeCurve, Timed

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
    """The seeds of the initialisation, the data order and random masks of a training."""

    initialisation: _Seed
    order: _Seed
    mask: _Seed


class TrainedSegment(Part, frozen=True):
    """The training of a ticket, from step `first` to step `last` of the schedule."""

    first: Count
    last: Count
    shrunk: bool = False
    """Whether pruned channels were physically removed before training."""
    variants: tuple[dict[str, Any], ...] = ()
    """Descriptions of the variants of training, see `lab.training.variant`; some old tickets lack these."""

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise_invalid_field("last", f"is {self.last}, before the first step ({self.first})")


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
    """Settings of a search as the user requested it, where they differ from those stored in the ticket.

    An example is the number of replicates: the search has several, the ticket comes from one.
    """

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
    """Base class of records about one saved ticket: its folder, task and size."""

    format: Literal[1] = 1
    ticket: str = ""
    task: str = ""
    model: str = ""
    weights: str = ""
    """Which weights of the ticket were used: trained or start."""
    density: Density
    """Fraction of the prunable parameters that is retained."""
    kept: Count | None = None
    prunable: Count | None = None
    parameters: Count | None = None
    command: str = ""


def read_ticket_info(kind: type[T], info: Mapping[str, Any], of: str) -> T:
    """Convert `info`, read from a ticket's ticket.json, to an instance of the class `kind`, such as `TrainingInfo`."""
    try:
        return decode_record(kind, dict(info), what=of, advice="")
    except StoreError as error:
        if "task" not in info:
            raise TicketError(
                f"{of} has no task, because it was saved by a custom training loop: define a task for that training and"
                " search with it (docs/tasks.md), or compare your own measurements with tk.evidence.verdict"
                " (docs/own-loop.md)"
            ) from None
        problem = str(error).removeprefix(f"{of}: ").rstrip(". ")
        raise TicketError(f"{of}: in ticket.json, info.{problem}: the ticket is damaged or forged") from None


_MOST_PIXELS = 1 << 20


class LayerPicture(Part, frozen=True):
    """Pictures of a layer's mask before and after structuring; rows of the same new group are adjacent in both."""

    name: str
    rows: AtLeastOne
    """Number of rows of the layer's weight; the picture may show fewer."""
    columns: AtLeastOne
    """Number of columns of the layer's weight; the picture may show fewer."""
    every: AtLeastOne
    """Step between the rows that the picture shows: one of every `every` rows."""
    shape: tuple[int, int]
    """Height and width of the picture in pixels."""
    groups: tuple[int, ...]
    """Number of picture rows in each group, from the top."""
    before: bytes
    """Mask before structuring: bits packed in C order, highest bit first, 1 = retained."""
    after: bytes
    """Mask after structuring, in the same format as `before`."""

    def __post_init__(self) -> None:
        height, width = self.shape
        if min(self.shape) < 1 or height * width > _MOST_PIXELS:
            raise_invalid_field("shape", "is not that of a picture")
        if sum(self.groups) != height or min(self.groups) < 1:
            raise_invalid_field("groups", "do not add up to the picture's rows")
        for name in ("before", "after"):
            if len(bits := getattr(self, name)) != -(-height * width // 8):
                raise_invalid_field(name, f"is {len(bits)} bytes long, which does not fit the shape")


if TYPE_CHECKING:
    _Options = Part
else:  # the options of `core.structure.pattern.Structuring`; options that do not apply to the kind are omitted
    _Options = defstruct(
        "_Options",
        [
            (option, declared | UnsetType, UNSET)
            for option, declared in get_type_hints(Structuring).items()
            if option != "kind"
        ],
        bases=(Part,),
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    )


class Structure(_Options, frozen=True, kw_only=True, omit_defaults=True):
    """The structure of a ticket's mask: its kind and options, and how well the new mask fits the original mask."""

    kind: str
    name: str = ""
    """Kind with its main options for display, such as ``regroup, 16 rows``."""
    before: NearShare = field(name="density_before")
    layers: tuple[LayerFit, ...] = ()
    """Fit of each layer, then of all layers together; empty if not measured."""
    pictures: tuple[LayerPicture, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "before", clip_to_unit(self.before))
        force_setattr(self, "name", self.name or self.kind)


class StructureRecord(TicketRecord, frozen=True, kw_only=True, tag_field="kind", tag="structure"):
    """The record of structuring a ticket; `ticket` is the folder of the original ticket."""

    path: str
    seconds: NotNegative
    structure: Structure


class SpeedRecord(TicketRecord, frozen=True, kw_only=True):
    """Base class of timing records: the timed ticket, and the conditions of the timing."""

    name: str
    run: str = ""
    """Run that saved the ticket; empty for a ticket from elsewhere."""
    precision: str = ""
    threads: Count | None = None
    tuned: bool = False
    """Whether the engine timed several execution plans for each batch size and used the fastest."""
    date: str = ""

    @property
    def comparisons(self) -> tuple[Timed, ...]:
        """Latencies of the ticket and of dense engines, for each batch size; empty if not timed."""
        return ()

    @property
    def layers(self) -> tuple[SpeedLayer, ...]:
        """Layers of the compiled model with their times; empty if not timed."""
        return ()

    @property
    def curves(self) -> tuple[TimeCurve, ...]:
        """Curves of latency against density, one for each batch size; empty if not timed."""
        return ()


class BenchRecord(SpeedRecord, frozen=True, kw_only=True, tag_field="kind", tag="bench"):
    """The record of a ticket's latency and size, compared with dense engines."""

    structure: str = ""
    """Structure of the mask: channel-wise, unstructured or group-wise."""
    compile_seconds: Number | None = None
    weight_bytes: Count | None = None
    """Size in bytes of the packed weights and index tables of the sparse kernels."""
    table_batches: tuple[Count, ...] = ()
    dense_bytes: AtLeastOne | None = None
    comparisons: tuple[Timed, ...]
    layers_batch: AtLeastOne | None = None
    layers: tuple[SpeedLayer, ...] = ()

    def __post_init__(self) -> None:
        if not self.comparisons:
            raise_invalid_field("comparisons", "is empty")


class CurveRecord(SpeedRecord, frozen=True, kw_only=True, tag_field="kind", tag="bench-curve"):
    """The record of how long a call of a ticket's network takes under artificial masks of several densities."""

    pattern: str = ""
    seed: int = 0
    curves: tuple[TimeCurve, ...]

    def __post_init__(self) -> None:
        if not self.curves:
            raise_invalid_field("curves", "is empty")
