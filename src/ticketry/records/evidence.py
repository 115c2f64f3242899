"""Records of evidence: verifications, and stability at several rewind steps. Timings are in `speed`."""

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
from ticketry.records.verdict import Experiment, Judgement, MeanDifference, OmittedControl, Task

FORMAT: Final = 1
_ADVICE = "Repeat the command that wrote it; trainings in the store are reused"


class Network(Part, frozen=True):
    """Networks of one role in a verification, one for each seed. Counts that differ between seeds are means."""

    role: Role
    values: tuple[Number, ...]
    """Metric on the test split, one value for each seed."""
    budget: Count | None = None
    """Training steps of each network since its initialisation."""
    parameters: Count | None = None
    """Number of nonzero weights."""
    model: str = ""

    def __post_init__(self) -> None:
        if not self.values:
            reject("values", "is empty")


class Reference(Part, frozen=True):
    """A dense network, trained for as many steps or operations as the whole search."""

    role: Role
    steps: Count | None = None
    values: tuple[Number, ...] = ()
    note: str = ""


class Noise(MeanDifference, frozen=True, kw_only=True):
    """A/A test: the same ticket trained under other seeds, minus itself. It shows the size of chance differences."""

    n: Count
    values: tuple[Number, ...] = ()
    """Metric of the ticket under the other seeds."""


class VerifyRecord(Judgement, frozen=True, kw_only=True, tag_field="kind", tag="verify"):
    """A verification: a ticket, or a repeated search, compared with the dense network and controls over paired seeds.

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
    """Folder of the ticket. For a procedure: a ticket that names the procedure; no value here comes from it."""
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method, for a procedure."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """Recipe of the search, for a procedure."""
    replicate: Count | None = None
    """Replicate that found the ticket; None for a procedure."""
    level: Count
    density: Density
    """Fraction of weights retained; for a procedure the mean over its masks, as for `kept`."""
    kept: Count | None = None
    task: Task
    resolution: Number | None = None
    """Smallest possible step of the metric; None if unknown."""
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
    """Distances between two networks trained from the same start."""

    l2: Number
    angle: Number | None
    """Angle between the two updates in degrees; None if one network did not move."""


class LayerDistances(Part, frozen=True):
    """L2 distances between networks in one layer."""

    name: str
    pruning: Number | None = None
    data_order: Number | None = None


class Curve(Part, frozen=True):
    """Error along the straight line between the weights of two networks."""

    split: str
    """Data split that the errors come from."""
    recalibrated: Count
    """Number of batches used to recompute batch-norm statistics; 0 if they were not recomputed."""
    recorded_height: float | None = field(name="height")
    alphas: tuple[Number, ...]
    """Positions on the line: 0 is the first network, 1 the second."""
    recorded_errors: tuple[float | None, ...] = field(name="errors")

    def __post_init__(self) -> None:
        if len(self.alphas) != len(self.recorded_errors):
            reject("errors", f"has {len(self.recorded_errors)} numbers for {len(self.alphas)} alphas")

    @property
    def height(self) -> float:
        """Height of the error barrier; NaN where it was not finite."""
        return nan_if_invalid(self.recorded_height)

    @property
    def errors(self) -> tuple[float, ...]:
        """Error at each of `alphas`, in that order; NaN where it was not finite."""
        return tuple(map(nan_if_invalid, self.recorded_errors))


class StabilityRow(Part, frozen=True, omit_defaults=True):
    """Stability of one network trained from one rewind step."""

    replicate: Count
    step: Count
    level: Count
    density: Density
    role: Role
    value: Number | None
    """Metric on the test split."""
    pruning: Distances | None
    """Distances between ticket and dense network; None for the dense network."""
    data_order: Distances | None
    """Distances between two trainings with different data orders."""
    barriers: tuple[Curve, ...]
    layers: tuple[LayerDistances, ...] = ()

    @property
    def barrier(self) -> Curve | None:
        """Main curve for figures and tests: on the test split, with recomputed statistics if available."""
        return max(self.barriers, key=lambda curve: (curve.split == "test", curve.recalibrated), default=None)


class Rewind(Part, frozen=True):
    """A rewind step, and the run that used it."""

    step: Count
    asked: str = ""
    """The step as requested, such as 2ep."""
    run: str = ""


class StabilityRecord(Experiment, frozen=True, kw_only=True, tag_field="kind", tag="stability"):
    """A stability analysis over several rewind steps."""

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
"""Record of evidence, or its JSON values."""
KINDS: dict[str, type[Evidence]] = {
    "verify": VerifyRecord,
    "stability": StabilityRecord,
    "bench": BenchRecord,
    "bench-curve": CurveRecord,
}


def read_evidence(record: object, what: str = "evidence record") -> Evidence:
    """Read the record of a verification, a stability analysis or a timing from its JSON values.

    Args:
        record: JSON values, or a record, which is returned unchanged.
        what: name of the record in errors, such as its file.

    Raises:
        StoreError: if the format or kind is another, a value is missing, or a value is invalid.
    """
    if isinstance(record, Evidence):
        return record
    check_format(record, FORMAT, what=what, advice=_ADVICE)
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise StoreError(f"{what}: kind is {kind!r:.60}, not one of {', '.join(KINDS)}. {_ADVICE}")
    return read(KINDS[kind], record, what=what, advice=_ADVICE)
