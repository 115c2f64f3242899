"""Format tables for a paper as LaTeX, for the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.records.network import DENSE, TICKET
from ticketry.report.subject import Subject
from ticketry.report.tables.results import Group, Results
from ticketry.report.tables.same_density import density_matches
from ticketry.report.wording import (
    Style,
    metric_label,
    percent,
    probability_text,
    role_name,
    short_p,
    summary_label,
)

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


def latex_tables(subject: Subject) -> dict[str, str]:
    """Return the LaTeX text of a page's tables by name: `results`, and `verdicts` if there are verdicts."""
    found = {"results": _results_tables(subject), "verdicts": _verdict_table(subject)}
    return {name: text for name, text in found.items() if text}


def escape_latex(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def _tabular(columns: str, head: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], note: str) -> str:
    """Return a LaTeX tabular with escaped cells and a rule between groups of rows; `note` becomes a comment."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escape_latex, cells)) + r" \\"

    rules = [[r"\midrule", *map(line, rows)] for rows in groups if rows]
    return "\n".join(
        [
            f"% {note}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(head),
            *(text for rows in rules for text in rows),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _results_tables(subject: Subject) -> str:
    """Return a table for each task: of a single run by level, or of several runs by the densities that they share."""
    texts = []
    for task, indices in subject.by_task.items():
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
    """Return the table of a single run, with a row for each level and a column for each role."""
    roles = [role for role in results.roles if role != DENSE]
    head = ["weights (%)", *("ticket" if role == TICKET else role_name(role) for role in roles)]
    dense = results.dense
    rows = [
        [
            percent(results.tickets_or_control_at(level).density),
            *(_cell(style, results.group(level, role)) for role in roles),
        ]
        for level in results.levels
    ]
    first = [[percent(1.0), *(_cell(style, dense) if role == TICKET else "–" for role in roles)]]
    return _tabular("r" * len(head), head, [first, rows], f"{note}; 100 %: the dense network")


def _table_of_runs(runs: Sequence[Results], labels: Sequence[str], style: Style, note: str) -> str:
    """Return the table of several runs, with a row for each run and a column for each density that two or more have."""
    shared = density_matches(runs)
    head = ["method", "dense", *(f"{percent(one.density)} %" for one in shared)]
    rows = []
    for place, results in enumerate(runs):
        groups = [dict(one.members).get(place) for one in shared]
        rows.append([labels[place], _cell(style, results.dense), *(_cell(style, group) for group in groups)])
    return _tabular("l" + "r" * (len(head) - 1), head, [rows], note)


def _cell(style: Style, group: Group | None) -> str:
    return "–" if group is None else f"{style.summary(group.metric())} ({group.metric().n})"


def _verdict_table(subject: Subject) -> str:
    """Return the table of verdicts, with a row for each level of each run; empty without verdicts."""
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
                    *(name, percent(one.density), style.number(one.difference, sign=True)),
                    *(style.interval(one.interval), probability_text(one.probability), short_p(one.p_holm)),
                    one.verdict,
                ]
                for one in results.run.verdicts
            ]
        )
    margins = sorted({one.margin for _, results in judged for one in results.run.verdicts})
    told = ", ".join(f"{margin:.4g}" for margin in margins)
    return _tabular("lrrrrrl", head, groups, f"tickets minus dense, paired by replicate; margin {told}")
