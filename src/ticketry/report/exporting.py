"""Write the content of a page as files: figures as SVG, PNG and PDF, data as CSV, tables for a paper as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ticketry.files import join_inside
from ticketry.records.evidence import EvidenceValues
from ticketry.records.run import RunValues
from ticketry.report.figures import (
    Maker,
    comparison_figures,
    latency_figures,
    run_figures,
    speed_figures,
    stability_figures,
    svg,
    verify_figures,
)
from ticketry.report.figures.style import figure_style
from ticketry.report.subject import Subject, subject_of
from ticketry.report.tables import latex, rows
from ticketry.report.tables.frontier import COSTS_OF_CALL, frontier_lines, frontier_rows
from ticketry.report.tables.speed import compare_panels, latency_panels


def export(
    records: RunValues | Sequence[RunValues], folder: Path, evidence: Iterable[EvidenceValues] = ()
) -> list[Path]:
    """Write all figures (.svg, .png, .pdf), data (.csv) and LaTeX tables (.tex) into `folder`; return their paths.

    CSV files: `points` (all networks) and `summary` (means and intervals); and if there are data: `rounds` (of gates),
    `looks` (measurements of detectors), `structure` (fit of structures), `times` (metric and measured time), `costs`
    (of whole trainings), `methods` (several runs at one density), `verdicts`, `verify` (differences), `seeds`,
    `stability`, `barriers`, `engines` and `time-by-density`. LaTeX files, for the package booktabs: `results` (mean and
    standard deviation of each run at each density) and `verdicts`. The same records give the same bytes.

    Args:
        records: a run record, or a list of run records.
        folder: the folder, which is created if missing; files of the same names are replaced, other files stay.
        evidence: records of verifications, stability and timings.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed, or a file cannot be written.
    """
    from ticketry.lab.store.files import write_atomically

    subject = subject_of(records, evidence)
    written = []
    for name, data in (*_figure_files(subject), *_csv_files(subject), *_latex_files(subject)):
        written.append(join_inside(folder, name))
        write_atomically(written[-1], data)
    return written


def _figure_files(subject: Subject) -> Iterator[tuple[str, bytes]]:
    with figure_style():
        for name, make in _figure_makers(subject):
            figure = make(False)
            yield f"{name}.svg", svg.to_svg(figure, name.replace("-", " ")).encode()
            yield f"{name}.png", svg.to_png(figure)
            yield f"{name}.pdf", svg.to_pdf(figure)


def _figure_makers(subject: Subject) -> Iterator[tuple[str, Maker]]:
    """Yield (name, drawing function) for every figure of the page; a number in the name keeps names distinct."""
    several = len(subject.runs) > 1
    for number, makers in enumerate(comparison_figures(subject) if several else [], start=1):
        middle = f"-{number}" if len(subject.by_task) > 1 else ""
        yield from ((f"comparison{middle}-{name}", make) for name, make in makers.items())
    for number, indices in enumerate(subject.by_task.values(), start=1):
        after = f"-{number}" if len(subject.by_task) > 1 else ""
        yield from (
            (f"{name}{after}", make) for name, make in latency_figures(latency_panels(subject, indices)).items()
        )
    for number, results in enumerate(subject.runs, start=1):
        before = f"run-{number}-" if several else ""
        yield from ((f"{before}{name}", make) for name, make in run_figures(results).items())
    for number, verify in enumerate(subject.verifications, start=1):
        yield from ((f"verify-{number}-{name}", make) for name, make in verify_figures(verify).items())
    for number, study in enumerate(subject.studies, start=1):
        yield from ((f"stability-{number}-{name}", make) for name, make in stability_figures(study).items())
    for number, speed in enumerate(subject.speeds, start=1):
        yield from ((f"saved-{number}-{name}", make) for name, make in speed_figures(speed).items())


def _latency_rows(subject: Subject) -> rows.Rows:
    found: list[Mapping[str, rows.Cell]] = []
    for indices in subject.by_task.values():
        panels = latency_panels(subject, indices)
        found += rows.latency_rows(panels, compare_panels(panels, subject.speeds))
    return found


def _frontier_rows(subject: Subject) -> rows.Rows:
    return [
        row
        for indices in subject.by_task.values()
        for measure in COSTS_OF_CALL
        for row in frontier_rows(subject.runs, frontier_lines(subject.runs, indices, measure), measure)
    ]


def _latex_files(subject: Subject) -> Iterator[tuple[str, bytes]]:
    yield from ((f"{name}.tex", text.encode()) for name, text in latex.latex_tables(subject).items())


def _csv_files(subject: Subject) -> Iterator[tuple[str, bytes]]:
    tables = {
        "points": rows.point_rows(subject.runs),
        "summary": rows.summary_rows(subject.runs),
        "rounds": rows.gate_round_rows(subject.runs),
        "looks": rows.detector_rows(subject.runs),
        "structure": rows.structure_fit_rows(subject.runs),
        "times": _latency_rows(subject),
        "frontier": _frontier_rows(subject),
        "costs": rows.training_cost_rows(subject.runs),
        "methods": rows.method_rows(subject),
        "verdicts": rows.verdict_rows(subject.runs),
        "verify": rows.verify_rows(subject.verifications),
        "seeds": rows.seed_rows(subject.verifications),
        "stability": rows.stability_rows(subject.studies),
        "barriers": rows.barrier_rows(subject.studies),
        "engines": rows.speed_rows(subject.speeds),
        "time-by-density": rows.time_by_density_rows(subject.speeds),
    }
    yield from ((f"{name}.csv", rows.csv_text(table).encode()) for name, table in tables.items() if table)
