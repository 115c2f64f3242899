"""Records of a structure that was applied to a mask after the search, with its fit and pictures of the masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

from msgspec import UNSET, UnsetType, defstruct, field
from msgspec.structs import force_setattr

from ticketry.core.structure.structuring import LayerFit as LayerFit
from ticketry.core.structure.structuring import Structuring
from ticketry.records.schema import AtLeastOne, NearShare, NotNegative, Part, clip_to_unit, reject
from ticketry.records.ticket import TicketRecord

_MOST_PIXELS = 1 << 20


class LayerPicture(Part, frozen=True):
    """Picture of a layer's mask before and after structuring; rows are sorted by their group after structuring."""

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
            reject("shape", "is not that of a picture")
        if sum(self.groups) != height or min(self.groups) < 1:
            reject("groups", "do not add up to the picture's rows")
        for name in ("before", "after"):
            if len(bits := getattr(self, name)) != -(-height * width // 8):
                reject(name, f"is {len(bits)} bytes long, which does not fit the shape")


if TYPE_CHECKING:
    _Options = Part
else:  # the options of `core.structure.structuring.Structuring`; options that do not apply to the kind are omitted
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
    """The structure of one ticket's mask: kind, options, and how well the new mask fits the original mask."""

    kind: str
    name: str = ""
    """Kind with its main options for display, such as ``regroup, 16 rows``."""
    before: NearShare = field(name="density_before")
    """Density of the mask before structuring."""
    layers: tuple[LayerFit, ...] = ()
    """Fit of each layer, then of all layers together; empty if not measured."""
    pictures: tuple[LayerPicture, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "before", clip_to_unit(self.before))
        force_setattr(self, "name", self.name or self.kind)


class StructureRecord(TicketRecord, frozen=True, kw_only=True, tag_field="kind", tag="structure"):
    """The record of structuring a ticket; `ticket` is the folder of the original ticket."""

    path: str
    """Folder of the structured ticket."""
    seconds: NotNegative
    structure: Structure
