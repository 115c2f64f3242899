"""Records of evidence: verifications, and stability along rewind steps; what a ticket saves is in `speed`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import field

from ticketry.errors import StoreError
from ticketry.records.network import Cost
from ticketry.records.schema import (
    AtLeastOne,
    Count,
    Density,
    Number,
    Part,
    Role,
    check_format,
    nan_if_invalid,
    read,
    reject,
)
from ticketry.records.speed import BenchRecord, CurveRecord, SpeedRecord
from ticketry.records.verdict import Experiment, Judgement, LeftOut, MeanDifference, Task

FORMAT: Final = 1
_ADVICE = "Make it again with the command that wrote it; what is in the store is not trained again"


class Network(Part, frozen=True):
    """One role's networks of a verification, one a seed. Counts that differ between seeds are their mean."""

    role: Role
    values: tuple[Number, ...]
    """The test metric, by seed."""
    budget: Count | None = None
    """Training steps of each since its initialisation."""
    parameters: Count | None = None
    """Weights that are not zero."""
    model: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            reject("values", "is empty")


class Reference(Part, frozen=True):
    """The dense network trained for as long as the whole search, or for as many operations."""

    role: Role
    steps: Count | None = None
    values: tuple[Number, ...] = ()
    note: str = ""


class Noise(MeanDifference, frozen=True, kw_only=True):
    """The same ticket under other seeds, minus itself: what a difference of nothing looks like (A/A)."""

    n: Count
    values: tuple[Number, ...] = ()
    """Of the ticket under the other seeds."""


class VerifyRecord(Judgement, frozen=True, kw_only=True, tag_field="kind", tag="verify"):
    """One ticket, or those of a search that was repeated, against the dense network and controls, over paired seeds.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> record = tk.verify(run.best(), seeds=3, controls=["shuffled"], noise=False, references=False, workers=0)
        >>> record.verdict in ("wins", "loses", "undecided"), record.n, record.claims_of
        (True, 3, 'this ticket')
    """

    format: Literal[1] = FORMAT
    name: str
    run: str = ""
    """That saved the ticket; empty for one from elsewhere."""
    ticket: str = ""
    """Its folder; of a procedure the ticket by which it was named, which no number here is of."""
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of a procedure: those of the method."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Of a procedure."""
    replicate: Count | None = None
    """That found the ticket; None for a procedure."""
    level: Count
    density: Density
    """Of a procedure the mean of its masks', like `kept`."""
    kept: Count | None = None
    task: Task
    resolution: Number | None = None
    """The smallest step of the metric, where it is known."""
    interim: tuple[Count, ...] = ()
    """Numbers of seeds at which a decision was planned."""
    after: Count = 0
    """Fresh seeds that were passed over, which an earlier verification was judged by."""
    networks: tuple[Network, ...]
    noise: Noise | None = None
    references: tuple[Reference, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    cost: Cost = Cost()
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    store: str = ""


class Distances(Part, frozen=True):
    """Between two networks trained from the same start."""

    l2: Number
    angle: Number | None
    """Degrees; None where one of the two did not move."""


class LayerDistances(Part, frozen=True):
    """L2 distances in one layer."""

    name: str
    pruning: Number | None = None
    data_order: Number | None = None


class Curve(Part, frozen=True):
    """The error along the straight line between two networks."""

    split: str
    recalibrated: Count
    """Batches from which the statistics of batch normalisation were recomputed; 0 for none."""
    recorded_height: float | None = field(name="height")
    alphas: tuple[Number, ...]
    recorded_errors: tuple[float | None, ...] = field(name="errors")

    def __post_init__(self) -> None:
        if len(self.alphas) != len(self.recorded_errors):
            reject("errors", f"has {len(self.recorded_errors)} numbers for {len(self.alphas)} alphas")

    @property
    def height(self) -> float:
        """NaN where it is not finite."""
        return nan_if_invalid(self.recorded_height)

    @property
    def errors(self) -> tuple[float, ...]:
        """NaN where one is not finite."""
        return tuple(map(nan_if_invalid, self.recorded_errors))


class StabilityRow(Part, frozen=True, omit_defaults=True):
    """One network's stability from one rewind step."""

    replicate: Count
    step: Count
    level: Count
    density: Density
    role: Role
    value: Number | None
    """The metric on the test split."""
    pruning: Distances | None
    """None of the dense network."""
    data_order: Distances | None
    barriers: tuple[Curve, ...]
    layers: tuple[LayerDistances, ...] = ()

    @property
    def barrier(self) -> Curve | None:
        """Of several the one that is drawn and judged: on the test split, with recomputed statistics if any are."""
        return max(self.barriers, key=lambda curve: (curve.split == "test", curve.recalibrated), default=None)


class Rewind(Part, frozen=True):
    """A step that was rewound to, and the run that did so."""

    step: Count
    asked: str = ""
    run: str = ""


class StabilityRecord(Experiment, frozen=True, kw_only=True, tag_field="kind", tag="stability"):
    """Stability over rewind steps."""

    format: Literal[1] = FORMAT
    name: str
    runs: tuple[str, ...] = ()
    rewinds: tuple[Rewind, ...]
    total_steps: AtLeastOne
    replicates: AtLeastOne
    rows: tuple[StabilityRow, ...]
    cost: Cost = Cost()

    def __post_init__(self) -> None:
        seen: set[tuple[int, int, int, str]] = set()
        for index, row in enumerate(self.rows):
            identity = (row.replicate, row.step, row.level, row.role)
            if identity in seen:
                reject(f"rows[{index}]", f"is the second {row.role} of its replicate, step and level")
            seen.add(identity)


Evidence = VerifyRecord | StabilityRecord | SpeedRecord
EvidenceValues = Evidence | Mapping[str, Any]
"""A record of evidence, or its JSON values."""
KINDS: dict[str, type[Evidence]] = {
    "verify": VerifyRecord,
    "stability": StabilityRecord,
    "bench": BenchRecord,
    "bench-curve": CurveRecord,
}


def read_evidence(record: object, what: str = "evidence record") -> Evidence:
    """A record of a verification, of stability, or of what a ticket saves, from its JSON values.

    Args:
        what: what it is called in errors, or its file.

    Raises:
        StoreError: if it is of another format or kind, or if something is missing from it or impossible.
    """
    if isinstance(record, Evidence):
        return record
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise StoreError(f"{what}: kind is {kind!r:.60}, not one of {', '.join(KINDS)}. {_ADVICE}")
    return read(KINDS[kind], record, what=what, advice=_ADVICE)
