"""Records of verifications and of stability analyses."""

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
    decode_record,
    nan_if_invalid,
    raise_invalid_field,
)
from ticketry.records.ticket import BenchRecord, CurveRecord, SpeedRecord
from ticketry.records.verdict import Experiment, Judgement, MeanDifference, OmittedControl, Task

FORMAT: Final = 1
_ADVICE = "Repeat the command that wrote it; trainings in the store are reused"


class Network(Part, frozen=True):
    """The networks of one role in a verification, with a metric for each seed; counts are means over seeds."""

    role: Role
    values: tuple[Number, ...]
    """Metric on the test split, one value for each seed."""
    budget: Count | None = None
    """Training steps of each network since its initialisation."""
    parameters: Count | None = None
    """Number of unpruned parameters."""
    model: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            raise_invalid_field("values", "is empty")


class Reference(Part, frozen=True):
    """Dense networks with another number of training steps (such as the steps of the whole search), for comparison."""

    role: Role
    steps: Count | None = None
    values: tuple[Number, ...] = ()
    note: str = ""


class Noise(MeanDifference, frozen=True, kw_only=True):
    """A/A test: differences between the ticket and itself under other seeds, which show the effect of chance."""

    n: Count
    values: tuple[Number, ...] = ()
    """Metric of the ticket under the other seeds."""


class VerifyRecord(Judgement, frozen=True, kw_only=True, tag_field="kind", tag="verify"):
    """The record of a verification: a ticket, or a repeated search, compared with other networks over paired seeds.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> record = tk.verify(run.best(), seeds=3, controls=["shuffled"], noise=False, references=False, workers=0)
        >>> record.verdict in ("wins", "loses", "undecided"), record.n, record.claims_of
        (True, 3, 'this ticket')
    """

    format: Literal[1] = FORMAT
    name: str
    run: str = ""
    """Run that saved the ticket; empty for a ticket from elsewhere."""
    ticket: str = ""
    """Folder of the ticket. For a procedure, the ticket only names the procedure, and no value here comes from it."""
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method, for a procedure."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe of the search, for a procedure."""
    replicate: Count | None = None
    """Replicate that found the ticket; None for a procedure."""
    level: Count
    density: Density
    """Fraction of weights retained; for a procedure, `density` and `kept` are means over its masks."""
    kept: Count | None = None
    task: Task
    resolution: Number | None = None
    """Smallest possible change of the metric; None if unknown."""
    interim: tuple[Count, ...] = ()
    """Numbers of seeds of the planned interim analyses."""
    after: Count = 0
    """Number of seeds that were skipped because an earlier verification used them."""
    networks: tuple[Network, ...]
    noise: Noise | None = None
    references: tuple[Reference, ...] = ()
    left_out: tuple[OmittedControl, ...] = ()
    cost: Cost = Cost()
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    store: str = ""


class Distances(Part, frozen=True):
    """Distances between the weights of two networks with the same initial weights: L2, and the angle."""

    l2: Number
    angle: Number | None
    """Angle between the two weight vectors in degrees; None if a vector is 0."""


class LayerDistances(Part, frozen=True):
    """L2 distances between the weights of two networks in one layer, under pruning and under another data order."""

    name: str
    pruning: Number | None = None
    data_order: Number | None = None


class Curve(Part, frozen=True):
    """Errors of networks on the straight line between the weights of two trained networks."""

    split: str
    recalibrated: Count
    """Number of batches with which batch-norm statistics were recomputed; 0 if they were interpolated."""
    recorded_height: float | None = field(name="height")
    alphas: tuple[Number, ...]
    """Positions on the line: 0 is the first network, 1 the second."""
    recorded_errors: tuple[float | None, ...] = field(name="errors")

    def __post_init__(self) -> None:
        if len(self.alphas) != len(self.recorded_errors):
            raise_invalid_field("errors", f"has {len(self.recorded_errors)} numbers for {len(self.alphas)} alphas")

    @property
    def height(self) -> float:
        """Height of the error barrier on the line; NaN if it is not finite."""
        return nan_if_invalid(self.recorded_height)

    @property
    def errors(self) -> tuple[float, ...]:
        """Error at each position in `alphas`; NaN if an error is not finite."""
        return tuple(map(nan_if_invalid, self.recorded_errors))


class StabilityRow(Part, frozen=True, omit_defaults=True):
    """Distances and error barriers of one network, which was trained from one rewind step."""

    replicate: Count
    step: Count
    level: Count
    density: Density
    role: Role
    value: Number | None
    pruning: Distances | None
    """Distances between the ticket and the masked dense network; None for the dense network."""
    data_order: Distances | None
    """Distances between two trainings with different data orders."""
    barriers: tuple[Curve, ...]
    layers: tuple[LayerDistances, ...] = ()

    @property
    def barrier(self) -> Curve | None:
        """The curve to show, preferably on the test split and with recomputed batch statistics; None without curves."""
        return max(self.barriers, key=lambda curve: (curve.split == "test", curve.recalibrated), default=None)


class Rewind(Part, frozen=True):
    """A rewind step of a stability analysis, and the run that used this step."""

    step: Count
    asked: str = ""
    """The step as requested, such as 2ep."""
    run: str = ""


class StabilityRecord(Experiment, frozen=True, kw_only=True, tag_field="kind", tag="stability"):
    """The record of a stability analysis over several rewind steps."""

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
                raise_invalid_field(f"rows[{index}]", f"is the second {row.role} of its replicate, step and level")
            seen.add(identity)


Evidence = VerifyRecord | StabilityRecord | SpeedRecord
EvidenceValues = Evidence | Mapping[str, Any]
"""A record of evidence, or the JSON values of one."""
KINDS: dict[str, type[Evidence]] = {
    "verify": VerifyRecord,
    "stability": StabilityRecord,
    "bench": BenchRecord,
    "bench-curve": CurveRecord,
}


def read_evidence(record: object, what: str = "evidence record") -> Evidence:
    """Convert JSON values to a verification, stability or timing record; return a record unchanged."""
    if isinstance(record, Evidence):
        return record
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise StoreError(f"{what}: kind is {kind!r:.60}, not one of {', '.join(KINDS)}. {_ADVICE}")
    return decode_record(KINDS[kind], record, what=what, advice=_ADVICE)
