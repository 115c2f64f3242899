"""What a record tells of one trained network: how good it is, what its mask keeps, what it cost, when it was pruned."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

from msgspec import Meta, ValidationError, convert, field

from ticketry.core.layer_density import LayerDensity as LayerDensity
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
    reject,
)
from ticketry.records.structure import Structure

DENSE, TICKET = "dense", "ticket"
"""Roles; the others are names of controls."""
LATENCY_MATCHED = "dense_of_time"
MATCHED_DENSE = ("dense_of_flops", LATENCY_MATCHED)
"""Controls that are dense networks and cost what the ticket does: of its own network at another width, or of one that
is named after a colon (``dense_of_flops:vgg-11``). The first by multiplications, the second by measured time."""
PHASES = ("dense", "search", "sparse")
DISTANCE, MASKS = "distance", "masks"
"""Detectors of the moment to prune."""


def is_matched_dense(role: str) -> bool:
    """Whether it is a dense network of a ticket's cost."""
    return role.partition(":")[0] in MATCHED_DENSE


def share_of(part: float | None, whole: float | None) -> float | None:
    """The share that a part is of what the dense network takes; None where either is not told."""
    return None if part is None or not whole else part / whole


LARGEST_SIDE = 1 << 20


_StepValue = Annotated[tuple[Number, float | None], Meta(extra={"problem": "is not a step and a value"})]


class FirstLayer(Part, frozen=True):
    """What a mask keeps of the first layer: bits of a convolution's filters, or shares of the weights of each input."""

    name: str
    kind: Literal["filters", "inputs"]
    shape: tuple[int, ...]
    """Filters: (out, in, height, width). Inputs: (channels, height, width)."""
    data: bytes
    """Filters: bits packed in C order, the highest bit of a byte first, 1 = kept. Inputs: a byte each, 255 = all."""

    def __post_init__(self) -> None:
        sides = 4 if self.kind == "filters" else 3
        if len(self.shape) != sides or not all(1 <= size <= LARGEST_SIDE for size in self.shape):
            reject("shape", f"is not that of {self.kind}")
        elements = math.prod(self.shape)
        if len(self.data) != (-(-elements // 8) if self.kind == "filters" else elements):
            reject("data", f"is {len(self.data)} bytes long, which does not fit the shape")


class RelativeLatency(Part, frozen=True):
    """What a call takes of a call of the task's dense network, in turns on one machine: a median and its interval."""

    share: NotNegative
    low: NotNegative
    high: NotNegative

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}] of the dense time"


class Phase(Part, frozen=True):
    """A part of the training that a network needed. What is None was not measured."""

    steps: Count
    flops: NotNegative | None = None
    seconds: NotNegative | None = None
    memory: Count | None = None
    """Bytes of tensors at the height of one training step; None too where scoring was all there was."""

    @property
    def is_empty(self) -> bool:
        """Whether there was no such phase."""
        return not (self.steps or self.flops or self.seconds)


class Phases(Part, frozen=True):
    """All training that a network needed, shared or not."""

    dense: Phase
    """Without any mask."""
    search: Phase
    """Whatever else until its mask was known."""
    sparse: Phase
    """Its own training with its mask."""

    @property
    def by_name(self) -> dict[str, Phase]:
        return {name: getattr(self, name) for name in PHASES}

    @property
    def total(self) -> Phase:
        """Sums; of memory the highest of phases that train. None where a phase that took place was not measured."""
        parts = [part for part in self.by_name.values() if not part.is_empty]
        memories = [part.memory for part in parts if part.steps]
        known = [memory for memory in memories if memory is not None]
        return Phase(
            steps=sum(part.steps for part in parts),
            flops=_sum([part.flops for part in parts]),
            seconds=_sum([part.seconds for part in parts]),
            memory=max(known) if known and len(known) == len(memories) else None,
        )


def _sum(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known and len(known) == len(numbers) else None


class Cost(Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a command cost, all networks together. None, and left out, where it was not measured."""

    segments_asked: Count | None = None
    segments_distinct: Count | None = None
    """How many would be trained in an empty store."""
    segments_trained: Count | None = None
    steps_asked: Count | None = None
    steps_trained: Count | None = None
    dense_steps: Count | None = None
    """Of a dense network."""
    search_steps_per_replicate: Count | None = None
    control_steps: Count | None = None
    train_seconds: NotNegative | None = None
    """Of all networks, whenever they were trained."""
    train_seconds_now: NotNegative | None = None
    """Of those that were trained this time."""
    wall_seconds: NotNegative | None = None
    energy_kwh: NotNegative | None = None
    energy_by: str = ""
    """How that was found out."""

    @classmethod
    def from_values(cls, told: Mapping[str, Any]) -> Cost:
        """What can be used of what is told: costs are a courtesy, so a strange one is left out, not refused."""
        usable: dict[str, Any] = {}
        for name, value in told.items():
            with contextlib.suppress(ValidationError):
                convert({name: value}, cls)
                usable[name] = value
        return convert(usable, cls)


class Moment(Part, frozen=True):
    """The step at which a network was pruned, and the looks that led to it."""

    step: Count
    detected: bool
    """Whether the detector found it; if not, it is the latest step allowed, or one that was given."""
    detector: str
    threshold: Number
    """Below it, what `compared` has is small enough."""
    recorded_looks: tuple[_StepValue, ...] = field(default=(), name="looks")
    seconds: NotNegative = 0.0
    """Of the looks."""

    def __post_init__(self) -> None:
        steps = [step for step, _ in self.recorded_looks]
        for index, step in enumerate(steps):
            if step < 0 or step != int(step):
                reject(f"looks[{index}]", "is not a step and a value")
        if any(one >= other for one, other in pairwise(steps)):
            reject("looks", "are not in the order of steps")

    @property
    def looks(self) -> tuple[tuple[int, float], ...]:
        """(step, value), in the order of steps. Detector distance: ||w - w0|| / ||w0||. Detector masks: the share of
        elements in which the mask differs from that of the look before, NaN where there is none."""
        return tuple((int(step), nan_if_invalid(value)) for step, value in self.recorded_looks)

    @property
    def compared(self) -> tuple[tuple[int, float], ...]:
        """(step, what stands against the threshold). Of distances |d_t - d_(t-1)| / d_1, with d_0 = 0, so that the
        first is 1; of masks the values themselves. NaN where it is not defined."""
        looks = self.looks
        if self.detector != DISTANCE or not looks:
            return looks
        first = looks[0][1]
        changes = [first, *(abs(after - before) for (_, before), (_, after) in pairwise(looks))]
        steps = (step for step, _ in looks)
        return tuple((step, change / first if first else math.nan) for step, change in zip(steps, changes, strict=True))

    @property
    def value_at_pruning(self) -> float:
        """What was compared at the last look up to the moment; NaN without looks."""
        return next((value for step, value in reversed(self.compared) if step <= self.step), math.nan)


class Point(Part, frozen=True, kw_only=True, omit_defaults=True):
    """One trained network."""

    replicate: Count
    level: Count
    role: Role
    density: Density
    """Fraction kept of the prunable parameters."""
    validation: dict[str, Any]
    """The metrics on the validation split, that of the task among them."""
    test: dict[str, Any]
    kept: Count | None = None
    """Prunable parameters kept."""
    steps: Count | None = None
    """Training steps of its own segment."""
    budget: Count | None = None
    """Training steps since its weights were drawn."""
    seconds: NotNegative | None = None
    """Training seconds of its own segment."""
    search_steps: Count | None = None
    """Of the trainings that its mask comes from, if they are no networks of the record; None if they are."""
    search_seconds: Number | None = None
    init: Number | None = None
    """Of the gates that its mask comes from."""
    penalty: Number | None = None
    cycles: Count | None = None
    """Trainings that it had, of a control that is trained for as long as the whole search."""
    key: str = ""
    """Of the segment in the store."""
    multiplications: Count | None = None
    """That a call with one example takes, in linear and convolution layers, where removed weights take none; of runs
    with a budget, or with dense networks of equal cost."""
    timed: RelativeLatency | None = None
    """What a call takes, measured; of runs whose tickets meet a measured time, or with dense networks of equal time."""
    model: str = ""
    """The name of its network, where it is another than the task's."""
    first_layer: FirstLayer | None = None
    phases: Phases | None = field(default=None, name="cost")
    """What it cost; None if the record does not tell it by phase."""
    moment: Moment | None = None
    """When it was pruned; None where that is not told."""
    structure: Structure | None = None
    """That its mask was given after it was found."""
    ticket: str = ""
    """Its folder."""
    recorded_layers: tuple[LayerDensity, ...] | None = field(default=None, name="layers")

    @property
    def layers(self) -> tuple[LayerDensity, ...]:
        """Empty where the record has none."""
        return self.recorded_layers or ()

    def metric(self, name: str, split: str = "test") -> float:
        """A metric, which the record was checked to have."""
        return float((self.test if split == "test" else self.validation)[name])


def check_metric(values: dict[str, Any], name: str, place: str) -> None:
    """Refuse metrics without the one that networks are compared by.

    Raises:
        ValueError: see `reject`.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        reject(f"{place}.{name}", f"is {describe_json_type(value)}, not a number")
    if not abs(value) <= LARGEST:
        reject(f"{place}.{name}", f"is no finite number up to {LARGEST:g}")
