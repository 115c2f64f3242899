"""Collect the results of a search (networks, rounds, costs, tickets) for its record, and report its progress."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgspec import convert
from msgspec.json import encode
from msgspec.structs import replace

from ticketry.budgets.cost_model import CostModel
from ticketry.core.mask import Mask
from ticketry.core.mask_pictures import draw_first_layer, draw_structure_pictures
from ticketry.core.scope import named_parameters
from ticketry.core.structure.pattern import Structuring
from ticketry.core.ticket.ticket import Ticket
from ticketry.experiments.request import SearchRequest
from ticketry.files import delete_tree_if_possible, write_atomically
from ticketry.lab.costs.ledger import Ledger, Phases, training_phases_of
from ticketry.lab.costs.step_cost import Costs
from ticketry.lab.lab import Lab
from ticketry.lab.loggers import Logged
from ticketry.lab.masks import (
    check_new_costs,
    compute_layer_fits,
    is_budget_timed,
    load_weight_prices,
    measure_dense_latency,
    measure_masked_latency,
    segment_macs,
)
from ticketry.lab.process import describe_machine
from ticketry.lab.runners.runner import Activity
from ticketry.lab.search_result import DYNAMIC, Found, trained_steps
from ticketry.lab.store.paths import ticket_folder
from ticketry.lab.training.segment import Result
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import LATENCY_MATCHED, Cost, FirstLayer, Point, RelativeLatency, is_matched_dense
from ticketry.records.network import Phases as PhaseCosts
from ticketry.records.run import (
    PROGRESS_FILE,
    PROGRESS_SECONDS,
    ActiveSegment,
    Progress,
    ProgressPoint,
    Round,
    RunRecord,
)
from ticketry.records.schema import as_json
from ticketry.records.ticket import LayerPicture, Structure
from ticketry.search.common.settings import budget_of
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    from typing_extensions import Self


OnPoint = Callable[[Point], None]


class PointCollector:
    """Collects the rows of a run's record, one row for each trained network; several threads may add rows."""

    def __init__(self, lab: Lab, run: SearchRequest, folder: Path, listeners: Sequence[OnPoint] = ()) -> None:
        self._lab, self._run, self._folder, self._listeners = lab, run, folder, listeners
        self.log = SearchLog(lab, run)
        self._lock = threading.Lock()
        self._dense: dict[int, Result] = {}
        self._found: dict[int, list[Found]] = {}
        self.phases: list[Phases] = []
        """Training phases of the network of each row in `rows`."""
        self._shape: tuple[int, ...] | None = getattr(run.task, "shape", None)
        self.rows: list[Point] = []
        self.segments: dict[str, Result] = {}
        self.rounds: dict[tuple[int, str], Round] = {}
        """Rounds of training with gates, by replicate and training key, including rounds that gave no ticket."""
        self.left_out: dict[tuple[int, str], str] = {}
        """Reason for each omitted control, by level and name."""
        self.searched: dict[str, Result] = {}
        """Trainings that produced masks, by replicate and training key."""
        self.gradients = 0
        """Number of batches used only to compute gradients, over all tickets, see `Found.gradients`."""
        self.rewind_step = 0
        self.retrain = ""
        self._counted = bool(budget_of(run.settings)) or any(map(is_matched_dense, run.controls))
        """Whether to record MACs: if the search has a budget, or a control is matched by MACs."""
        budget = budget_of(run.settings)
        terms = budget.cache_key if budget else ""
        beside = any(one.startswith(LATENCY_MATCHED) for one in run.controls)
        self._timed = terms if is_budget_timed(terms) or (terms and beside) else ""
        """Cost terms for the latencies to record; empty if no latencies are recorded."""
        if self._timed:
            assert budget is not None
            check_new_costs(lab, budget.read_costs())
        self.parameters = sum(p.numel() for p in named_parameters(lab.model(run.task)).values())
        self.total = 0
        """Number of prunable weights; 0 until the first ticket."""

    def add_found(self, replicate: int, found: Found) -> dict[str, Any]:
        """Add the row of the dense network or of a ticket to the record; save a ticket to its folder.

        Returns:
            Fields of a ticket's row (density, number of weights, budget), empty for the dense network.
        """
        self.rewind_step = found.rewound.segment.last
        self.retrain = found.retrain
        phases = self.training_phases_of(replicate, found)
        self._found.setdefault(replicate, []).append(found)
        if found.mask is None:
            self._dense[replicate] = found.result
            self.add_row(replicate, 0, "dense", [found.result], phases, budget=found.result.segment.steps)
            return {}
        mask = self._lab.store.get_mask(found.mask)
        more: dict[str, Any] = {"recorded_layers": mask.table()}
        self.total = mask.total
        if found.searched:
            self.log.log_mask_trainings(replicate, found)
            more["search_steps"] = found.search_steps
            more["search_seconds"] = round(sum(each.train_seconds for each in found.searched), 3)
            for variant in found.searched[-1].segment.variants:
                more |= variant.ticket_fields()
            with self._lock:
                self._add_gate_trainings(replicate, found)
                self.searched.update({f"{replicate} {each.segment.key}": each for each in found.searched})
                self.gradients += found.gradients
        else:
            with self._lock:
                self.searched[f"{replicate} {found.dense.segment.key}"] = found.dense
        if found.moment is not None:
            more["moment"] = found.moment
        structure = None
        if found.structured:
            before = self._lab.store.get_mask(found.structured.of)
            fits = compute_layer_fits(self._lab, self._run.task, found.structured, found.mask)
            structure = build_structure_record(found.structured.by, before.density, fits)
            pictures = draw_structure_pictures(before, mask) if replicate == 0 else []
            more["structure"] = replace(structure, pictures=convert(pictures, tuple[LayerPicture, ...]))
        more["ticket"] = str(self._save_ticket(replicate, found, mask, phases, structure) or "")
        # After pruning whole channels, every input has the same density, so there is nothing to show.
        single = not found.result.segment.whole_channels
        if replicate == 0 and single and (picture := draw_first_layer(mask, self._shape)):
            more["first_layer"] = convert(picture, FirstLayer)
        counts = {"density": mask.density, "kept": mask.kept, "budget": trained_steps(found)}
        self.add_row(replicate, found.level, "ticket", [found.result], phases, **more, **counts)
        return counts

    def training_phases_of(self, replicate: int, found: Found) -> Phases:
        """Return all trainings that produced a found network, by phase, including the search for its mask."""
        before = [each for each in self._found.get(replicate, []) if each.level < found.level]
        return training_phases_of(found, before)

    def add_row(
        self, replicate: int, level: int, role: str, trained: Sequence[Result], phases: Phases, **more: Any
    ) -> None:
        """Add the row of a trained network.

        Args:
            level: level of the ticket that the network belongs to; 0 for the dense network.
            trained: results of the network's own trainings, one after the other.
            phases: all trainings that produced the network, by phase.
            more: further fields of the row, such as the density of a sparse network.
        """
        result = trained[-1]
        values: dict[str, Any] = {
            "density": 1.0,
            "validation": result.metrics["validation"],
            "test": result.metrics["test"],
            "steps": result.segment.steps,
            "seconds": result.train_seconds,
            "key": result.segment.key,
            **more,
        }
        if self._counted:
            values["multiplications"] = segment_macs(self._lab, result.segment)
        if self._timed:
            values["timed"] = self._relative_latency(result)
        row = Point(replicate=replicate, level=level, role=role, **values)
        with self._lock:
            self.rows.append(row)
            self.phases.append(phases)
            self.segments.update({each.segment.key: each for each in trained})
        self.log.log_network(row, result)
        for listener in self._listeners:
            listener(row)

    def _relative_latency(self, result: Result) -> RelativeLatency:
        """Return a network's latency relative to the dense network; measure it if the store lacks it."""
        lab, task, segment = self._lab, self._run.task, result.segment
        costs = load_weight_prices(lab, task, (), self._timed)
        assert isinstance(costs, CostModel)
        if segment.mask is not None:
            return measure_masked_latency(lab, segment.task, lab.store.get_mask(segment.mask), costs)
        if segment.task.key() == task.key():
            return RelativeLatency(1.0, 1.0, 1.0)
        return measure_dense_latency(lab, segment.task, task, costs)

    def _add_gate_trainings(self, replicate: int, found: Found) -> None:
        """Add to the record each training with gates (soft mask values) that led to a ticket's mask.

        The tickets of a replicate must be added one after the other.
        """
        for result in found.searched:
            key = (replicate, result.segment.key)
            made = [] if key in self.rounds else [one.round_fields(result.record) for one in result.segment.variants]
            if any(made):
                common = {"replicate": replicate, "level": found.level, "used": False, "key": result.segment.key}
                common |= {"steps": result.segment.steps, "seconds": result.train_seconds}
                self.rounds[key] = convert({**common, **next(filter(None, made))}, Round)
            if key in self.rounds and result is found.searched[-1]:
                self.rounds[key] = replace(self.rounds[key], used=True, cut_to=found.cut_to)

    def rows_with_costs(self) -> list[Point]:
        """Return the rows of the record, each with its costs by training phase, see `Costs.build_cost_entry`."""
        costs = Costs(self._lab)
        by_phase = [convert(costs.build_cost_entry(own), PhaseCosts) for own in self.phases]
        return [replace(row, phases=one) for row, one in zip(self.rows, by_phase, strict=True)]

    def cost(self, ledger: Ledger, seconds: float) -> Cost:
        """Return the cost of the whole run; `ledger` and `seconds` say which part of the cost this call has spent."""
        trained, searched = list(self.segments.values()), list(self.searched.values())
        replicates = self._run.replicates
        steps = {role: sum(row.steps or 0 for row in self.rows if row.role == role) for role in ("dense", "ticket")}
        controls = sum(row.steps or 0 for row in self.rows) - steps["dense"] - steps["ticket"]
        # The dense network does not count where masks do not come from it.
        masks = sum(each.segment.steps for each in searched) + self.gradients
        # A trajectory with several results counts once, up to its last step.
        by_step = sorted([*trained, *searched], key=lambda each: each.segment.last)
        whole = {each.segment.trajectory: each for each in by_step}.values()
        values = {
            **ledger.counts(),
            "dense_steps": steps["dense"] // replicates,
            "search_steps_per_replicate": (masks + steps["ticket"]) // replicates,
            "control_steps": controls,
            "train_seconds": round(sum(each.train_seconds for each in whole), 3),
            "train_seconds_now": round(ledger.train_seconds, 3),
            "wall_seconds": round(seconds, 3),
        }
        return convert(values, Cost)

    def _save_ticket(
        self, replicate: int, found: Found, mask: Mask, phases: Phases, structure: Structure | None
    ) -> Path | None:
        lab, run, segment = self._lab, self._run, found.result.segment
        assert segment.start.state is not None
        task, dense = run.task_of(replicate), self._dense[replicate]
        metric = task.metric
        info = {
            "method": run.method.name,
            "settings": run.stored_settings,
            "recipe": asdict(segment.recipe),
            "task": {"name": task.name, "key": dict(task.key()), "spec": _describe_task_spec(task)},
            "metric": asdict(metric),
            "value": found.result.metrics["test"][metric.name],
            "dense_value": dense.metrics["test"][metric.name],
            "metrics": found.result.metrics,
            **({"aim": found.aim} if found.aim else {}),
            "level": found.level,
            "replicate": replicate,
            "search": _describe_search(run, replicate, segment.recipe),
            "parameters": self.parameters,
            "seeds": asdict(run.seeds.replicate(replicate)),
            "rewind_step": found.rewound.segment.last,
            "retrain": found.retrain,
            "search_steps": phases.steps,
            "segment": {**segment.describe(), "mask": segment.mask, "shrunk": segment.whole_channels},
            "trained_state": found.result.model,
            "environment": describe_machine(),
            **({"structure": as_json(structure)} if structure else {}),
        }
        path = ticket_folder(self._folder, replicate, found.level)
        if not Ticket.is_saved(path, info):
            # After dynamic pruning, the ticket starts from the rewind step, not from the last change of the mask.
            begun = found.rewound.model if found.retrain == DYNAMIC else segment.start.state
            if lab.store.is_left_out(found.result.model):  # by a bundle without weights
                return None
            start = lab.store.get_tensors(begun)
            Ticket(mask, start, info, trained=lab.state(found.result)).save(path)
        return path


def _describe_search(run: SearchRequest, replicate: int, recipe: Recipe) -> dict[str, Any]:
    """Return a description of the search that is saved in its tickets, see `records.ticket.SearchInfo`."""
    values: dict[str, Any] = {"replicates": run.replicates}
    if run.source_digests:
        values["sources"] = run.source_digests
    if recipe != run.recipe:
        values["recipe"] = asdict(run.recipe)
    if run.task_of(replicate) is not run.task:
        values["task"] = _describe_task_spec(run.task)
    return values


def _describe_task_spec(task: Task) -> dict[str, Any] | None:
    """Return the name and options from which the task can be built; None for a task given as an object."""
    return {**asdict(task.spec), "options": dict(task.spec.options)} if task.spec else None


def build_structure_record(by: Structuring, before: float, layers: Sequence[Mapping[str, Any]]) -> Structure:
    """Return the record of how a mask was structured: options, density `before`, and fit of each layer."""
    return convert({**by.describe(), "name": str(by), "density_before": before, "layers": layers}, Structure)


def update_record(earlier: RunRecord, record: RunRecord) -> RunRecord | None:
    """Return `earlier` with missing costs, and all paths, taken from `record`; None if the networks differ."""
    if earlier.name != record.name:
        return None
    if list(map(_without_cost_and_path, earlier.points)) != list(map(_without_cost_and_path, record.points)):
        return None
    pairs = zip(earlier.points, record.points, strict=True)
    points = tuple(replace(old, phases=old.phases or new.phases, ticket=new.ticket) for old, new in pairs)
    return replace(earlier, points=points, store=record.store)


def _without_cost_and_path(row: Point) -> Point:
    """Return the row without cost and ticket path, so that equal networks have equal rows."""
    return replace(row, phases=None, ticket="")


_FIELDS = ("replicate", "level", "role", "density", "kept", "budget", "search_steps", "cycles")
"""Fields of a network that dashboards can group, filter and sort by."""


class SearchLog:
    """Logs a search to dashboards: a run for each network, for each training that made a mask, and for the search."""

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._dashboards, self._name = lab.dashboards, run.name
        described = run.describe()
        self._config = {"method": run.method.name, "settings": described["settings"], "seeds": described["seeds"]}
        self._of_all = {**self._config, **{name: described[name] for name in ("task", "recipe", "controls")}}
        self._of_all["replicates"] = run.replicates
        self._searched: set[tuple[int, str]] = set()

    def log_run(self) -> AbstractContextManager[Logged]:
        """Return a context manager that opens the logged run of the whole search."""
        return self._dashboards.reporting(self._name, "search", self._of_all, by_label=False)

    def log_network(self, point: Point, result: Result) -> None:
        """Log a trained network; for a ticket, also log its folder as an artifact."""
        fields = {name: value for name in _FIELDS if (value := getattr(point, name)) is not None}
        self._dashboards.report_training(
            result,
            name=f"replicate {point.replicate} level {point.level:02d} {point.role}",
            kind=point.role,
            group=self._name,
            config={**self._config, **fields},
            values={"density": point.density, "level": point.level},
            artifacts=[(Path(point.ticket), "ticket")] if point.ticket else [],
        )

    def log_mask_trainings(self, replicate: int, found: Found) -> None:
        """Log the trainings that produced a ticket's mask, except the training of the dense network."""
        for number, result in enumerate(found.searched, start=1):
            key = (replicate, result.segment.key)
            if key in self._searched or result.segment.key == found.dense.segment.key:
                continue
            self._searched.add(key)
            self._dashboards.report_training(
                result,
                name=f"replicate {replicate} level {found.level:02d} mask {number:02d}",
                kind="mask",
                group=self._name,
                config={**self._config, "replicate": replicate, "level": found.level, "role": "mask"},
            )

    def log_record(self, run: Logged, record: RunRecord, folder: Path) -> None:
        """Log the record, the run file, and the mean metric over replicates for each role, with the level as step."""
        metric = record.task.metric.name
        for level in sorted({point.level for point in record.points}):
            points = [point for point in record.points if point.level == level]
            values = {"density": fmean(point.density for point in points)}
            for role in dict.fromkeys(point.role for point in points):
                values[f"test/{metric}/{role}"] = fmean(one.metric(metric) for one in points if one.role == role)
            self._dashboards.report_metrics(run, values, level)
        self._dashboards.report_artifact(run, folder / "run.json", "verdicts")
        self._dashboards.report_artifact(run, folder / "run.toml", "config")


def log_verification(lab: Lab, run: Logged, record: VerifyRecord, file: Path) -> None:
    """Log a verification: its record, and the metric of each of its networks per seed, with the seed as step."""
    metric = record.task.metric.name
    for seed in range(record.n):
        values = {f"test/{metric}/{one.role}": one.values[seed] for one in record.networks}
        lab.dashboards.report_metrics(run, values, seed)
    numbers: dict[str, Any] = {"p": record.p, "margin": record.margin, "wins": record.verdict == "wins"}
    lab.dashboards.report_metrics(run, numbers, record.n)
    lab.dashboards.report_artifact(run, file, "verdict")


class ProgressFile:
    """Writes a run's progress to a file of the store during a `with` block, and deletes the file at the end."""

    def __init__(self, lab: Lab, run: SearchRequest) -> None:
        self._lab, self._run = lab, run
        self._path = lab.store.paths.live_file(run.name, PROGRESS_FILE)
        self._guard = threading.Lock()
        self._points: list[ProgressPoint] = []
        self._activity = Activity()
        self._began = time.time()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, name="telling", daemon=True)
        self._listening = contextlib.ExitStack()

    def add(self, point: Point) -> None:
        """Add a trained network of the run."""
        value = point.metric(self._run.task.metric.name)
        with self._guard:
            self._points.append(ProgressPoint(point.replicate, point.level, point.role, point.density, value))

    def snapshot(self) -> Progress:
        """Return the progress that the run has made so far, as it is written to the file."""
        metric = self._run.task.metric
        with self._guard:
            points = tuple(self._points)
        return Progress(
            run=self._run.name,
            title=self._run.method.title,
            task=self._run.task.name,
            metric=metric.words,
            unit=metric.unit,
            higher_is_better=metric.higher_is_better,
            expected=self._run.expected_network_count,
            trained=self._activity.trained,
            began=self._began,
            at=time.time(),
            since=self._activity.since,
            at_once=self._activity.at_once,
            points=points,
            active=tuple(
                ActiveSegment(one.label, one.step - one.first, one.last - one.first, one.kind == "waiting")
                for one in self._activity.active()
            ),
        )

    def _write(self) -> None:
        while not self._ended.wait(PROGRESS_SECONDS):
            with contextlib.suppress(OSError):
                write_atomically(self._path, encode(self.snapshot()))

    def __enter__(self) -> Self:
        self._listening.enter_context(self._lab.listening(self._activity.on_event))
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listening.close()
        self._ended.set()
        self._thread.join()
        delete_tree_if_possible(self._path.parent)
