"""The data behind figures and tables of structure, as flat rows."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.report.aggregate import Results
from ticketry.report.figures.timed import Panel
from ticketry.report.record import TICKET
from ticketry.report.rows import Rows
from ticketry.report.timed import Compared


def fit_rows(runs: Sequence[Results]) -> Rows:
    """How well structure fits each layer of each structured ticket; the layer named so is of all together."""
    return [
        {
            "run": results.run.name,
            "replicate": point.replicate,
            "level": point.level,
            "structure": point.structure.name,
            "layer": fit.name,
            "rows": fit.rows,
            "columns": fit.columns,
            "groups": fit.groups,
            "rows_per_group": fit.rows_per_group,
            "density_before": fit.before,
            "density_after": fit.after,
            "coverage": fit.coverage,
            "null_coverage": fit.null,
            "random_coverage": fit.random,
            "fill": fit.fill,
        }
        for results in runs
        for point in results.run.points
        if point.role == TICKET and point.structure
        for fit in point.structure.layers
    ]


def time_rows(panels: Sequence[Panel], compared: Compared) -> Rows:
    """Metric and time of every level that was timed, and what it has over unstructured tickets of the same time."""
    rows: Rows = []
    for panel in panels:
        for one, points in panel.curves:
            levels = compared.get((panel.setup, one.results.run.name), {})
            for point in points:
                against = levels.get(point.group.level)
                summary, difference = point.metric, against.difference if against else None
                ends = difference.interval if difference else None
                rows.append(
                    {
                        "run": one.results.run.name,
                        "masks": one.label,
                        "level": point.group.level,
                        "density": point.group.density,
                        "batch": panel.setup.batch,
                        "precision": panel.setup.precision,
                        "threads": panel.setup.threads,
                        "cold": int(panel.setup.cold),
                        "time_by_dense": point.time,
                        "time_low": point.low,
                        "time_high": point.high,
                        "timed": point.timed,
                        "engine": ", ".join(point.engines),
                        "metric": one.results.run.task.metric.name,
                        "n": summary.n,
                        "mean": summary.mean,
                        "sd": summary.sd,
                        "over_unstructured": difference.mean if difference else None,
                        "over_low": ends[0] if ends else None,
                        "over_high": ends[1] if ends else None,
                    }
                )
    return rows
