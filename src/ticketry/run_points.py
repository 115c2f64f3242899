"""What a run has found so far: the rows of its record, and its tickets, each saved as a folder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ticketry.core.mask import Mask
from ticketry.core.picture import first_layer, structure_pictures
from ticketry.core.scope import named_parameters
from ticketry.core.ticket import Ticket
from ticketry.lab.execute import environment
from ticketry.lab.found import DYNAMIC, Found, budget
from ticketry.lab.lab import Lab, Result
from ticketry.lab.phases import Phases, phases_of
from ticketry.lab.structuring import fits
from ticketry.run_rounds import GateRounds
from ticketry.tasks.base import Task

if TYPE_CHECKING:
    from ticketry.run import Run

OnPoint = Callable[[dict[str, Any]], None]


class Points:
    """The rows of a record, collected from several threads."""

    def __init__(self, lab: Lab, run: Run, folder: Path, on_point: OnPoint | None) -> None:
        self._lab, self._run, self._folder, self._on_point = lab, run, folder, on_point
        self._lock = threading.Lock()
        self._dense: dict[int, Result] = {}
        self._found: dict[int, list[Found]] = {}
        self.phases: list[Phases] = []
        """Of each of `rows`."""
        self._shape: tuple[int, ...] | None = getattr(run.task, "shape", None)
        self.rows: list[dict[str, Any]] = []
        self.segments: dict[str, Result] = {}
        self.rounds = GateRounds()
        self.searched: dict[str, Result] = {}
        """Trainings that masks come from, where they are told with the ticket, by replicate and key."""
        self.gradients = 0
        """Batches that trained nothing, of all tickets, see `Found.gradients`."""
        self.rewind_step = 0
        self.retrain = ""
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
        more: dict[str, Any] = {"layers": [asdict(layer) for layer in mask.table()]}
        self.total = mask.total
        if found.searched:
            more["search_steps"] = found.search_steps
            more["search_seconds"] = round(sum(each.train_seconds for each in found.searched), 3)
            gates = found.searched[-1].segment.gates
            if gates is not None and gates.density is None:
                more |= {"init": gates.init, "penalty": gates.penalty}
            with self._lock:
                self.rounds.add(replicate, found)
                self.searched.update({f"{replicate} {each.segment.key}": each for each in found.searched})
                self.gradients += found.gradients
        else:
            with self._lock:
                self.searched[f"{replicate} {found.dense.segment.key}"] = found.dense
        if found.moment is not None:
            more["moment"] = asdict(found.moment)
        structure: dict[str, Any] = {}
        if found.structured:
            before = self._lab.store.get_mask(found.structured.of)
            structure = self._structure(found, before)
            pictures = {"pictures": structure_pictures(before, mask)} if replicate == 0 else {}
            more["structure"] = structure | pictures
        more["ticket"] = str(self._save(replicate, found, mask, phases, structure))
        # Of whole channels every input has the same share, or the inputs' own channels would be missing.
        single = not found.result.segment.shrunk
        if replicate == 0 and single and (picture := first_layer(mask, self._shape)):
            more["first_layer"] = picture
        counts = {"density": mask.density, "kept": mask.kept, "budget": budget(found)}
        self.add(replicate, found.level, "ticket", found.result, phases, **more, **counts)
        return counts

    def phases_of(self, replicate: int, found: Found) -> Phases:
        """Of a network that a replicate found, now or before."""
        before = [each for each in self._found.get(replicate, []) if each.level < found.level]
        return phases_of(found, before)

    def add(self, replicate: int, level: int, role: str, result: Result, phases: Phases, **more: Any) -> None:
        """A trained network; `more` has its density and the number of weights kept, if it is sparse."""
        row = {
            "replicate": replicate,
            "level": level,
            "role": role,
            "density": 1.0,
            "validation": result.metrics["validation"],
            "test": result.metrics["test"],
            "steps": result.segment.steps,
            "seconds": result.train_seconds,
            "key": result.segment.key,
            **more,
        }
        with self._lock:
            self.rows.append(row)
            self.phases.append(phases)
            self.segments[result.segment.key] = result
        if self._on_point:
            self._on_point(row)

    def count(self, results: Iterable[Result]) -> None:
        """Trainings that are no row of their own, for what the run costs."""
        with self._lock:
            self.segments.update({each.segment.key: each for each in results})

    def _structure(self, found: Found, before: Mask) -> dict[str, Any]:
        """How a mask was given its structure, and how well it fits the one `before`."""
        how = found.structured
        assert how is not None
        assert found.mask is not None
        return {
            **how.by.describe(),
            "name": str(how.by),
            "density_before": before.density,
            "layers": fits(self._lab, self._run.task, how, found.mask),
        }

    def _save(self, replicate: int, found: Found, mask: Mask, phases: Phases, structure: dict[str, Any]) -> Path:
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
            "level": found.level,
            "replicate": replicate,
            "parameters": self.parameters,
            "seeds": asdict(run.seeds.replicate(replicate)),
            "rewind_step": found.rewound.segment.last,
            "retrain": found.retrain,
            "search_steps": phases.steps,
            "segment": segment.describe(),
            "trained_state": found.result.model,
            "environment": environment(),
            **({"structure": structure} if structure else {}),
        }
        path = self._folder / "tickets" / f"replicate-{replicate}-level-{found.level:02d}"
        if not Ticket.is_saved(path, info):
            # Of a mask that moved the start is that of the whole training, not of what came after the last move.
            begun = found.rewound.model if found.retrain == DYNAMIC else segment.start.state
            start = lab.store.get_tensors(begun)
            Ticket(mask, start, info, trained=lab.state(found.result)).save(path)
        return path


def _spec(task: Task) -> dict[str, Any] | None:
    """The request that makes the task again, where there is one."""
    return {**asdict(task.spec), "options": dict(task.spec.options)} if task.spec else None
