"""The tables of a campaign file, by type; what they say together is checked in `campaign_file`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, ValidationError, convert

from ticketry.errors import UsageError
from ticketry.evidence.judging.interim_analyses import INTERIM
from ticketry.records.network import TICKET
from ticketry.records.schema import Density, Number

Scale = Literal["demo", "cpu", "paper"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "dense", "sparse"]
SCALES: tuple[Scale, ...] = ("demo", "cpu", "paper")


class SideTable(Struct, forbid_unknown_fields=True):
    run: str = ""
    role: str = TICKET
    value: Number | None = None
    density: Density | str | None = None
    """If it is not the claim's."""
    level: int | None = None
    """Of tickets whose density is not known beforehand; -1 for the last."""

    def __str__(self) -> str:
        return f"{self.role} of {self.run}" if self.value is None else f"{self.value:g}"


class ClaimTable(Struct, forbid_unknown_fields=True):
    statement: str
    a: SideTable
    b: SideTable
    source: str = ""
    figure: str = ""
    density: Density | str | Annotated[tuple[Density | str, ...], Meta(min_length=1)] | None = None
    metric: str = ""
    above: Number = 0.0
    margin: Number = 0.5
    confidence: float = 0.95
    family: str = ""
    again: str = ""
    """The claim that this one asks again, on fresh replicates; at the same density."""
    scales: tuple[Scale, ...] = SCALES


class SearchTable(Struct, forbid_unknown_fields=True):
    method: str = ""
    task: str = ""
    model: str = ""
    options: dict[str, bool | int | float | str] = {}
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    controls: tuple[str, ...] = ()
    control_densities: tuple[Density | str, ...] = ()
    stability: dict[str, Any] = {}


class RunTable(SearchTable):
    base: str = ""


class BaseTable(SearchTable):
    precision: Precision = "fp32"
    kernels: Kernels = "dense"

    @property
    def first_replicate(self) -> int:
        return 0


class OtherBaseTable(SearchTable):
    precision: Precision | None = None
    kernels: Kernels | None = None
    interim: tuple[int, ...] = ()
    after: Annotated[int, Meta(ge=0)] = 0
    """Replicates that are passed over: those from there on are fresh to claims that were judged by so many."""

    @property
    def first_replicate(self) -> int:
        return self.after


class ScaleTable(Struct, forbid_unknown_fields=True):
    runs: dict[str, RunTable]
    base: BaseTable = msgspec.field(default_factory=BaseTable)
    """What runs have that do not say otherwise."""
    bases: dict[str, OtherBaseTable] = {}
    """Others, that runs name in the place of that one: of another network or data set."""
    interim: tuple[int, ...] = INTERIM
    densities: dict[str, Density] = {}


class FileTable(Struct, forbid_unknown_fields=True):
    title: str
    scales: dict[Scale, ScaleTable]
    claims: dict[str, ClaimTable]
    paper: str = ""


_NAMED: dict[str, type[Struct]] = {
    "claims": ClaimTable,
    "scales": ScaleTable,
    "runs": RunTable,
    "bases": OtherBaseTable,
}
"""Of tables by name, what each is."""


def file_table(tables: Mapping[str, Any], path: Path) -> FileTable:
    """A campaign file by type; `UsageError` for what is of another one, with the file and the key."""
    try:
        return convert(tables, FileTable)
    except ValidationError as error:
        place, told = _fault(tables, error)
        raise UsageError(f"the campaign {path}: {place or 'the whole'} cannot be what it is: {told}") from None


def _fault(tables: Mapping[str, Any], error: ValidationError) -> tuple[str, str]:
    """The key that an error is of, and what it says. msgspec leaves names of tables away: they are tried in turn."""
    told, _, path = str(error).partition(" - at `")
    place = path.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".")
    named, _, _ = place.partition("[...]")
    for name, table in tables[named].items() if named in _NAMED and named != place else ():
        try:
            convert(table, _NAMED[named])
        except ValidationError as inner:
            within, told = _fault(table, inner)
            return f"{named}.{name}{within and '.'}{within}", told
    return place.replace("[...]", ""), told
