"""Return the data of a page as rows of named cells, for CSV files and for the download links beside figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ticketry.records.evidence import StabilityRecord, VerifyRecord
from ticketry.records.network import PHASES, TICKET
from ticketry.records.ticket import SpeedRecord
from ticketry.report.subject import Subject, rewind_text
from ticketry.report.tables.costs import (
    ENERGY,
    MEASURES,
    cost_relative_to_dense,
    search_cost_points,
    ticket_cost_points,
    total_cost,
    training_cost_points,
)
from ticketry.report.tables.evidence import verify_differences
from ticketry.report.tables.networks import tickets_of_equal_density
from ticketry.report.tables.results import Results, mean_layer_densities
from ticketry.report.tables.speed import ComparisonsBySetup, LatencyPanel

Cell = str | int | float | None
Rows = Sequence[Mapping[str, Cell]]


_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters of a cell that a spreadsheet would evaluate as a formula."""


def csv_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """Return rows as CSV text with a header; floats have all digits, None becomes an empty cell.

    Texts that a spreadsheet would evaluate as a formula begin with a '.
    """
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _escape_formula(cell) for name, cell in row.items()} for row in rows)
    return buffer.getvalue()


def _escape_formula(cell: Cell) -> Cell:
    plain = cell.replace("\r", " ") if isinstance(cell, str) else cell  # else the row ends there
    return f"'{plain}" if isinstance(cell, str) and cell.startswith(_FORMULAS) else plain


def _fields_as_columns(item: object, names: str) -> dict[str, Cell]:
    """Return the fields of `item` listed in `names`, as columns by name; ``low=first`` names the field `first` ``low``.

    If `item` is None, all cells are None. A truth value becomes 1 or 0.
    """
    cells: dict[str, Cell] = {}
    for name in names.split():
        column, _, own = name.partition("=")
        found = getattr(item, own or column) if item is not None else None
        cells[column] = int(found) if isinstance(found, bool) else found
    return cells


def _interval_as_columns(names: str, interval: tuple[float, float] | None) -> dict[str, Cell]:
    return dict(zip(names.split(), interval or (None, None), strict=True))


# -- runs --------------------------------------------------------------------------------------------------------------


def trained_network_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for every trained network, with the cost of each phase and the network's share of the energy."""
    rows = []
    for results in runs:
        run, metric = results.run, results.run.task.metric
        named = {"run": run.name, "method": run.known_as, "task": run.task.name, "rewind": rewind_text(results)}
        for point in run.points:
            phases = point.phases.by_name if point.phases else {}
            rows.append(
                {
                    **named,
                    **_fields_as_columns(point, "replicate level role density"),
                    "metric": metric.name,
                    "unit": metric.unit,
                    **{split: point.metric(metric.name, split) for split in ("validation", "test")},
                    **_fields_as_columns(point, "steps budget seconds key"),
                    **{
                        f"phase_{name}_{part}": cell
                        for name in PHASES
                        for part, cell in _fields_as_columns(phases.get(name), "steps flops seconds memory").items()
                    },
                    "energy_wh": total_cost(run, point, ENERGY),
                    **{
                        f"pruned_{column}": cell
                        for column, cell in _fields_as_columns(
                            point.moment, "at_step=step detected detector threshold"
                        ).items()
                    },
                }
            )
    return rows


def detector_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for every measurement of a detector, and the value that was compared with the threshold."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(point, "replicate level density"),
            "detector": point.moment.detector,
            "step": step,
            "value": value,
            "compared": compared,
            "threshold": point.moment.threshold,
            "pruned": int(step == point.moment.step),
        }
        for results in runs
        for point in results.run.points
        if point.role == TICKET and point.moment
        for (step, value), (_, compared) in zip(
            point.moment.measurements, point.moment.compared_measurements, strict=True
        )
    ]


def summary_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for every role and level, with mean, spread and 95 % interval of the test metric."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(group, "role level density"),
            "n": summary.n,
            "statistic": group.compared.summary,
            **_fields_as_columns(summary, "mean sd"),
            **_interval_as_columns("low high", summary.interval),
        }
        for results in runs
        for role in results.roles
        for group in results.groups_of_role(role)
        for summary in [group.metric()]
    ]


def layer_rows(results: Results) -> Rows:
    """Return a row for each layer at each level, with the layer's mean density over replicates."""
    return [
        {"run": results.run.name, **_fields_as_columns(profile, "level density"), "layer": name, "kept_share": share}
        for profile in mean_layer_densities(results)
        for name, share in profile.layers.items()
    ]


def structure_fit_rows(runs: Sequence[Results]) -> Rows:
    """Return how well structures fit masks: a row for each layer of each structured mask, and a row for all layers."""
    names = (
        "layer=name rows columns groups rows_per_group density_before density_after coverage null_coverage "
        "random_coverage fill"
    )
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(point, "replicate level"),
            "structure": point.structure.name,
            **_fields_as_columns(fit, names),
        }
        for results in runs
        for point in results.run.points
        if point.role == TICKET and point.structure
        for fit in point.structure.layers
    ]


def gate_round_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for every round of training gates, with the final histogram of gate values."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(one, "replicate level used round=number init penalty steps density"),
            "validation_hard": one.metric(results.run.task.metric.name, soft=False),
            "validation_soft": one.metric(results.run.task.metric.name, soft=True),
            **{f"gates_{number}_of_{len(one.histogram)}": count for number, count in enumerate(one.histogram, start=1)},
        }
        for results in runs
        for one in results.run.rounds
    ]


def gate_density_rows(results: Results) -> Rows:
    """Return a row for each recorded step of every round of gates, with the share of gates that are on."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(one, "replicate level round=number init"),
            "step": step,
            "density": share,
        }
        for one in results.run.rounds
        for step, share in one.path
    ]


def steps_to_mask_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for each level, with the mean training steps until its mask was known."""
    return [
        {"run": results.run.name, **_fields_as_columns(point, "level density steps=known n")}
        for results in runs
        for point in ticket_cost_points(results)
    ]


def search_cost_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for each level, with mean steps and seconds of the search up to this level."""
    names = "level density test=metric search_steps=steps search_seconds=seconds n"
    return [
        {"run": results.run.name, **_fields_as_columns(point, names)}
        for results in runs
        for point in search_cost_points(results)
    ]


def training_cost_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for each level: mean cost of all training for its tickets, relative to the dense network."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(point, "level density"),
            "n": len(point.values),
            "test": point.metric,
            "least": min(point.values),
            "largest": max(point.values),
            **{f"{measure.lower()}_times_dense": point.times_dense.get(measure) for measure in MEASURES},
            "energy_wh": point.watt_hours,
        }
        for results in runs
        for point in training_cost_points(results)
    ]


def method_rows(subject: Subject) -> Rows:
    """Return a row for each run and each density that several runs reached, with metric and relative costs."""
    rows = []
    for task, indices in subject.run_indices_by_task.items():
        for match in tickets_of_equal_density([subject.runs[index] for index in indices]):
            for place, group in match.members:
                results = subject.runs[indices[place]]
                difference = group.paired_difference(results.dense) if results.dense else None
                ratios = {name: cost_relative_to_dense(results, group, name) for name in MEASURES}
                rows.append(
                    {
                        "task": task.name,
                        "model": task.model,
                        "density_asked": match.density,
                        "run": results.run.name,
                        "label": subject.labels[indices[place]],
                        "method": results.run.known_as,
                        **_fields_as_columns(group, "level density"),
                        **_fields_as_columns(group.metric(), "mean sd n"),
                        **_fields_as_columns(difference, "minus_dense=mean"),
                        **{f"{name.lower()}_times_dense": one.mean if one else None for name, one in ratios.items()},
                    }
                )
    return rows


def verdict_rows(runs: Sequence[Results]) -> Rows:
    """Return a row for each level of each run, with its verdict."""
    return [
        {
            "run": results.run.name,
            **_fields_as_columns(one, "about level density verdict as_good_as_dense better_than_controls"),
            "not_beaten": "; ".join(one.not_beaten),
            **_fields_as_columns(one, "claim margin confidence n difference"),
            **_interval_as_columns("low high", one.interval),
            **_fields_as_columns(one, "probability p p_holm p_as_good p_better more_seeds rule"),
            "reasons": "; ".join(one.reasons),
        }
        for results in runs
        for one in results.run.verdicts
    ]


# -- evidence ----------------------------------------------------------------------------------------------------------


def verify_rows(verifications: Sequence[VerifyRecord]) -> Rows:
    """Return a row for every difference in every verification: ticket minus the network in the column `role`."""
    return [
        {
            **_fields_as_columns(verify, "verify=name run about replicate level density verdict as_good_as_dense"),
            **_fields_as_columns(verify, "better_than_controls claim margin confidence n"),
            **_fields_as_columns(row, "role mean low high p"),
        }
        for verify in verifications
        for row in verify_differences(verify)
    ]


def seed_rows(verifications: Sequence[VerifyRecord]) -> Rows:
    """Return a row for every seed of every network in every verification, with the test metric."""
    return [
        {"verify": verify.name, "role": role, "seed": seed, "steps": steps, "test": value}
        for verify in verifications
        for role, steps, values in (
            *((one.role, one.budget, one.values) for one in verify.networks),
            *((one.role, one.steps, one.values) for one in verify.references),
        )
        for seed, value in enumerate(values)
    ]


def stability_rows(studies: Sequence[StabilityRecord]) -> Rows:
    """Return a row for every network in every stability analysis, with its distances under pruning and data order."""
    return [
        {
            "stability": study.name,
            **_fields_as_columns(row, "replicate step level density role test=value"),
            **_fields_as_columns(row.pruning, "pruning_l2=l2 pruning_angle=angle"),
            **_fields_as_columns(row.data_order, "data_order_l2=l2 data_order_angle=angle"),
        }
        for study in studies
        for row in study.rows
    ]


def barrier_rows(studies: Sequence[StabilityRecord]) -> Rows:
    """Return a row for each measured point on a line between two trained networks, with the error at this point."""
    return [
        {
            "stability": study.name,
            **_fields_as_columns(row, "replicate step level density role"),
            **_fields_as_columns(curve, "split recalibrated height"),
            "alpha": alpha,
            "error": error,
        }
        for study in studies
        for row in study.rows
        for curve in row.barriers
        for alpha, error in zip(curve.alphas, curve.errors, strict=True)
    ]


def speed_rows(speeds: Sequence[SpeedRecord]) -> Rows:
    """Return a row for every engine at every batch size, with its time, and for sparse engines the time saved."""
    rows = []
    for speed in speeds:
        for timed in speed.comparisons:
            saved = {one.engine: one for one in timed.saved}
            for row in timed.times:
                one = saved.get(row.engine)
                rows.append(
                    {
                        **_fields_as_columns(speed, "record=name ticket density"),
                        **_fields_as_columns(timed, "batch precision threads"),
                        "caches": "cold" if timed.cold else "hot",
                        **_fields_as_columns(row, "engine seconds first_quartile=low third_quartile=high"),
                        **_fields_as_columns(one, "saved saved_low=low saved_high=high"),
                        "against": one.against if one else "",
                        "not_timed": row.why,
                    }
                )
    return rows


def time_by_density_rows(speeds: Sequence[SpeedRecord]) -> Rows:
    """Return a row for each timed density of synthetic masks, with measured and ideal latency."""
    return [
        {
            "record": speed.name,
            "pattern": curve.pattern,
            **_fields_as_columns(curve.comparison, "batch precision threads"),
            **_fields_as_columns(
                point, "density seconds first_quartile=low third_quartile=high ideal_seconds=ideal saved"
            ),
            "against": curve.comparison.fastest_dense,
        }
        for speed in speeds
        for curve in speed.curves
        for point in curve.points
    ]


def latency_rows(panels: Sequence[LatencyPanel], compared: ComparisonsBySetup) -> Rows:
    """Return a row for every timed level: metric, latency, and difference to unstructured tickets of equal latency."""
    rows = []
    for panel in panels:
        for one, points in panel.curves:
            levels = compared.get((panel.setup, one.results.run.name), {})
            for point in points:
                against = levels.get(point.group.level)
                difference = against.difference if against else None
                rows.append(
                    {
                        "run": one.results.run.name,
                        "masks": one.label,
                        **_fields_as_columns(point.group, "level density"),
                        **_fields_as_columns(panel.setup, "batch precision threads cold"),
                        **_fields_as_columns(point, "time_by_dense=time time_low=low time_high=high timed"),
                        "engine": ", ".join(point.engines),
                        "metric": one.results.run.task.metric.name,
                        **_fields_as_columns(point.metric, "n mean sd"),
                        **_fields_as_columns(difference, "over_unstructured=mean"),
                        **_interval_as_columns("over_low over_high", difference.interval if difference else None),
                    }
                )
    return rows
