"""Records of timings: a ticket beside dense engines, or its network under synthetic masks of other densities."""

from __future__ import annotations

from ticketry.records.schema import AtLeastOne, Count, Number, reject
from ticketry.records.ticket import TicketRecord
from ticketry_engine.results import (
    CurvePoint as CurvePoint,
)
from ticketry_engine.results import (
    EngineTime as EngineTime,
)
from ticketry_engine.results import (
    Layer as Layer,
)
from ticketry_engine.results import (
    Saved as Saved,
)
from ticketry_engine.results import (
    SpeedLayer as SpeedLayer,
)
from ticketry_engine.results import (
    TimeCurve as TimeCurve,
)
from ticketry_engine.results import (
    Timed as Timed,
)


class SpeedRecord(TicketRecord, frozen=True, kw_only=True):
    """What both kinds of timings tell: of which ticket, and how it was timed."""

    name: str
    run: str = ""
    """That saved the ticket; empty for one from elsewhere."""
    precision: str = ""
    threads: Count | None = None
    tuned: bool = False
    """Whether several plans of the engine were timed at each batch, and the fastest kept."""
    date: str = ""

    @property
    def comparisons(self) -> tuple[Timed, ...]:
        """Beside dense engines, a batch each."""
        return ()

    @property
    def layers(self) -> tuple[SpeedLayer, ...]:
        """Of the compiled model."""
        return ()

    @property
    def curves(self) -> tuple[TimeCurve, ...]:
        """Against density, a batch each."""
        return ()


class BenchRecord(SpeedRecord, frozen=True, kw_only=True, tag_field="kind", tag="bench"):
    """A ticket beside dense engines."""

    structure: str = ""
    """channel-wise, or unstructured or group-wise."""
    compile_seconds: Number | None = None
    weight_bytes: Count | None = None
    """Of the kernels' tables."""
    table_batches: tuple[Count, ...] = ()
    """Batches that the tables are for."""
    dense_bytes: AtLeastOne | None = None
    comparisons: tuple[Timed, ...]
    layers_batch: AtLeastOne | None = None
    layers: tuple[SpeedLayer, ...] = ()

    def __post_init__(self) -> None:
        if not self.comparisons:
            reject("comparisons", "is empty")


class CurveRecord(SpeedRecord, frozen=True, kw_only=True, tag_field="kind", tag="bench-curve"):
    """A ticket's network under synthetic masks of other densities."""

    pattern: str = ""
    seed: int = 0
    curves: tuple[TimeCurve, ...]

    def __post_init__(self) -> None:
        if not self.curves:
            reject("curves", "is empty")
