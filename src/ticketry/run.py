"""A run: a search over replicates with its controls, its tickets and its record."""

from __future__ import annotations

import concurrent.futures
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone
from typing import Any

from ticketry.core.pattern import UNSTRUCTURED
from ticketry.evidence.controls import trained_control
from ticketry.evidence.judge import verdicts_of
from ticketry.evidence.names import LONGER, check_controls
from ticketry.lab.energy import energies
from ticketry.lab.execute import environment
from ticketry.lab.files import read_json, write_atomically, write_json
from ticketry.lab.found import Found, Seeds
from ticketry.lab.lab import Lab
from ticketry.lab.ledger import Ledger
from ticketry.lab.phases import control_phases
from ticketry.lab.segment import digest_of
from ticketry.run_costs import kept_record, run_cost, with_costs
from ticketry.run_points import OnPoint, Points
from ticketry.runfile import run_file
from ticketry.search import Method
from ticketry.search._pattern import Patterned
from ticketry.search._structure import Restructuring
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.registry import of_replicate

FORMAT = 1
OnFound = Callable[[int, Found], None]


LATER = {"keep_at_least": 0, "structured": False, "multiple": 1, "when": "end", "budget": "", "embeddings": False} | {
    each.name: each.default for each in (*fields(Restructuring), *fields(Patterned))
}
"""Settings that came later, with the value that says nothing: then they are left out of a run's name, which would be
another one for runs that are stored."""


@dataclass(frozen=True)
class Run:
    """What to do: all that a run file holds."""

    method: Method
    task: Task
    settings: Any
    recipe: Recipe
    replicates: int = 3
    seeds: Seeds = field(default_factory=Seeds)
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_controls(self.controls)

    def task_of(self, replicate: int) -> Task:
        """The task as that replicate has it: of data with several splits each may have its own."""
        return of_replicate(self.task, replicate)

    @property
    def name(self) -> str:
        """Method, task and a digest of everything that matters: the same run has the same name."""
        task = "".join(letter if letter.isalnum() else "-" for letter in self.task.name).strip("-")
        return f"{self.method.name}-{task}-{digest_of(self.identity())[:8]}"

    def identity(self) -> dict[str, Any]:
        """What names are made of: as described, without what came later and says nothing."""
        told = asdict(self.settings)
        settings = {name: told[name] for name in told if (name, told[name]) not in LATER.items()}
        return self.describe() | {"settings": settings}

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "method": self.method.name,
            "task": dict(self.task.key()),
            "settings": asdict(self.settings),
            "recipe": asdict(self.recipe),
            "replicates": self.replicates,
            "seeds": asdict(self.seeds),
            "controls": list(self.controls),
        }


def execute(
    lab: Lab,
    run: Run,
    *,
    command: str = "",
    on_point: OnPoint | None = None,
    on_found: OnFound | None = None,
    energy: str = "meter",
) -> dict[str, Any]:
    """Carry a run out, or take it from the store where it is done; write its tickets and record, and return the record.

    Args:
        lab: where to train.
        run: what to do.
        command: the command line that repeats it, for the record.
        on_point: called with each point (a trained network's row of the record) as it comes; from several threads.
        on_found: called with (replicate, found) for the dense network and each ticket; from several threads.
        energy: ``meter``, or ``estimate`` where the machine has none, see `lab.energy`.

    Raises:
        MissingExtraError: for an estimate without codecarbon.
    """
    began, ledger, meter = time.monotonic(), lab.ledger.copy(), energies(energy)
    folder = lab.store.paths.run(run.name)
    collected = Points(lab, run, folder, on_point)
    controls = _Controls(lab, run, collected)

    def found_one(replicate: int, found: Found) -> None:
        _found(collected, controls, replicate, found)
        if on_found:
            on_found(replicate, found)

    with controls:
        run.method(
            lab,
            run.task,
            run.settings,
            recipe=run.recipe,
            replicates=run.replicates,
            seeds=run.seeds,
            on_found=found_one,
        )
    # As it will be read back: lists for tuples.
    seconds, done = time.monotonic() - began, lab.ledger.since(ledger)
    record: dict[str, Any] = json.loads(json.dumps(_record(lab, run, collected, command, seconds, done)))
    earlier = read_json(folder / "run.json")
    if earlier and done.segments_trained == 0 and (kept := kept_record(earlier, record)):
        if kept != earlier:
            write_json(folder / "run.json", kept)
        return kept  # nothing was done anew: what it cost, and when, is told by the record that is there
    if used := meter.used():
        record["cost"].update(energy_kwh=used.kwh, energy_by=used.by)
    record.update(verdicts_of(record, lab.sizes(run.task)["test"]))
    write_json(folder / "run.json", record)
    write_atomically(folder / "run.toml", record["config"].encode())
    return record


def _found(points: Points, controls: _Controls, replicate: int, found: Found) -> None:
    counts = points.add_found(replicate, found)
    if found.mask is not None:
        controls.begin(replicate, found, counts)


class _Controls:
    """Trains the controls of each ticket as it is found: beside the search where the lab has workers."""

    def __init__(self, lab: Lab, run: Run, points: Points) -> None:
        self._lab, self._run, self._points = lab, run, points
        # No more threads than can be trained at once: then the search's own segments never wait long behind controls.
        threads = lab.workers * max(lab.stack, 1)
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "controls") if threads else None
        self._futures: list[concurrent.futures.Future[None]] = []

    def begin(self, replicate: int, found: Found, counts: dict[str, Any]) -> None:
        """Train all controls of a ticket; `counts` are its density, weights kept and budget, which are theirs too."""
        for control in self._run.controls:
            if self._pool is None:
                self._train(control, replicate, found, counts)
            else:
                self._futures.append(self._pool.submit(self._train, control, replicate, found, counts))

    def _train(self, control: str, replicate: int, found: Found, counts: dict[str, Any]) -> None:
        run = self._run
        assert found.mask is not None
        with self._lab.telling(f"replicate {replicate} "):
            control_of = trained_control(
                self._lab,
                run.task_of(replicate),
                found.result.segment.recipe,
                control,
                found,
                run.seeds.replicate(replicate),
                label=f"level {found.level} {control}",
            )
        more, trained = dict(counts), control_of.trainings
        last = trained[-1].segment
        if last.shrunk or found.structured or found.pattern != UNSTRUCTURED:
            assert last.mask is not None  # whole channels, groups, blocks meet the ticket's density nearly, not exactly
            mask = self._lab.store.get_mask(last.mask)
            more.update(density=mask.density, kept=mask.kept)
        ticket = self._points.phases_of(replicate, found)
        phases = control_phases(control, found, ticket, trained, control_of.fresh)
        if control in LONGER:
            steps = sum(each.segment.steps for each in trained)
            more.update(
                steps=steps,
                seconds=round(sum(each.train_seconds for each in trained), 3),
                budget=found.rewound.segment.last + steps,
                cycles=len(trained),
            )
            self._points.count(trained)
        self._points.add(replicate, found.level, control, trained[-1], phases, **more)

    def __enter__(self) -> _Controls:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        try:
            if kind is not None:
                self._lab.stop()
            else:
                for future in self._futures:
                    future.result()
        except BaseException:
            self._lab.stop()
            raise
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)


def preliminary_record(run: Run, points: list[dict[str, Any]]) -> dict[str, Any]:
    """What is known of a run that is not finished, in the form of its record."""
    return {
        "format": FORMAT,
        "kind": "search",
        "run": run.name,
        **run.describe(),
        "title": run.method.title,
        "task": {
            "name": run.task.name,
            "model": str(run.task.key().get("model", "")),
            "metric": asdict(run.task.metric),
            "parameters": 0,
            "prunable": 0,
        },
        "points": points,
    }


def _record(lab: Lab, run: Run, points: Points, command: str, seconds: float, done: Ledger) -> dict[str, Any]:
    rows = sorted(
        with_costs(lab, points.rows, points.phases),
        key=lambda row: (row["replicate"], row["level"], row["role"] != "ticket", row["role"]),
    )
    dense = next(result for result in points.segments.values() if result.segment.mask is None)
    for row in rows:
        row.setdefault("kept", points.total)
    arithmetic = dense.segment.arithmetic
    record = preliminary_record(run, rows)
    return {
        **record,
        "settings": {**record["settings"], "retrain": points.retrain},  # the word that held, if it was left open
        "task": {**record["task"], "parameters": points.parameters, "prunable": points.total},
        "steps": {"total": dense.segment.total, "per_epoch": dense.segment.per_epoch, "rewind": points.rewind_step},
        "command": command,
        "cost": run_cost(
            rows,
            done,
            replicates=run.replicates,
            trained=points.segments.values(),
            searched=points.searched.values(),
            gradients=points.gradients,
            seconds=seconds,
        ),
        "environment": {
            **environment(),
            "device": arithmetic.device,
            "precision": arithmetic.precision,
            "threads_per_segment": arithmetic.threads,
            "workers": lab.workers,
            **({"stack": lab.stack} if lab.stack else {}),
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        },
        **({"rounds": rounds} if (rounds := points.rounds.rows()) else {}),
        "config": run_file(run.describe(), run.task.spec),
        "store": str(lab.store.paths.root),
    }
