"""Analyse the stability of tickets: search with several rewind steps, and compare the tickets of each step."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import convert

from ticketry.errors import UsageError
from ticketry.evidence.connectivity import barrier, train_two_data_orders
from ticketry.evidence.connectivity import stability as distances_of
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import USUAL_CONTROLS, LabOptions, open_lab
from ticketry.experiments.record_files import to_frame, write_record
from ticketry.experiments.request import TOLERANCE, SearchRequest, build_request, level_for_density, resolve_method
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import OnEvent
from ticketry.lab.search_result import REWINDING, Found, Seeds
from ticketry.lab.store.paths import Paths, display_address
from ticketry.lab.store.store import digest_of
from ticketry.records.evidence import Curve, Distances, LayerDistances, Rewind, StabilityRecord, StabilityRow
from ticketry.records.metric import build_html_table
from ticketry.records.network import DENSE, TICKET, Cost
from ticketry.records.run import RunRecord
from ticketry.report import write_report
from ticketry.search import Method
from ticketry.step import Step
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    import pandas

CONTINUE = REWINDING[0]


@dataclass(frozen=True)
class Stabilities:
    """Result of `stability`, with a record of distances between tickets, and the records of the searches."""

    record: StabilityRecord
    """Record of the analysis, equal to the one in the store's folder `evidence`."""
    runs: tuple[RunRecord, ...]
    store: Path = Path(".ticketry")

    def frame(self) -> pandas.DataFrame:
        """Return a pandas table with the distances of each network; raise `MissingExtraError` if pandas is missing."""
        from ticketry.report.tables.rows import stability_rows

        return to_frame(stability_rows([self.record]))

    def report(self, path: str | Path | None = None) -> Path:
        """Write an HTML page about the analysis and its searches, and return its path, by default beside the record."""
        file = Paths(self.store).evidence(self.record.name).with_suffix(".html")
        return write_report(self.runs, Path(path or file), evidence=[self.record])

    def _repr_html_(self) -> str:
        rows = [
            (row.step, row.density, row.role, row.value, *(None if one is None else one.l2 for one in apart))
            for row in self.record.rows
            for apart in [(row.pruning, row.data_order)]
        ]
        header = ("step", "density", "network", "test", "L2, pruning", "L2, data order")
        return build_html_table(f"Stability on {self.record.task.name}", header, rows)


def stability(
    method: str | Method = "iterative",
    task: str | Task = "digits",
    *,
    model: str | None = None,
    replicates: int = 3,
    controls: str | Iterable[str] = USUAL_CONTROLS,
    seeds: int | Seeds = 0,
    recipe: Recipe | Mapping[str, Any] | None = None,
    **options: Any,
) -> Stabilities:
    """Measure how much pruning and the data order change a ticket, for several rewind steps.

    The command ``ticketry stability`` does the same.

    Args:
        method, task, model, replicates, controls, seeds, recipe: see `run`.
        options: the fields of `StabilitySettings` (``rewinds``, ``at``, ``points`` …), of the method's `Settings`, and
            of `LabOptions`.

    Raises:
        UsageError: for a wrong argument.

    Examples:
        >>> settings = {"rewinds": ("0",), "levels": 1, "points": 3, "recipe": {"length": "20it"}}
        >>> found = tk.stability("iterative", **settings, replicates=1, controls=(), workers=0)
        >>> [(row.role, row.pruning is None) for row in found.record.rows]
        [('dense', True), ('ticket', False), ('shuffled', False), ('random_prune', False)]
    """
    method = resolve_method(method)
    kinds = (StabilitySettings, method.Settings, LabOptions)
    asked, settings, lab = decode_settings(options, *kinds, what=f"stability({method.name!r}, …)")
    request = build_request(
        method, task, settings, model=model, replicates=replicates, controls=controls, seeds=seeds, recipe=recipe
    )
    return run_stability_analysis(request, asked, lab)


def run_stability_analysis(
    request: SearchRequest,
    settings: StabilitySettings,
    options: LabOptions,
    *,
    command: str = "",
    on_event: OnEvent | None = None,
) -> Stabilities:
    """Measure the stability of tickets, training with `options`, and return the results; see `execute_stability`."""
    with open_lab(options, request.task, on_event) as lab:
        record, searches = execute_stability(lab, request, settings, command=command)
    return Stabilities(record, tuple(searches), options.store)


def execute_stability(
    lab: Lab, run: SearchRequest, settings: StabilitySettings, *, command: str = ""
) -> tuple[StabilityRecord, list[RunRecord]]:
    """Search once for each rewind step, measure distances between networks, and write and return the record.

    Args:
        run: a search whose settings have ``rewind``; the search's controls are trained too.
        settings: rewind steps, and which tickets to analyse.

    Returns:
        The record of the analysis, and the records of the searches.
    """
    if not hasattr(run.settings, "rewind"):
        raise UsageError(f"{run.method.name} has no rewind step, so there is nothing to follow: use another method")
    if getattr(run.settings, "equal_cost", ""):
        raise UsageError("rewind steps are compared in one schedule, that of the recipe: leave equal_cost out")
    run = run.for_lab(lab)
    per_epoch = lab.per_epoch(run.task, run.recipe)
    total = run.recipe.steps(per_epoch)
    # In ascending order; all from one dense training, which stores every rewind step.
    asked = {Step.parse(text).at(total=total, per_epoch=per_epoch): text for text in settings.rewinds}
    levels = _check_rewinds(run, settings, asked)
    began, ledger = time.monotonic(), lab.ledger.copy()
    searches: list[RunRecord] = []
    pieces: list[Any] = []
    rewinds: list[Rewind] = []
    _train_dense_to_rewinds(lab, run, sorted(asked))
    for step in sorted(asked):
        one = replace(run, settings=replace(run.settings, rewind=asked[step]))
        searched, found = _run_search(lab, one, command)
        searches.append(searched)
        rewinds.append(Rewind(step, asked[step], searched.name))
        for replicate, item in found:
            roles = settings.analysed_roles if item.mask is not None else (None,) if settings.dense else ()
            if item.mask is None or _is_ticket_requested(lab, item, settings, levels):
                pieces += [partial(_analyse_network, lab, one, settings, replicate, item, role) for role in roles]
    rows = lab.gather(pieces)
    if settings.at and all(row.role == DENSE for row in rows):
        there = sorted({row.density for one in searches for row in one.points if row.role == TICKET}, reverse=True)
        known = ", ".join(f"{one:g}" for one in there)
        raise UsageError(f"at must name densities of tickets: {known}")
    done = lab.ledger.since(ledger)
    name = stability_record_name(run, settings)
    record = StabilityRecord(
        name=name,
        runs=tuple(rewind.run for rewind in rewinds),
        task=searches[0].task,
        rewinds=tuple(rewinds),
        settings=asdict(settings),
        total_steps=total,
        replicates=run.replicates,
        rows=tuple(rows),
        cost=convert({**done.counts(), "wall_seconds": round(time.monotonic() - began, 3)}, Cost),
        environment=searches[0].environment,
        command=command,
        store=display_address(lab.store.paths.root),
    )
    return write_record(lab.store.paths.evidence(name), record, done, unless_same="rows"), searches


def _check_rewinds(run: SearchRequest, settings: StabilitySettings, steps: Mapping[int, str]) -> set[int | None]:
    """Raise `UsageError` for invalid rewind steps; return the levels (pruning steps) to analyse.

    The result is empty if all levels are to be analysed, or if densities are known only after the search.
    """
    for step, text in steps.items():
        how = getattr(replace(run.settings, rewind=text), "effective_retrain", CONTINUE)
        word = how(run.recipe) if callable(how) else how
        if word not in REWINDING or (word != CONTINUE and step > 0):
            raise UsageError(
                f"stability compares tickets with the dense network over the same steps, and from rewind {text} they"
                f" are trained otherwise (retrain {word}): give rewind steps before the end, and retrain continue"
            )
    planned = run.planned_densities
    return {level_for_density(density, planned, "the search") for density in settings.at} if planned else set()


def stability_record_name(run: SearchRequest, settings: StabilitySettings) -> str:
    """Return the name under which the store's folder `evidence` has the record of a stability analysis."""
    return f"stability-{digest_of(json.loads(json.dumps([run.identity(), asdict(settings)])))[:8]}"


def _run_search(lab: Lab, run: SearchRequest, command: str) -> tuple[RunRecord, list[tuple[int, Found]]]:
    """Run a search; return its record, and sorted pairs (replicate, network), with the dense network first."""
    found: list[tuple[int, Found]] = []
    record = execute(lab, run, command=command, on_found=lambda *item: found.append(item))
    return record, sorted(found, key=lambda pair: (pair[0], pair[1].level))


def _train_dense_to_rewinds(lab: Lab, run: SearchRequest, steps: Sequence[int]) -> None:
    """Train the dense network of each replicate once, and store its weights after each of `steps`."""

    def train_replicate(number: int) -> None:
        seeds = run.seeds.replicate(number)
        with lab.telling(f"replicate {number} "):
            task = run.task_of(number)
            segment = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=run.recipe)
            lab.train(segment, keep=steps, label="dense")

    lab.gather([partial(train_replicate, number) for number in range(run.replicates)])


def _is_ticket_requested(lab: Lab, found: Found, settings: StabilitySettings, levels: set[int | None]) -> bool:
    """Return whether `settings` request the ticket `found`, by its level; if `levels` is empty, by its density."""
    if levels:
        return None in levels or found.level in levels
    assert found.mask is not None
    density = lab.store.get_mask(found.mask).density
    return not settings.at or any(abs(density / asked - 1) <= TOLERANCE for asked in settings.at)


def _analyse_network(
    lab: Lab, run: SearchRequest, settings: StabilitySettings, replicate: int, found: Found, control: str | None
) -> StabilityRow:
    """Return the distances and error barriers of the network `found`, or of its control named `control`."""
    seeds, task = run.seeds.replicate(replicate), run.task_of(replicate)
    about = (lab, task, run.recipe, found, seeds)
    with lab.telling(f"replicate {replicate} rewind {run.settings.rewind} "):
        one, other = train_two_data_orders(*about, control=control)
        distances = distances_of(*about, control=control) if found.mask else None
        barriers = [
            barrier(lab, task, one, other, points=settings.points, split=split, recalibrate=settings.recalibrate)
            for split in (settings.splits if settings.points else ())
        ]
    return StabilityRow(
        replicate=replicate,
        step=found.rewound.segment.last,
        level=found.level,
        density=lab.store.get_mask(found.mask).density if found.mask else 1.0,
        role=control or ("ticket" if found.mask else "dense"),
        value=float(one.metrics["test"][task.metric.name]),
        pruning=Distances(distances.pruning.l2, distances.pruning.angle) if distances else None,
        data_order=Distances(distances.data_order.l2, distances.data_order.angle) if distances else None,
        barriers=tuple(
            Curve(
                split=made.split,
                recalibrated=made.recalibrated,
                recorded_height=made.height,
                alphas=made.alphas,
                recorded_errors=made.errors,
            )
            for made in barriers
        ),
        layers=tuple(
            LayerDistances(name, apart.l2, distances.data_order.layers[name].l2)
            for name, apart in distances.pruning.layers.items()
        )
        if distances and settings.layers
        else (),
    )
