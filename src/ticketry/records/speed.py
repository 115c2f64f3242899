"""Records of timings, of a ticket compared with dense engines or of its network under synthetic masks."""

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
    """Base of timing records, which names the ticket and how it was timed."""

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
        """Latencies of the ticket and of dense engines, with one entry for each batch size; empty if not timed."""
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
    """The record of the latency and size of a ticket, compared with dense engines."""

    structure: str = ""
    """Structure of the mask: channel-wise, unstructured or group-wise."""
    compile_seconds: Number | None = None
    weight_bytes: Count | None = None
    """Size in bytes of the packed weights and index tables of the sparse kernels."""
    table_batches: tuple[Count, ...] = ()
    """Batch sizes for which index tables were built."""
    dense_bytes: AtLeastOne | None = None
    """Size in bytes of the dense model's parameters."""
    comparisons: tuple[Timed, ...]
    layers_batch: AtLeastOne | None = None
    """Batch size at which `layers` were timed."""
    layers: tuple[SpeedLayer, ...] = ()

    def __post_init__(self) -> None:
        if not self.comparisons:
            reject("comparisons", "is empty")


class CurveRecord(SpeedRecord, frozen=True, kw_only=True, tag_field="kind", tag="bench-curve"):
    """The record of the latency of a ticket's network under synthetic masks of several densities."""

    pattern: str = ""
    """Pattern of the synthetic masks."""
    seed: int = 0
    curves: tuple[TimeCurve, ...]

    def __post_init__(self) -> None:
        if not self.curves:
            reject("curves", "is empty")
