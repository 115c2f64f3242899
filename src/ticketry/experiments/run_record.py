"""What a search has found so far: the rows of its record, its rounds, and tickets, each saved as a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msgspec import convert
from msgspec.structs import replace

from ticketry.core.costs.cost_model import CostModel
from ticketry.core.mask import Mask
from ticketry.core.mask_pictures import first_layer, structure_pictures
from ticketry.core.scope import named_parameters
from ticketry.core.structuring import Structuring
from ticketry.core.ticket.ticket import Ticket
from ticketry.experiments.progress import LoggedSearch
from ticketry.experiments.request import SearchRequest
from ticketry.lab.budget_masks import by_timing, multiplications_in, terms_in
from ticketry.lab.costs.ledger import Ledger
from ticketry.lab.costs.phases import Phases, phases_of
from ticketry.lab.costs.step_cost import Costs
from ticketry.lab.environment import environment
from ticketry.lab.lab import Lab
from ticketry.lab.measured_time import check_new, time_of, time_of_dense
from ticketry.lab.search_result import DYNAMIC, Found, budget
from ticketry.lab.store.paths import ticket_folder
from ticketry.lab.structured_masks import fits
from ticketry.lab.training.segment import Result
from ticketry.records.network import LATENCY_MATCHED, Cost, FirstLayer, Point, RelativeLatency, is_matched_dense
from ticketry.records.network import Phases as PhasesTold
from ticketry.records.run import Round, RunRecord
from ticketry.records.schema import as_json
from ticketry.records.structure import LayerPicture, Structure
from ticketry.search.common.aims import aim_of, costs_in, terms_of
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

OnPoint = Callable[[Point], None]


class Points:
    """The rows of a record, collected from several threads."""

    def __init__(self, lab: Lab, run: SearchRequest, folder: Path, on_point: OnPoint | None) -> None:
        self._lab, self._run, self._folder, self._on_point = lab, run, folder, on_point
        self.logged = LoggedSearch(lab, run)
        self._lock = threading.Lock()
        self._dense: dict[int, Result] = {}
        self._found: dict[int, list[Found]] = {}
        self.phases: list[Phases] = []
        """Of each of `rows`."""
        self._shape: tuple[int, ...] | None = getattr(run.task, "shape", None)
        self.rows: list[Point] = []
        self.segments: dict[str, Result] = {}
        self.rounds = Rounds()
        self.left_out: dict[tuple[int, str], str] = {}
        """By level and name, why there is no such control."""
        self.searched: dict[str, Result] = {}
        """Trainings that masks come from, where they are told with the ticket, by replicate and key."""
        self.gradients = 0
        """Batches that trained nothing, of all tickets, see `Found.gradients`."""
        self.rewind_step = 0
        self.retrain = ""
        self._counted = bool(aim_of(run.settings)) or any(map(is_matched_dense, run.controls))
        """Whether multiplications are told: of other runs records stay as they are."""
        terms = terms_of(run.settings)
        beside = any(one.startswith(LATENCY_MATCHED) for one in run.controls)
        self._timed = terms if by_timing(terms) or (terms and beside) else ""
        """The terms by which times are told; empty where none are."""
        if self._timed:
            check_new(lab, costs_in(run.settings.profile))
        self.parameters = sum(p.numel() for p in named_parameters(lab.model(run.task)).values())
        self.total = 0
        """Elements in scope; 0 until the first ticket."""

    def add_found(self, replicate: int, found: Found) -> dict[str, Any]:
        """The dense network, or a ticket, which is saved as a folder; returns its density and number of weights."""
        self.rewind_step = found.rewound.segment.last
        self.retrain = found.retrain
        phases = self.phases_of(replicate, found)
        self._found.setdefault(replicate, []).append(found)
        if found.mask is None:
            self._dense[replicate] = found.result
            self.add(replicate, 0, "dense", found.result, phases, budget=found.result.segment.steps)
            return {}
        mask = self._lab.store.get_mask(found.mask)
        more: dict[str, Any] = {"recorded_layers": mask.table()}
        self.total = mask.total
        if found.searched:
            self.logged.searched(replicate, found)
            more["search_steps"] = found.search_steps
            more["search_seconds"] = round(sum(each.train_seconds for each in found.searched), 3)
            for variant in found.searched[-1].segment.variants:
                more |= variant.told_of_ticket()
            with self._lock:
                self.rounds.add(replicate, found)
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
            structure = self._structure(found, before)
            pictures = structure_pictures(before, mask) if replicate == 0 else []
            more["structure"] = replace(structure, pictures=convert(pictures, tuple[LayerPicture, ...]))
        more["ticket"] = str(self._save(replicate, found, mask, phases, structure) or "")
        # Of whole channels every input has the same share, or the inputs' own channels would be missing.
        single = not found.result.segment.whole_channels
        if replicate == 0 and single and (picture := first_layer(mask, self._shape)):
            more["first_layer"] = convert(picture, FirstLayer)
        counts = {"density": mask.density, "kept": mask.kept, "budget": budget(found)}
        self.add(replicate, found.level, "ticket", found.result, phases, **more, **counts)
        return counts

    def phases_of(self, replicate: int, found: Found) -> Phases:
        """Of a network that a replicate found, now or before."""
        before = [each for each in self._found.get(replicate, []) if each.level < found.level]
        return phases_of(found, before)

    def add(self, replicate: int, level: int, role: str, result: Result, phases: Phases, **more: Any) -> None:
        """A trained network; `more` has its density and the number of weights kept, if it is sparse."""
        told: dict[str, Any] = {
            "density": 1.0,
            "validation": result.metrics["validation"],
            "test": result.metrics["test"],
            "steps": result.segment.steps,
            "seconds": result.train_seconds,
            "key": result.segment.key,
            **more,
        }
        if self._counted:
            told["multiplications"] = multiplications_in(self._lab, result.segment)
        if self._timed:
            told["timed"] = self._time_of(result)
        row = Point(replicate=replicate, level=level, role=role, **told)
        with self._lock:
            self.rows.append(row)
            self.phases.append(phases)
            self.segments[result.segment.key] = result
        self.logged.network(row, result)
        if self._on_point:
            self._on_point(row)

    def _time_of(self, result: Result) -> RelativeLatency:
        """Measured now, or before in this store."""
        lab, task, segment = self._lab, self._run.task, result.segment
        costs = terms_in(lab, task, (), self._timed)
        assert isinstance(costs, CostModel)
        if segment.mask is not None:
            return time_of(lab, segment.task, lab.store.get_mask(segment.mask), costs)
        if segment.task.key() == task.key():
            return RelativeLatency(1.0, 1.0, 1.0)
        return time_of_dense(lab, segment.task, task, costs)

    def count(self, results: Iterable[Result]) -> None:
        """Trainings that are no row of their own, for what the run costs."""
        with self._lock:
            self.segments.update({each.segment.key: each for each in results})

    def _structure(self, found: Found, before: Mask) -> Structure:
        """How a mask was given its structure, and how well it fits the one `before`."""
        how = found.structured
        assert how is not None
        assert found.mask is not None
        return structure_of(how.by, before.density, fits(self._lab, self._run.task, how, found.mask))

    def _save(
        self, replicate: int, found: Found, mask: Mask, phases: Phases, structure: Structure | None
    ) -> Path | None:
        lab, run, segment = self._lab, self._run, found.result.segment
        assert segment.start.state is not None
        task, dense = run.task_of(replicate), self._dense[replicate]
        metric = task.metric
        info = {
            "method": run.method.name,
            "settings": asdict(run.settings),
            "recipe": asdict(segment.recipe),
            "task": {"name": task.name, "key": dict(task.key()), "spec": _spec(task)},
            "metric": asdict(metric),
            "value": found.result.metrics["test"][metric.name],
            "dense_value": dense.metrics["test"][metric.name],
            "metrics": found.result.metrics,
            **({"aim": found.aim} if found.aim else {}),
            "level": found.level,
            "replicate": replicate,
            "search": _searched(run, replicate, segment.recipe),
            "parameters": self.parameters,
            "seeds": asdict(run.seeds.replicate(replicate)),
            "rewind_step": found.rewound.segment.last,
            "retrain": found.retrain,
            "search_steps": phases.steps,
            "segment": {**segment.describe(), "mask": segment.mask, "shrunk": segment.whole_channels},
            "trained_state": found.result.model,
            "environment": environment(),
            **({"structure": as_json(structure)} if structure else {}),
        }
        path = ticket_folder(self._folder, replicate, found.level)
        if not Ticket.is_saved(path, info):
            # Of a mask that moved the start is that of the whole training, not of what came after the last move.
            begun = found.rewound.model if found.retrain == DYNAMIC else segment.start.state
            if lab.store.left_out(found.result.model):  # of a bundle without weights: the record tells what it was
                return None
            start = lab.store.get_tensors(begun)
            Ticket(mask, start, info, trained=lab.state(found.result)).save(path)
        return path


def _searched(run: SearchRequest, replicate: int, recipe: Recipe) -> dict[str, Any]:
    """The request, where a ticket's own entries do not tell it, see `records.ticket.Searched`."""
    told: dict[str, Any] = {"replicates": run.replicates}
    if run.procedure_sources:
        told["sources"] = run.procedure_sources
    if recipe != run.recipe:
        told["recipe"] = asdict(run.recipe)
    if run.task_of(replicate) is not run.task:
        told["task"] = _spec(run.task)
    return told


def _spec(task: Task) -> dict[str, Any] | None:
    """The request that makes the task again, where there is one."""
    return {**asdict(task.spec), "options": dict(task.spec.options)} if task.spec else None


def structure_of(by: Structuring, before: float, layers: Sequence[Mapping[str, Any]]) -> Structure:
    """What a structure is told as: its kind and options, the density `before`, and how well it fits each layer."""
    told = {**by.describe(), "name": str(by), "density_before": before, "layers": layers}
    return convert(told, Structure)


class Rounds:
    """The rows of a record's ``rounds``: one for each round of each replicate, those tried in vain among them."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, str], Round] = {}

    def add(self, replicate: int, found: Found) -> None:
        """Take note of what a ticket's mask comes from; calls of one replicate come one after another."""
        for result in found.searched:
            key = (replicate, result.segment.key)
            if key not in self._rows and (row := _round(replicate, found.level, result)):
                self._rows[key] = row
            if key in self._rows and result is found.searched[-1]:
                self._rows[key] = replace(self._rows[key], used=True, cut_to=found.cut_to)

    def rows(self) -> tuple[Round, ...]:
        """In the order of replicates and levels."""
        return tuple(sorted(self._rows.values(), key=lambda row: (row.replicate, row.level)))


def _round(replicate: int, level: int, result: Result) -> Round | None:
    """A training as a round, if some variant of training tells it as one."""
    told = [row for variant in result.segment.variants if (row := variant.told_of_round(result.record))]
    common = {"replicate": replicate, "level": level, "used": False, "key": result.segment.key}
    common |= {"steps": result.segment.steps, "seconds": result.train_seconds}
    return convert({**common, **told[0]}, Round) if told else None


def with_costs(lab: Lab, rows: Sequence[Point], phases: Sequence[Phases]) -> list[Point]:
    """The rows of a record, each with its cost by phase: see `Costs.row`."""
    costs = Costs(lab)
    told = [convert(costs.row(own), PhasesTold) for own in phases]
    return [replace(row, phases=one) for row, one in zip(rows, told, strict=True)]


def run_cost(
    rows: Sequence[Point],
    ledger: Ledger,
    *,
    replicates: int,
    trained: Iterable[Result],
    searched: Iterable[Result],
    gradients: int,
    seconds: float,
) -> Cost:
    """What the run costs, whoever trained its segments, and what was trained for it this time.

    Args:
        ledger: of this time.
        trained: the networks of the rows, and others that were trained for them.
        searched: trainings that masks come from, where they are told with the ticket.
        gradients: batches that trained nothing.
        seconds: on the clock.
    """
    trained, searched = list(trained), list(searched)
    steps = {role: sum(row.steps or 0 for row in rows if row.role == role) for role in ("dense", "ticket")}
    controls = sum(row.steps or 0 for row in rows) - steps["dense"] - steps["ticket"]
    # A method whose masks do not come from the dense network does not need it to search.
    masks = sum(each.segment.steps for each in searched) + gradients
    # Of a trajectory that was also looked at on the way, the whole.
    by_step = sorted([*trained, *searched], key=lambda each: each.segment.last)
    whole = {each.segment.trajectory: each for each in by_step}.values()
    told = {
        **ledger.counts(),
        "dense_steps": steps["dense"] // replicates,
        "search_steps_per_replicate": (masks + steps["ticket"]) // replicates,
        "control_steps": controls,
        "train_seconds": round(sum(each.train_seconds for each in whole), 3),
        "train_seconds_now": round(ledger.train_seconds, 3),
        "wall_seconds": round(seconds, 3),
    }
    return convert(told, Cost)


def kept_record(earlier: RunRecord, record: RunRecord) -> RunRecord | None:
    """An earlier record of the same networks, with what each costs where it does not tell; None if they are others."""
    if earlier.name != record.name:
        return None
    if list(map(_network, earlier.points)) != list(map(_network, record.points)):
        return None
    pairs = zip(earlier.points, record.points, strict=True)
    points = tuple(replace(old, phases=old.phases or new.phases, ticket=new.ticket) for old, new in pairs)
    return replace(earlier, points=points, store=record.store)


def _network(row: Point) -> Point:
    """Without what it cost and where it lies, which depends on how the store was named."""
    return replace(row, phases=None, ticket="")
