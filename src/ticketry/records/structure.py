"""What a record tells of masks that were given a structure after they were found: how well it fits, and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_type_hints

from msgspec import UNSET, UnsetType, defstruct, field
from msgspec.structs import force_setattr

from ticketry.core.structuring import LayerFit as LayerFit
from ticketry.core.structuring import Structuring
from ticketry.records.schema import AtLeastOne, NearShare, NotNegative, Part, clip_to_unit, reject
from ticketry.records.ticket import TicketRecord

_MOST_PIXELS = 1 << 20


class LayerPicture(Part, frozen=True):
    """A layer's mask before and after; rows are sorted by the group that they are in after."""

    name: str
    rows: AtLeastOne
    columns: AtLeastOne
    """Of the layer; the picture may show fewer."""
    every: AtLeastOne
    """Of its rows, one in so many is shown."""
    shape: tuple[int, int]
    """Of the picture: height, width."""
    groups: tuple[int, ...]
    """Rows of the picture in each group, from the top."""
    before: bytes
    """Bits, packed in C order, the highest bit of a byte first, 1 = kept."""
    after: bytes

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
else:  # what `core.structuring.Structuring` has beside the kind, left out where it has no meaning for the kind
    _Options = defstruct(
        "_Options",
        [(option, told | UnsetType, UNSET) for option, told in get_type_hints(Structuring).items() if option != "kind"],
        bases=(Part,),
        frozen=True,
        kw_only=True,
        omit_defaults=True,
    )


class Structure(_Options, frozen=True, kw_only=True, omit_defaults=True):
    """Of one ticket: the kind, the options that have a meaning for it, and how well the mask fits the one before."""

    kind: str
    name: str = ""
    """The kind with the options that tell it from others: ``regroup, 16 rows``."""
    before: NearShare = field(name="density_before")
    """Density of the mask without structure."""
    layers: tuple[LayerFit, ...] = ()
    """The last is of all layers together; empty if that was not measured."""
    pictures: tuple[LayerPicture, ...] = ()

    def __post_init__(self) -> None:
        force_setattr(self, "before", clip_to_unit(self.before))
        force_setattr(self, "name", self.name or self.kind)


class StructureRecord(TicketRecord, frozen=True, kw_only=True, tag_field="kind", tag="structure"):
    """A ticket that was given a structure; `ticket` is the one that it was made of."""

    path: str
    """The folder of the ticket that was made."""
    seconds: NotNegative
    structure: Structure
