"""What a record tells of masks that were given a structure after they were found: how well it fits, and pictures."""

from __future__ import annotations

from typing import Final, Literal

from msgspec import UNSET, UnsetType, field
from msgspec.structs import force_setattr

from ticketry.core.structuring import LayerFit as LayerFit
from ticketry.records.schema import AtLeastOne, Count, Density, NearShare, NotNegative, Part, fault, share

FORMAT: Final = 1
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
            fault("shape", "is not that of a picture")
        if sum(self.groups) != height or min(self.groups) < 1:
            fault("groups", "do not add up to the picture's rows")
        for name in ("before", "after"):
            if len(bits := getattr(self, name)) != -(-height * width // 8):
                fault(name, f"is {len(bits)} bytes long, which does not fit the shape")


class Structure(Part, frozen=True, kw_only=True, omit_defaults=True):
    """Of one ticket: the kind, the options that have a meaning for it, and how well the mask fits the one before."""

    kind: str
    name: str = ""
    """The kind with the options that tell it from others: ``regroup, 16 rows``."""
    before: NearShare = field(name="density_before")
    """Density of the mask without structure."""
    layers: tuple[LayerFit, ...] = ()
    """The last is of all layers together; empty if that was not measured."""
    pictures: tuple[LayerPicture, ...] = ()
    plus: float | UnsetType = UNSET
    match: bool | UnsetType = UNSET
    score: str | UnsetType = UNSET
    coupled: str | UnsetType = UNSET
    rows: int | UnsetType = UNSET
    method: str | UnsetType = UNSET
    collapse: str | UnsetType = UNSET
    density: float | UnsetType | None = UNSET
    spare: tuple[str, ...] | UnsetType = UNSET

    def __post_init__(self) -> None:
        force_setattr(self, "before", share(self.before))
        force_setattr(self, "name", self.name or self.kind)


class StructureRecord(Part, frozen=True, kw_only=True, tag_field="kind", tag="structure"):
    """A ticket that was given a structure."""

    format: Literal[1] = FORMAT
    ticket: str
    """The folder of the ticket that it was made of."""
    path: str
    """The folder of the ticket that was made."""
    task: str
    model: str
    weights: str
    """trained or start: which ones magnitudes are of."""
    density: Density
    kept: Count
    prunable: Count
    parameters: Count
    seconds: NotNegative
    structure: Structure
    command: str = ""
