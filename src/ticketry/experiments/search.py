"""Execute a search: train all replicates and their controls, save the tickets, and write the record."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.errors import TicketryError
from ticketry.evidence.control import LONGER_CONTROLS, explain_undefined_control
from ticketry.evidence.controls import train_any_control
from ticketry.evidence.level_verdicts import add_verdicts, recompute_verdicts
from ticketry.experiments.record_files import (
    describe_environment,
    describe_task,
    normalise_record,
    read_earlier_record,
    warn_of_other_arithmetic,
)
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.run_file import format_run_file
from ticketry.experiments.run_record import OnPoint, PointCollector, ProgressFile, update_record
from ticketry.lab.costs.ledger import Ledger, control_phases
from ticketry.lab.costs.meters import Energies, open_energy_meter
from ticketry.lab.lab import Lab
from ticketry.lab.masks import macs_by_layer
from ticketry.lab.search_result import Found
from ticketry.lab.store.files import path_exists, write_atomically, write_with_digest
from ticketry.lab.store.locks import mark_running
from ticketry.lab.store.paths import display_address
from ticketry.records.network import TICKET, Point, is_matched_dense
from ticketry.records.run import FORMAT, OmittedControlAtLevel, RunRecord, ScheduleSteps
from ticketry.records.schema import as_json

OnFound = Callable[[int, Found], None]


def execute(
    lab: Lab,
    run: SearchRequest,
    *,
    command: str = "",
    on_point: OnPoint | None = None,
    on_found: OnFound | None = None,
    energy: str = "meter",
    on_ended: Callable[[TicketryError], None] | None = None,
) -> RunRecord:
    """Train the networks of a run that the store lacks, write the tickets and the record, and return the record.

    Args:
        on_point: called with the record's row of each trained network, from several threads.
        on_found: called with the replicate's number and the found network, for the dense network and each
            ticket, from several threads.
        energy: ``meter``, or ``estimate`` for a machine without a meter, see `lab.costs.meters`.
        on_ended: called at the end with the error of each failed replicate; by default the error is raised.
    """
    began, ledger, meter = time.monotonic(), lab.ledger.copy(), open_energy_meter(energy)
    run = run.for_lab(lab)
    folder = lab.store.paths.run(run.name)
    warn_of_other_arithmetic(folder / "run.json", lab, run.task)
    progress = ProgressFile(lab, run)
    collected = PointCollector(lab, run, folder, [progress.add, *([on_point] if on_point else [])])
    controls = _ControlTrainer(lab, run, collected)
    ended: list[TicketryError] = []

    def add_found_ticket(replicate: int, found: Found) -> None:
        counts = collected.add_found(replicate, found)
        if found.mask is not None:
            controls.start_controls(replicate, found, counts)
        if on_found:
            on_found(replicate, found)

    with collected.log.log_run() as whole:
        with mark_running(folder), progress, controls:
            run.method(
                lab,
                run.task,
                run.settings,
                recipe=run.recipe,
                replicates=run.replicates,
                seeds=run.seeds,
                on_found=add_found_ticket,
                on_ended=ended.append,
            )
            if ended and not any(row.role == TICKET for row in collected.rows):
                raise ended[0]
        seconds, done = time.monotonic() - began, lab.ledger.since(ledger)
        record = normalise_record(_build_record(lab, run, collected, command, seconds, done))
        record = _write_run(lab, run, replace(record, ended="".join(map(str, ended))), done, meter)
        collected.log.log_record(whole, record, folder)
    for error in ended:
        if on_ended is None:
            raise error
        on_ended(error)
    return record


def _write_run(lab: Lab, run: SearchRequest, record: RunRecord, done: Ledger, meter: Energies) -> RunRecord:
    """Write a run's record and return it; if nothing was trained, keep and return the earlier record instead."""
    folder = lab.store.paths.run(run.name)
    earlier = read_earlier_record(folder / "run.json", RunRecord)
    if earlier and done.segments_trained == 0 and (updated := update_record(earlier, record)):
        if updated != earlier:
            write_with_digest(folder / "run.json", as_json(updated))
        if not path_exists(folder / "run.toml"):
            write_atomically(folder / "run.toml", updated.config.encode())
        return recompute_verdicts(updated)  # costs and date are those of the earlier record
    if used := meter.used():
        record.recorded_cost.update(energy_kwh=used.kwh, energy_by=used.by)
    record = add_verdicts(record, lab.sizes(run.task)["test"])
    write_with_digest(folder / "run.json", as_json(record))
    write_atomically(folder / "run.toml", record.config.encode())
    return record


class _ControlTrainer:
    """Trains the controls of each ticket as soon as the ticket is found, in parallel threads if the lab has workers."""

    def __init__(self, lab: Lab, run: SearchRequest, points: PointCollector) -> None:
        self._lab, self._run, self._points = lab, run, points
        # At most as many threads as can train at once: the search's own segments never wait long behind controls.
        threads = lab.workers
        self._pool = concurrent.futures.ThreadPoolExecutor(threads, "controls") if threads else None
        self._futures: list[concurrent.futures.Future[None]] = []

    def start_controls(self, replicate: int, found: Found, counts: dict[str, Any]) -> None:
        """Start training the controls of a ticket, except controls that cannot have as many steps as the ticket."""
        for control in self._run.controls_for(found.level, counts["density"]):
            if why := explain_undefined_control(control, found):
                self._points.left_out[found.level, control] = why
            elif self._pool is None:
                self._train_control(control, replicate, found, counts)
            else:
                self._futures.append(self._pool.submit(self._train_control, control, replicate, found, counts))

    def _train_control(self, control: str, replicate: int, found: Found, counts: dict[str, Any]) -> None:
        run = self._run
        assert found.mask is not None
        with self._lab.telling(f"replicate {replicate} "):
            control_of = train_any_control(
                self._lab,
                run.task_of(replicate),
                control,
                found,
                run.seeds.replicate(replicate),
                label=f"level {found.level} {control}",
            )
        more, trained = {**counts, "budget": control_of.total_steps}, control_of.trainings
        last = trained[-1].segment
        if is_matched_dense(control):
            weights = sum(size for _, size in macs_by_layer(self._lab, last.task).values())
            share = weights / self._lab.store.get_mask(found.mask).total
            more.update(model=str(last.task.key()["model"]), density=min(share, 1.0), kept=weights)
        elif last.whole_channels or found.structured or found.pattern != UNSTRUCTURED or found.aim:
            # Structured masks meet the ticket's density only approximately, and under a budget the cost is equal.
            assert last.mask is not None
            mask = self._lab.store.get_mask(last.mask)
            more.update(density=mask.density, kept=mask.kept)
        ticket = self._points.training_phases_of(replicate, found)
        phases = control_phases(control_of.searched, found, ticket, trained, control_of.fresh)
        if len(trained) > 1:
            steps = sum(each.segment.steps for each in trained)
            more.update(steps=steps, seconds=round(sum(each.train_seconds for each in trained), 3))
        if control in LONGER_CONTROLS:
            more.update(cycles=len(trained))
        self._points.add_row(replicate, found.level, control, trained, phases, **more)

    def __enter__(self) -> _ControlTrainer:
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


def preliminary_record(run: SearchRequest, points: Sequence[Point]) -> RunRecord:
    """Return the record of an unfinished run, with the networks that are already trained."""
    described = run.describe()
    return RunRecord(
        format=FORMAT,
        name=run.name,
        label=run.label,
        method=run.method.name,
        title=run.title,
        alias=run.display_name if run.display_name != run.method.name else "",
        task=describe_task(run.task, None, parameters=0, prunable=0),
        points=tuple(points),
        settings=described["settings"],
        recipe=described["recipe"],
        replicates=run.replicates,
        seeds=described["seeds"],
        controls=run.controls,
        sources=run.sources,
        scored=getattr(run.settings, "replacing_score", ""),
    )


def _build_record(
    lab: Lab, run: SearchRequest, points: PointCollector, command: str, seconds: float, done: Ledger
) -> RunRecord:
    rows = sorted(points.rows_with_costs(), key=lambda row: (row.replicate, row.level, row.role != "ticket", row.role))
    dense = next(result for result in points.segments.values() if result.segment.mask is None)
    arithmetic = dense.segment.arithmetic
    chosen = {"precision": arithmetic.precision, "kernels": lab.kernels.asked, **lab.non_default_settings(run.task)}
    if lab.device != "auto" or arithmetic.device != "cpu":  # on the CPU by default, the file names no device
        chosen["device"] = arithmetic.device
    if lab.asked:
        chosen["on"] = lab.asked
    if run.label:
        chosen["name"] = run.label
    record = preliminary_record(run, [row if row.kept is not None else replace(row, kept=points.total) for row in rows])
    return replace(
        record,
        settings={**record.settings, "retrain": points.retrain},  # the value in effect, if it was left open
        task=describe_task(run.task, lab, parameters=points.parameters, prunable=points.total),
        steps=ScheduleSteps(dense.segment.total, dense.segment.per_epoch, points.rewind_step),
        command=command,
        recorded_cost=as_json(points.cost(done, seconds)),
        environment=describe_environment(lab, arithmetic, points.segments.values()),
        rounds=tuple(sorted(points.rounds.values(), key=lambda row: (row.replicate, row.level))),
        left_out=tuple(
            OmittedControlAtLevel(role, why, level) for (level, role), why in sorted(points.left_out.items())
        ),
        config=format_run_file({**run.describe(), "method": run.display_name}, run.task.spec, chosen),
        store=display_address(lab.store.paths.root),
    )
