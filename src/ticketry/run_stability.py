"""A stability analysis: searches at several rewind points, and how stable what they find is; with its record."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ticketry.errors import UsageError
from ticketry.evidence.connectivity import barrier
from ticketry.evidence.settings import StabilitySettings
from ticketry.evidence.stability import Stability, children, stability
from ticketry.lab.found import Found
from ticketry.lab.lab import Lab
from ticketry.lab.segment import digest_of
from ticketry.run import Run, execute
from ticketry.run_points import OnPoint
from ticketry.run_verify import written
from ticketry.step import Step

FORMAT = 1


def execute_stability(
    lab: Lab, run: Run, settings: StabilitySettings, *, command: str = "", on_point: OnPoint | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Search at each rewind point and analyse what was found.

    Args:
        run: a search whose settings have ``rewind``; its controls are trained beside the tickets, for their accuracy.
        on_point: see `run.execute`.

    Returns:
        The record, which is written into the store's folder `evidence`, and the records of the searches.
    """
    if getattr(run.settings, "budget", ""):
        raise UsageError("rewind points are compared in one schedule, that of the recipe: leave budget away")
    began, ledger = time.monotonic(), lab.ledger.copy()
    per_epoch = lab.per_epoch(run.task, run.recipe)
    total = run.recipe.steps(per_epoch)
    searches: list[dict[str, Any]] = []
    pieces: list[Any] = []
    rewinds: list[dict[str, Any]] = []
    # Rising, whatever their order was; all from one dense training, which keeps every rewind point on its way.
    asked = {Step.parse(text).at(total=total, per_epoch=per_epoch): text for text in settings.rewinds}
    _keep_rewind_points(lab, run, sorted(asked))
    for step in sorted(asked):
        one = replace(run, settings=replace(run.settings, rewind=asked[step]))
        record, found = _searched(lab, one, command, on_point)
        searches.append(record)
        rewinds.append({"asked": asked[step], "step": step, "run": record["run"]})
        for replicate, item in found:
            pieces += list(_pieces(lab, one, settings, replicate, item))
    rows = lab.gather(pieces)
    done = lab.ledger.since(ledger)
    name = f"stability-{digest_of(json.loads(json.dumps([run.identity(), asdict(settings)])))[:8]}"
    record = {
        "format": FORMAT,
        "kind": "stability",
        "name": name,
        "runs": [rewind["run"] for rewind in rewinds],
        "task": searches[0]["task"],
        "rewinds": rewinds,
        "settings": asdict(settings),
        "total_steps": total,
        "replicates": run.replicates,
        "rows": rows,
        "cost": {
            **done.counts(),
            "wall_seconds": round(time.monotonic() - began, 3),
        },
        "environment": searches[0]["environment"],
        "command": command,
        "store": str(lab.store.paths.root),
    }
    record = json.loads(json.dumps(record))
    return written(lab.store.paths.evidence(name), record, done, told_by="rows"), searches


def _searched(
    lab: Lab, run: Run, command: str, on_point: OnPoint | None
) -> tuple[dict[str, Any], list[tuple[int, Found]]]:
    """A search's record, and what it found in each replicate, the dense network first."""
    found: list[tuple[int, Found]] = []
    record = execute(lab, run, command=command, on_point=on_point, on_found=lambda *item: found.append(item))
    return record, sorted(found, key=lambda pair: (pair[0], pair[1].level))


def _keep_rewind_points(lab: Lab, run: Run, steps: Sequence[int]) -> None:
    """Train the dense network of each replicate once, keeping all rewind points on its way."""

    def one(number: int) -> None:
        seeds = run.seeds.replicate(number)
        with lab.telling(f"replicate {number} "):
            task = run.task_of(number)
            segment = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=run.recipe)
            lab.train(segment, keep=steps, label="dense")

    lab.gather([partial(one, number) for number in range(run.replicates)])


def _pieces(lab: Lab, run: Run, settings: StabilitySettings, replicate: int, found: Found) -> Iterator[Any]:
    """A function for each row of the record that a found network gives."""
    if found.mask is None:
        if settings.dense:
            yield partial(_row, lab, run, settings, replicate, found, None)
        return
    density = lab.store.get_mask(found.mask).density
    if settings.at and not any(abs(density - asked) <= 1e-3 * asked for asked in settings.at):
        return
    for control in settings.roles:
        yield partial(_row, lab, run, settings, replicate, found, control)


def _row(
    lab: Lab, run: Run, settings: StabilitySettings, replicate: int, found: Found, control: str | None
) -> dict[str, Any]:
    """The distances and barriers of one network: what `settings` asks of it."""
    seeds, task = run.seeds.replicate(replicate), run.task_of(replicate)
    about = (lab, task, run.recipe, found, seeds)
    with lab.telling(f"replicate {replicate} rewind {run.settings.rewind} "):
        one, other = children(*about, control=control)
        distances = stability(*about, control=control) if found.mask else None
        barriers = [
            barrier(lab, task, one, other, points=settings.points, split=split, recalibrate=settings.recalibrate)
            for split in (settings.splits if settings.points else ())
        ]
    return {
        "replicate": replicate,
        "step": found.rewound.segment.last,
        "level": found.level,
        "density": lab.store.get_mask(found.mask).density if found.mask else 1.0,
        "role": control or ("ticket" if found.mask else "dense"),
        "value": float(one.metrics["test"][task.metric.name]),
        **(_distances(distances, settings.layers) if distances else {"pruning": None, "data_order": None}),
        "barriers": [asdict(made) for made in barriers],
    }


def _distances(made: Stability, layers: bool) -> dict[str, Any]:
    parts: Mapping[str, Any] = {"pruning": made.pruning, "data_order": made.data_order}
    row: dict[str, Any] = {name: {"l2": part.l2, "angle": part.angle} for name, part in parts.items()}
    if layers:
        row["layers"] = [
            {"name": name, "pruning": made.pruning.layers[name].l2, "data_order": made.data_order.layers[name].l2}
            for name in made.pruning.layers
        ]
    return row
