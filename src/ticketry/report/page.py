"""The page: one HTML file with everything in it, no scripts and nothing to load."""

from __future__ import annotations

from importlib.resources import files

from ticketry.report.aggregate import Results
from ticketry.report.figures import drawings
from ticketry.report.figures.svg import COLOURS
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.observation import observe
from ticketry.report.sections.cost import cost_section
from ticketry.report.sections.layers import layers_section
from ticketry.report.sections.notes import notes_section
from ticketry.report.sections.results import results_section
from ticketry.report.sections.setup import repeat_section, settings_section
from ticketry.report.wording import value

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""The browser is told to run and load nothing, whatever might have slipped into the page."""


def render(results: Results) -> str:
    """The whole document. The same record gives the same bytes."""
    pictures = drawings(results)
    body = el(
        "main",
        _header(results),
        results_section(results, pictures),
        layers_section(results, pictures),
        cost_section(results),
        repeat_section(results),
        settings_section(results),
        notes_section(results),
    )
    head = join(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        el("title", f"{results.run.title}: {results.run.task.name}"),
        el("style", _style()),
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def _header(results: Results) -> Html:
    run, seen = results.run, observe(results)
    facts = [f"{run.task.model} on {run.task.name}", run.method]
    facts.append(f"{results.replicates} replicate{'' if results.replicates == 1 else 's'}")
    if "date" in run.environment:
        facts.append(value(run.environment["date"]).replace("T", " ").removesuffix("Z"))
    return el(
        "header",
        el("p", "ticketry search", class_="eyebrow"),
        el("h1", run.title),
        el("p", *(el("span", fact) for fact in facts), el("code", run.name), class_="facts-line"),
        el("p", prose(seen.finding), class_="lead"),
        el("p", prose(seen.remark), class_="remark") if seen.remark else None,
    )


def _style() -> Html:
    """The style sheet, with the figures' colours as the variables of the light theme."""
    light = "".join(f"--{name}: {colour}; " for name, colour in COLOURS.items())
    sheet = files("ticketry.report").joinpath("style.css").read_text(encoding="utf-8")
    return Html(f":root {{ {light}}}\n{sheet}")
