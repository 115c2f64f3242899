"""Write the content of a page as files: figures as SVG, PNG and PDF, data as CSV, tables for a paper as LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ticketry.files import join_inside
from ticketry.records.evidence import EvidenceValues
from ticketry.records.network import DENSE, TICKET
from ticketry.records.run import RunValues
from ticketry.report.figures import (
    Maker,
    comparison_figures,
    latency_figures,
    run_figures,
    speed_figures,
    stability_figures,
    verify_figures,
)
from ticketry.report.figures.layout import to_pdf, to_png, to_svg
from ticketry.report.figures.style import figure_style
from ticketry.report.subject import Subject, read_report_subject
from ticketry.report.tables import rows
from ticketry.report.tables.frontier import COSTS_OF_CALL, frontier_lines, frontier_rows
from ticketry.report.tables.networks import tickets_of_equal_density
from ticketry.report.tables.results import Group, Results
from ticketry.report.tables.speed import compare_with_unstructured_tickets, latency_panels
from ticketry.report.wording import (
    Style,
    bare_p_value,
    metric_label,
    percent,
    probability_text,
    role_name,
    summary_label,
)


def export(
    records: RunValues | Sequence[RunValues], folder: Path, evidence: Iterable[EvidenceValues] = ()
) -> list[Path]:
    """Write all figures (.svg, .png, .pdf), data (.csv) and LaTeX tables (.tex) into `folder`; return their paths.

    CSV files: `points` (all networks) and `summary` (means and intervals). If there are data: `rounds` (of gates),
    `looks` (measurements of detectors), `structure` (fit of structures), `times` (metric and measured time), `costs`
    (of whole trainings), `methods` (several runs at one density), `verdicts`, `verify` (differences), `seeds`,
    `stability`, `barriers`, `engines` and `time-by-density`. LaTeX files, for the package booktabs: `results` (mean and
    standard deviation of each run at each density) and `verdicts`. The same records give the same bytes.
    """
    from ticketry.lab.store.files import write_atomically

    subject = read_report_subject(records, evidence)
    written = []
    texts = {"results.tex": _results_tables(subject), "verdicts.tex": _verdict_table(subject)}
    tables = [(name, text.encode()) for name, text in texts.items() if text]
    for name, data in (*_figure_files(subject), *_csv_files(subject), *tables):
        written.append(join_inside(folder, name))
        write_atomically(written[-1], data)
    return written


def _figure_files(subject: Subject) -> Iterator[tuple[str, bytes]]:
    with figure_style():
        for name, make in _figure_drawing_functions(subject):
            figure = make(False)
            yield f"{name}.svg", to_svg(figure, name.replace("-", " ")).encode()
            yield f"{name}.png", to_png(figure)
            yield f"{name}.pdf", to_pdf(figure)


def _figure_drawing_functions(subject: Subject) -> Iterator[tuple[str, Maker]]:
    """Yield name and drawing function of every figure of the page; a number is appended to repeated names."""
    several = len(subject.runs) > 1
    for number, makers in enumerate(comparison_figures(subject) if several else [], start=1):
        middle = f"-{number}" if len(subject.run_indices_by_task) > 1 else ""
        yield from ((f"comparison{middle}-{name}", make) for name, make in makers.items())
    for number, indices in enumerate(subject.run_indices_by_task.values(), start=1):
        after = f"-{number}" if len(subject.run_indices_by_task) > 1 else ""
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


def _csv_files(subject: Subject) -> Iterator[tuple[str, bytes]]:
    times: list[Mapping[str, rows.Cell]] = []
    for indices in subject.run_indices_by_task.values():
        panels = latency_panels(subject, indices)
        times += rows.latency_rows(panels, compare_with_unstructured_tickets(panels, subject.speeds))
    tables = {
        "points": rows.trained_network_rows(subject.runs),
        "summary": rows.summary_rows(subject.runs),
        "rounds": rows.gate_round_rows(subject.runs),
        "looks": rows.detector_rows(subject.runs),
        "structure": rows.structure_fit_rows(subject.runs),
        "times": times,
        "frontier": [
            row
            for indices in subject.run_indices_by_task.values()
            for measure in COSTS_OF_CALL
            for row in frontier_rows(subject.runs, frontier_lines(subject.runs, indices, measure), measure)
        ],
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


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "×": r"$\times$",
}


def _latex_table(columns: str, head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], note: str) -> str:
    """Return a LaTeX table with escaped cells, a rule between `groups` of rows, and `note` as a comment."""

    def latex_row(cells: Sequence[str]) -> str:
        escaped = ("".join(_SPECIAL.get(letter, letter) for letter in cell) for cell in cells)
        return " & ".join(escaped) + r" \\"

    rules = [[r"\midrule", *map(latex_row, rows)] for rows in groups if rows]
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            latex_row(head),
            *(text for rows in rules for text in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _results_tables(subject: Subject) -> str:
    """Return a LaTeX table per task; its rows are the levels of a single run, or densities that several runs share."""
    texts = []
    for task, indices in subject.run_indices_by_task.items():
        runs = [subject.runs[index] for index in indices]
        labels = [subject.labels[index] for index in indices]
        style = Style.for_results(runs[0])
        note = f"{task.title}; test {metric_label(task.metric)}: {summary_label(task.metric)}; replicates in brackets"
        if len(runs) == 1:
            texts.append(_table_of_levels(runs[0], style, note))
        else:
            texts.append(_table_of_runs(runs, labels, style, note))
    return "\n".join(texts)


def _table_of_levels(results: Results, style: Style, note: str) -> str:
    roles = [role for role in results.roles if role != DENSE]
    head = ["weights (%)", *("ticket" if role == TICKET else role_name(role) for role in roles)]
    dense = results.dense
    rows = [
        [
            percent(results.tickets_or_control_at(level).density),
            *(_summary_cell(style, results.group(level, role)) for role in roles),
        ]
        for level in results.levels
    ]
    first = [[percent(1.0), *(_summary_cell(style, dense) if role == TICKET else "–" for role in roles)]]
    return _latex_table("r" * len(head), head, [first, rows], f"{note}; 100 %: the dense network")


def _table_of_runs(runs: Sequence[Results], labels: Sequence[str], style: Style, note: str) -> str:
    """Return the table of several runs, with a row for each run and a column for each density that two runs have."""
    shared = tickets_of_equal_density(runs)
    head = ["method", "dense", *(f"{percent(one.density)} %" for one in shared)]
    rows = []
    for place, results in enumerate(runs):
        groups = [dict(one.members).get(place) for one in shared]
        rows.append(
            [labels[place], _summary_cell(style, results.dense), *(_summary_cell(style, group) for group in groups)]
        )
    return _latex_table("l" + "r" * (len(head) - 1), head, [rows], note)


def _summary_cell(style: Style, group: Group | None) -> str:
    return "–" if group is None else f"{style.format_summary(group.metric())} ({group.metric().n})"


def _verdict_table(subject: Subject) -> str:
    judged = [
        (label, results) for label, results in zip(subject.labels, subject.runs, strict=True) if results.run.verdicts
    ]
    if not judged:
        return ""
    head = ["method", "weights (%)", "minus dense", "interval", "P(> −margin)", "p (Holm)", "verdict"]
    groups = []
    for label, results in judged:
        style = Style.for_results(results)
        name = label if len(subject.runs) > 1 else results.run.method
        groups.append(
            [
                [
                    *(name, percent(one.density), style.format_number(one.difference, sign=True)),
                    *(
                        style.format_interval(one.interval),
                        probability_text(one.probability),
                        bare_p_value(one.p_holm),
                    ),
                    one.verdict,
                ]
                for one in results.run.verdicts
            ]
        )
    margins = sorted({one.margin for _, results in judged for one in results.run.verdicts})
    told = ", ".join(f"{margin:.4g}" for margin in margins)
    return _latex_table("lrrrrrl", head, groups, f"tickets minus dense, paired by replicate; margin {told}")
