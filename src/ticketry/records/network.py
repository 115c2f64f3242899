"""The record of one trained network: its metrics, mask, training cost and moment of pruning."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta, ValidationError, convert, field

from ticketry.core.tables import LayerDensity as LayerDensity
from ticketry.records.schema import (
    LARGEST,
    Count,
    Density,
    NotNegative,
    Number,
    Part,
    Role,
    describe_json_type,
    nan_if_invalid,
    raise_invalid_field,
)
from ticketry.records.ticket import Structure

DENSE, TICKET = "dense", "ticket"
"""Roles of networks; every other role is the name of a control."""
LATENCY_MATCHED = "dense_of_time"
MATCHED_DENSE = ("dense_of_flops", LATENCY_MATCHED)
"""Controls that are dense networks as expensive as the ticket, in MACs (the first) or measured latency.

The network is the task's own at another width, or the one named after a colon (``dense_of_flops:vgg-11``).
"""
PHASES = ("dense", "search", "sparse")
DISTANCE, MASKS = "distance", "masks"
"""Names of the detectors that choose when to prune."""


def is_matched_dense(role: str) -> bool:
    """Return whether `role` is a dense network that is made as expensive as the ticket, to be its control."""
    return role.partition(":")[0] in MATCHED_DENSE


def ratio_or_none(part: float | None, whole: float | None) -> float | None:
    """Return `part / whole`, such as a cost relative to the dense network; None if `part` or `whole` is unknown."""
    return None if part is None or not whole else part / whole


LARGEST_SIDE = 1 << 20
"""Largest size of each dimension of a first layer."""

_StepValue = Annotated[tuple[Number, float | None], Meta(extra={"problem": "is not a step and a value"})]


class FirstLayer(Part, frozen=True):
    """The first layer's mask, for a picture: each weight's bit for a convolution, else each input's retained share."""

    name: str
    kind: Literal["filters", "inputs"]
    shape: tuple[int, ...]
    """Shape of the data: (out, in, height, width) for kind filters, (channels, height, width) for kind inputs."""
    data: bytes
    """For filters, mask bits packed in C order, highest bit first, 1 = retained. For inputs, one byte per input, 255 =
    all of its weights are retained."""

    def __post_init__(self) -> None:
        sides = 4 if self.kind == "filters" else 3
        if len(self.shape) != sides or not all(1 <= size <= LARGEST_SIDE for size in self.shape):
            raise_invalid_field("shape", f"is not that of {self.kind}")
        elements = math.prod(self.shape)
        if len(self.data) != (-(-elements // 8) if self.kind == "filters" else elements):
            raise_invalid_field("data", f"is {len(self.data)} bytes long, which does not fit the shape")


class RelativeLatency(Part, frozen=True):
    """Latency as a share of the dense network's latency (median and interval); both were timed in turns."""

    share: NotNegative
    low: NotNegative
    high: NotNegative

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of the dense time"


class Phase(Part, frozen=True):
    """Costs of one phase (dense, search or sparse) of a network's training; None for values not measured."""

    steps: Count
    flops: NotNegative | None = None
    seconds: NotNegative | None = None
    memory: Count | None = None
    """Peak bytes of tensors during a training step; None also for a phase that only computed scores."""

    @property
    def is_empty(self) -> bool:
        """Whether the phase did not take place."""
        return not (self.steps or self.flops or self.seconds)


class Phases(Part, frozen=True):
    """Costs, by phase, of all training that a network needed; training shared with other networks is included."""

    dense: Phase
    """Training without a mask."""
    search: Phase
    """All other training until the mask was known."""
    sparse: Phase
    """Training of the network with its mask."""

    @property
    def by_name(self) -> dict[str, Phase]:
        """The phases by name, in the order of training."""
        return {name: getattr(self, name) for name in PHASES}

    @property
    def total(self) -> Phase:
        """Sum over all phases, but of memory the maximum; a value is None if it is unknown for a phase."""
        parts = [part for part in self.by_name.values() if not part.is_empty]
        memories = [part.memory for part in parts if part.steps]
        known = [memory for memory in memories if memory is not None]
        return Phase(
            steps=sum(part.steps for part in parts),
            flops=_sum_or_none([part.flops for part in parts]),
            seconds=_sum_or_none([part.seconds for part in parts]),
            memory=max(known) if known and len(known) == len(memories) else None,
        )


def _sum_or_none(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


class Cost(Part, frozen=True, kw_only=True, omit_defaults=True):
    """Cost of a command, summed over all networks; values that were not measured are None and are not stored."""

    segments_asked: Count | None = None
    segments_distinct: Count | None = None
    """Number of segments that an empty store would have to train."""
    segments_trained: Count | None = None
    steps_asked: Count | None = None
    steps_trained: Count | None = None
    dense_steps: Count | None = None
    search_steps_per_replicate: Count | None = None
    control_steps: Count | None = None
    train_seconds: NotNegative | None = None
    """Training time in seconds of all networks, including those that earlier commands trained."""
    train_seconds_now: NotNegative | None = None
    """Training time in seconds of only the networks that this command trained."""
    wall_seconds: NotNegative | None = None
    energy_kwh: NotNegative | None = None
    energy_by: str = ""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Cost:
        """Read the valid costs; ignore invalid costs, so that the rest of the record can still be read."""
        usable: dict[str, Any] = {}
        for name, value in values.items():
            with contextlib.suppress(ValidationError):
                convert({name: value}, cls)
                usable[name] = value
        return convert(usable, cls)


class Moment(Part, frozen=True):
    """The step at which a network was pruned, and the measurements by which a detector chose this step."""

    step: Count
    detected: bool
    """Whether the detector chose the step; if False, the step was the latest allowed one or fixed in advance."""
    detector: str
    threshold: Number
    """The network is pruned when a value in `compared_measurements` falls below this threshold."""
    recorded_looks: tuple[_StepValue, ...] = field(default=(), name="looks")
    seconds: NotNegative = 0.0
    """Time of the detector's measurements in seconds."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.recorded_looks]
        for index, step in enumerate(steps):
            if step < 0 or step != int(step):
                raise_invalid_field(f"looks[{index}]", "is not a step and a value")
        if any(one >= other for one, other in pairwise(steps)):
            raise_invalid_field("looks", "are not in the order of steps")

    @property
    def measurements(self) -> tuple[tuple[int, float], ...]:
        """The detector's measurements as pairs of step and value, in the order of steps.

        For the detector ``distance``, a value is ||w - w0|| / ||w0||. For the detector ``masks``, a value is the share
        of mask elements that differ from the previous measurement; it is NaN for the first measurement.
        """
        return tuple((int(step), nan_if_invalid(value)) for step, value in self.recorded_looks)

    @property
    def compared_measurements(self) -> tuple[tuple[int, float], ...]:
        """The values that the detector compares with its threshold, as pairs of step and value; NaN if undefined.

        For the detector ``distance``, with measurements d_t and d_0 = 0, a value is |d_t - d_(t-1)| / d_1. For the
        detector ``masks``, the values are the measurements themselves.
        """
        looks = self.measurements
        if self.detector != DISTANCE or not looks:
            return looks
        first = looks[0][1]
        changes = [first, *(abs(after - before) for (_, before), (_, after) in pairwise(looks))]
        steps = (step for step, _ in looks)
        return tuple((step, change / first if first else math.nan) for step, change in zip(steps, changes, strict=True))

    @property
    def value_at_pruning(self) -> float:
        """The last value, up to the pruning step, that was compared with the threshold; NaN without measurements."""
        return next((value for step, value in reversed(self.compared_measurements) if step <= self.step), math.nan)


class Point(Part, frozen=True, kw_only=True, omit_defaults=True):
    """The record of one trained network of a run: its role, density, metrics and costs."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    """Fraction of the prunable parameters that is retained."""
    validation: dict[str, Any]
    """Name -> metric on the validation split; the task's metric is included."""
    test: dict[str, Any]
    """Name -> metric on the test split; the task's metric is included."""
    kept: Count | None = None
    steps: Count | None = None
    budget: Count | None = None
    """Training steps since the initialisation of its weights."""
    seconds: NotNegative | None = None
    search_steps: Count | None = None
    """Steps of the trainings that produced the network's mask; None if the record contains these trainings as
    networks."""
    search_seconds: Number | None = None
    init: Number | None = None
    """Initial value of the gates that produced the network's mask; None without gates."""
    penalty: Number | None = None
    cycles: Count | None = None
    """Number of trainings of a control that is trained for as long as the whole search."""
    key: str = ""
    multiplications: Count | None = None
    """MACs of linear and convolution layers for one example, without those of pruned weights. Recorded in runs with a
    budget or with dense controls of equal cost."""
    timed: RelativeLatency | None = None
    """Latency relative to the dense network. Recorded in runs with a latency budget or with dense controls of equal
    latency."""
    model: str = ""
    """Name of the network; empty if it is the task's network."""
    first_layer: FirstLayer | None = None
    phases: Phases | None = field(default=None, name="cost")
    """Training cost by phase; None in records without phases."""
    moment: Moment | None = None
    structure: Structure | None = None
    """Structure that was applied to the mask after the search; None if none was applied."""
    ticket: str = ""
    """Folder in which the ticket was saved; empty if it was not saved."""
    recorded_layers: tuple[LayerDensity, ...] | None = field(default=None, name="layers")

    @property
    def layers(self) -> tuple[LayerDensity, ...]:
        """Density of each layer; empty if the record has no densities of layers."""
        return self.recorded_layers or ()

    def metric(self, name: str, split: str = "test") -> float:
        """Return the metric `name` on the split "test" or "validation"."""
        return float((self.test if split == "test" else self.validation)[name])


def check_metric(values: dict[str, Any], name: str, place: str) -> None:
    """Raise an error unless `values`, at `place` in a record, contain a finite number for the metric `name`."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise_invalid_field(f"{place}.{name}", f"is {describe_json_type(value)}, not a number")
    if not abs(value) <= LARGEST:
        raise_invalid_field(f"{place}.{name}", f"is no finite number up to {LARGEST:g}")
