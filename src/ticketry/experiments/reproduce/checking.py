"""Check a campaign: train randomly drawn networks again in an empty store, and compare the results.

For each drawn network, the training that its start weights come from (of a dense network or a control) is repeated
too. Its mask is taken from the campaign's store.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import import_module
from math import sqrt
from pathlib import Path
from typing import Any, Literal

from ticketry.errors import StoreError, UsageError
from ticketry.evidence.significance import import_scipy_special
from ticketry.experiments.options import LabOptions, open_lab
from ticketry.experiments.reproduce.blocks import finished_blocks
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.lab.lab import Lab
from ticketry.lab.process import describe_machine
from ticketry.lab.runners.runner import OnEvent
from ticketry.lab.store.files import write_atomically
from ticketry.lab.store.store import Store, open_store
from ticketry.lab.training.kernels import name_local_kernels
from ticketry.lab.training.precision import DENSE as DENSE_KERNELS
from ticketry.lab.training.segment import Result, Segment, Start
from ticketry.lab.training.variant import is_known
from ticketry.registry import find_imported_modules, load_object
from ticketry.report.campaigns import markdown_table
from ticketry.report.tables.results import summarise
from ticketry.report.wording import Style, percent, role_name
from ticketry.search import METHODS
from ticketry.tasks.task import Task, json_key

Found = Literal["same bits", "inside", "outside"]
_MACHINE = ("ticketry", "torch", "platform", "processor", "processor_kind")
"""Entries of the environment, apart from the kernels, that must agree if equal bits are expected. The name of the
processor alone is not enough, since several processor generations share a name."""
VARIANTS = ("ticketry.lab.training.variants", "ticketry.search.gating.gating", "ticketry.search.gating.tick")
"""Modules that register the library's variants of training (masks, gates) on import."""
ROWS = ("run", "network", "replicate", "weights kept, %", "told", "now", "interval", "found")


@dataclass(frozen=True)
class RecordedNetwork:
    """A trained network of a campaign; `value` is its metric in the campaign's record."""

    run: str
    replicate: int
    """Number of the replicate, counted over all blocks."""
    level: int
    role: str
    density: float
    key: str
    value: float
    """Recorded metric on the test split."""
    others: tuple[float, ...]
    """Recorded metrics of all replicates with the same run, level and role."""


@dataclass(frozen=True)
class CheckedNetwork:
    """A network of a campaign, compared with the result of training it again."""

    row: RecordedNetwork
    value: float
    """Metric on the test split after training again."""
    interval: tuple[float, float] | None
    """95 % prediction interval for the metric of one more replicate (Student's t); None below two replicates."""
    same_bits: bool
    """Whether weights and metric equal the campaign's, bit for bit."""
    same_machine: bool
    """Whether versions, processor and kernels equal the campaign's, so that equal bits are expected."""

    @property
    def found(self) -> Found:
        """Result of the comparison: ``same bits``, or whether `value` is inside or outside the prediction interval.

        On the same kind of machine, every result that is not bit for bit the same is ``outside``.
        """
        if self.same_bits:
            return "same bits"
        if self.same_machine or self.interval is None:
            return "outside"
        return "inside" if self.interval[0] <= self.value <= self.interval[1] else "outside"

    def cells(self) -> list[str]:
        """Return a table row as text: network, recorded value, value of the new training, interval, and result."""
        row = self.row
        style = Style.for_summaries([summarise(row.others)], "")
        interval = "–" if self.interval is None else " to ".join(map(style.format_number, self.interval))
        named = [row.run, role_name(row.role), str(row.replicate + 1), percent(row.density)]
        return [*named, style.format_number(row.value), style.format_number(self.value), interval, self.found]

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {**asdict(self), "found": self.found}


def check(
    campaign: Campaign,
    options: LabOptions,
    count: int,
    *,
    draw: int = 0,
    say: Callable[[str], None] = lambda _: None,
    on_event: OnEvent | None = None,
) -> list[CheckedNetwork]:
    """Draw finished networks of a campaign at random, train each again in an empty store, and compare the results.

    Args:
        options: where to train, and the campaign's store, to which only a text file is added.
        count: number of networks to draw; all if fewer are finished.
    """
    if count < 1:
        raise UsageError(f"check must be 1 or more, got {count}")
    store, campaign = open_store(options.store), replace(campaign, together=options.lab_arguments)
    store.fetch(results=True)
    rows = sorted(finished_networks(campaign, store), key=lambda row: (row.run, row.replicate, row.level, row.role))
    if not rows:
        raise UsageError(f"nothing of the campaign {campaign.name} at the scale {campaign.scale} is in {options.store}")
    trained = [row.key.partition("@") for row in rows]  # a bundle may have left some out
    rows = [row for row, (key, _, step) in zip(rows, trained, strict=True) if store.load_valid_result(key, int(step))]
    if not rows:
        raise UsageError(
            f"{options.store} has records of the campaign {campaign.name} but no trainings: unpack a bundle with masks"
        )
    drawn = random.Random(draw).sample(rows, min(count, len(rows)))
    methods = {request.method.name for request in campaign.runs.values() if METHODS.is_external(request.method.name)}
    modules = set[str]().union(*(find_imported_modules(METHODS.find_target(name)) for name in methods))
    sources = StoredTrainings(store, modules)
    found = []
    for module in VARIANTS:
        import_module(module)
    with tempfile.TemporaryDirectory(prefix="ticketry-check-") as folder:
        for number, row in enumerate(drawn):
            # Each in a separate store, so that no row uses the trainings of another.
            own = replace(options, store=Path(folder) / str(number), precision=campaign.precisions[row.run])
            say(f"{number + 1} of {len(drawn)}: {row.role} of {row.run}, replicate {row.replicate + 1}")
            with open_lab(own, None, on_event) as lab:
                found.append(retrain_network(lab, campaign.runs[row.run].task, row, sources))
            lines = [f"# {campaign.title}: {len(found)} of {len(rows)} rows trained again (draw {draw})", ""]
            lines += markdown_table(ROWS, [one.cells() for one in found])
            text = store.paths.campaign(f"{campaign.name}-{campaign.scale}").with_suffix(".check.md")
            write_atomically(text, ("\n".join(lines) + "\n").encode())  # after each row, which may take an hour
    return found


def finished_networks(campaign: Campaign, store: Store) -> Iterator[RecordedNetwork]:
    """Yield a row for every network in the finished blocks of a campaign."""
    for name, request in campaign.runs.items():
        metric = request.task.metric.name
        found = [
            (block.first + point.replicate, point)
            for block, record in finished_blocks(campaign, name, store.paths)
            for point in record.points
            if point.key
        ]
        values: dict[tuple[int, str], list[float]] = {}
        for _, point in found:
            values.setdefault((point.level, point.role), []).append(point.metric(metric))
        for replicate, point in found:
            others = tuple(values[point.level, point.role])
            yield RecordedNetwork(
                name, replicate, point.level, point.role, point.density, point.key, point.metric(metric), others
            )


def retrain_network(lab: Lab, task: Task, row: RecordedNetwork, sources: StoredTrainings) -> CheckedNetwork:
    """Train a row's network again in the lab's empty store; first train the networks that its start weights need."""
    trajectory, _, step = row.key.partition("@")
    recorded = sources.read_record(trajectory, int(step))
    result = _retrain_with_inputs(lab, task, trajectory, int(step), sources, measure=True)
    value = result.metrics["test"][task.metric.name]
    same_kernels = recorded["segment"]["arithmetic"].get("kernels", DENSE_KERNELS) == result.segment.arithmetic.kernels
    here = describe_machine()
    return CheckedNetwork(
        row=row,
        value=value,
        interval=prediction_interval(row.others),
        same_bits=result.model == recorded["model"] and value == row.value,
        same_machine=same_kernels and all(recorded["environment"].get(name) == here[name] for name in _MACHINE),
    )


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval for one more value of a normal distribution; None for fewer than two `values`."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    spread = sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(import_scipy_special().stdtrit(n - 1, 0.975)) * spread * sqrt(1 + 1 / n)
    return mean - half, mean + half


class StoredTrainings:
    """Reads stored trainings and the files that they wrote from the store of a campaign."""

    def __init__(self, store: Store, modules: Container[str] = ()) -> None:
        """Create a reader of `store`, which may import user code only from `modules`."""
        self.store, self._modules = store, modules

    def read_record(self, trajectory: str, step: int) -> dict[str, Any]:
        """Return the stored result of a training up to `step`; raise `StoreError` if the store lacks this result."""
        found = self.store.load_valid_result(trajectory, step)
        if found is None:
            raise StoreError(f"the training {trajectory[:12]}… is not in {self.store.paths.root}: unpack the bundle")
        return found

    def read_segment(self, trajectory: str, step: int) -> dict[str, Any]:
        """Return the description of a training up to `step`; first import the user code that the training needs."""
        described = dict(self.read_record(trajectory, step)["segment"])
        for each in described["variants"]:
            place = str(each.get("place", ""))
            if not is_known(each) and place.partition(":")[0] in self._modules:
                load_object(place)
        return described

    def find_producer(self, digest: str, task: Task) -> tuple[str, int] | None:
        """Return key and last step of the simplest stored training that wrote the file `digest`; None without one."""
        key = json_key(task)
        made = [one for one in self._producers.get(digest, ()) if one.task == key]
        best = min(made, key=lambda one: (one.variants, one.step, one.trajectory), default=None)
        return None if best is None else (best.trajectory, best.step)

    @cached_property
    def _producers(self) -> dict[str, list[_Producer]]:
        found: dict[str, list[_Producer]] = {}
        for path in sorted(self.store.paths.result_files()):
            trajectory, step = path.parent.name, int(path.stem)
            record = self.read_record(trajectory, step)
            segment = record["segment"]
            maker = _Producer(trajectory, step, len(segment["variants"]), segment["task"])
            for digest in _output_digests(record).values():
                found.setdefault(digest, []).append(maker)
        return found


@dataclass(frozen=True)
class _Producer:
    """A training up to a step, which produced stored weights or a stored optimiser state."""

    trajectory: str
    step: int
    variants: int
    """Number of variants of training that it used."""
    task: dict[str, Any]


def _output_digests(record: dict[str, Any]) -> dict[str, str]:
    """Return the digests of the files that a training wrote, by kind of file."""
    variants = {f"variant {name}": digest for name, digest in record["variants"].items()}
    found = {"model": record["model"], "training": record["training"], **variants}
    return {name: digest for name, digest in found.items() if digest}


def _retrain_with_inputs(
    lab: Lab, task: Task, trajectory: str, step: int, sources: StoredTrainings, *, measure: bool
) -> Result:
    described = sources.read_segment(trajectory, step)
    blobs: Iterable[str] = described.pop("blobs", ())
    segment = Segment.from_description({**described, "last": step}, task)
    if segment.arithmetic.kernels != DENSE_KERNELS:
        arithmetic = segment.arithmetic
        segment = replace(segment, arithmetic=replace(arithmetic, kernels=name_local_kernels(arithmetic.precision)))
    again: dict[str, str] = {}
    for digest in dict.fromkeys([*blobs, *segment.start_digests()]):
        if made_by := sources.find_producer(digest, task):
            made = _retrain_with_inputs(lab, task, *made_by, sources, measure=False)
            what = next(name for name, one in _output_digests(sources.read_record(*made_by)).items() if one == digest)
            again[digest] = _output_digests(made.record)[what]
        elif sources.store.has(digest):
            lab.store.put_bytes(sources.store.get_bytes(digest))  # a mask, or weights that no training produced
        else:
            raise StoreError(f"the weights {digest[:12]}… are neither in the store nor of a training that it tells of")
    start = segment.start
    if start.state is not None:
        optimizer = again.get(start.optimizer, start.optimizer) if start.optimizer else None
        segment = replace(segment, start=Start(state=again.get(start.state, start.state), optimizer=optimizer))
    return lab.train(segment, label=f"step {step}", measure=measure)
