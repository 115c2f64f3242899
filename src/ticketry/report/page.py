"""The page: one HTML file with everything in it, one small script of its own and nothing to load."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files

from ticketry.report.figures import (
    comparison_figures,
    drawn,
    panels_of,
    run_figures,
    speed_figures,
    stability_figures,
    timed_figures,
    verify_figures,
)
from ticketry.report.figures.svg import COLOURS
from ticketry.report.identity import tag
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.observation import observe
from ticketry.report.sections.compare import comparison_section, summary_section
from ticketry.report.sections.cost import cost_section
from ticketry.report.sections.gates import gates_section
from ticketry.report.sections.layers import layers_section
from ticketry.report.sections.masks import masks_section
from ticketry.report.sections.methods import methods_section
from ticketry.report.sections.moment import moment_section
from ticketry.report.sections.networks import networks_section
from ticketry.report.sections.notes import notes_section
from ticketry.report.sections.parts import Place, swatch
from ticketry.report.sections.results import results_section
from ticketry.report.sections.saved import heading, saved_section
from ticketry.report.sections.setup import repeat_section, settings_section
from ticketry.report.sections.stability import stability_section
from ticketry.report.sections.structure import structure_section
from ticketry.report.sections.timed import timed_section
from ticketry.report.sections.verdicts import verdicts_section
from ticketry.report.sections.verify import verify_section
from ticketry.report.subject import Subject
from ticketry.report.wording import percent, value

_MOST_SAVED = 3
"""Tickets that were timed, each with a section of its own."""

Part = tuple[str, Html | None]
"""A section's name in the list of contents (empty for none), and the section where there is something to show."""


def render(subject: Subject, made_of: str = "") -> str:
    """The whole document, with the identity of what it is made of. The same records give the same bytes."""
    place = Place()
    several = len(subject.runs) > 1
    parts = list(_several(subject, place) if several else _single(subject, place))
    header = _header_of_several(subject) if several else _header(subject)
    body = el("main", header, _contents(parts), *(part for _, part in parts))
    script = _script()
    title = f"{len(subject.runs)} runs compared" if several else _title(subject)
    head = join(
        Html('<meta charset="utf-8">'),
        Html(tag(made_of)) if made_of else None,
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(script)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        el("title", title),
        el("style", _style()),
    )
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _single(subject: Subject, place: Place) -> Iterable[Part]:
    (results,) = subject.runs
    pictures = drawn(run_figures(results))
    yield "Results", results_section(results, pictures, place)
    yield "Verdicts", verdicts_section(results, place)
    yield "Time", _timed(subject, (0,), place)
    yield from _evidence(subject, place)
    yield "Layers", layers_section(results, pictures, place)
    yield "First layer", masks_section(results, pictures, place)
    yield "Structure", structure_section(results, pictures, place)
    yield "Gates", gates_section(results, pictures, place)
    yield "When pruned", moment_section(results, pictures, place)
    yield "Cost", cost_section(results, pictures, place)
    yield "All networks", networks_section(subject)
    yield "Repeat", repeat_section(results, place)
    yield "Settings", settings_section(results, place)
    yield "Notes", notes_section(subject.runs)


def _several(subject: Subject, place: Place) -> Iterable[Part]:
    yield "Runs", summary_section(subject)
    for number, ((task, indices), makers) in enumerate(
        zip(subject.by_task.items(), comparison_figures(subject), strict=True), start=1
    ):
        name = f"{task.model} on {task.name}" if len(subject.by_task) > 1 else "Comparison"
        where = place.within(f"task-{number}")
        yield name, comparison_section(subject, task, indices, drawn(makers), where)
        yield "Time", _timed(subject, indices, where)
        yield "By method", methods_section(subject, task, indices, where)
    yield from _evidence(subject, place)
    yield "All networks", networks_section(subject)
    details = [_run_details(subject, index, place.within(f"run-{index + 1}")) for index in range(len(subject.runs))]
    yield "Run by run", el("section", el("h2", "Run by run"), *details, id="run-by-run")
    yield "Notes", notes_section(subject.runs)


def _timed(subject: Subject, indices: Sequence[int], place: Place) -> Html | None:
    panels = panels_of(subject, indices)
    return timed_section(panels, subject.speeds, drawn(timed_figures(panels)), place)


def _evidence(subject: Subject, place: Place) -> Iterable[Part]:
    for number, verify in enumerate(subject.verifications, start=1):
        where = place.within(f"verify-{number}")
        name = f"Verification at {percent(verify.density)} %"
        yield name, verify_section(verify, drawn(verify_figures(verify)), where)
    for number, study in enumerate(subject.studies, start=1):
        where = place.within(f"stability-{number}")
        yield "Stability", stability_section(study, drawn(stability_figures(study)), where)
    yield from _saved(subject, place)


def _saved(subject: Subject, place: Place) -> Iterable[Part]:
    """Of a few tickets a section each; of many one, in which each is folded away."""
    sections = [
        saved_section(speed, drawn(speed_figures(speed)), place.within(f"saved-{number}"))
        for number, speed in enumerate(subject.speeds, start=1)
    ]
    if len(sections) <= _MOST_SAVED:
        yield from zip(map(heading, subject.speeds), sections, strict=True)
        return
    folded = [
        el("details", el("summary", f"{percent(speed.density)} % of the weights: ", el("code", speed.ticket)), section)
        for speed, section in zip(subject.speeds, sections, strict=True)
    ]
    yield "What it saves", el("section", el("h2", "What it saves, ticket by ticket"), *folded, id=place.id("saved"))


def _run_details(subject: Subject, index: int, place: Place) -> Html:
    """What the page of a single run shows, folded away."""
    results = subject.runs[index]
    pictures, seen = drawn(run_figures(results)), observe(results)
    return el(
        "details",
        el(
            "summary",
            swatch(index),
            el("b", subject.labels[index]),
            " ",
            el("code", results.run.name),
        ),
        el("p", prose(seen.finding), class_="lead"),
        el("p", prose(seen.remark), class_="remark") if seen.remark else None,
        results_section(results, pictures, place),
        verdicts_section(results, place),
        layers_section(results, pictures, place),
        masks_section(results, pictures, place),
        structure_section(results, pictures, place),
        gates_section(results, pictures, place),
        moment_section(results, pictures, place),
        cost_section(results, pictures, place),
        repeat_section(results, place),
        settings_section(results, place),
        class_="run",
        id=f"run-{index + 1}",
    )


def _title(subject: Subject) -> str:
    run = subject.runs[0].run
    return f"{run.title}: {run.task.name}"


def _header(subject: Subject) -> Html:
    results = subject.runs[0]
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


def _header_of_several(subject: Subject) -> Html:
    titles = list(dict.fromkeys(results.run.title for results in subject.runs))
    tasks = list(dict.fromkeys(f"{task.model} on {task.name}" for task in subject.by_task))
    networks = sum(len(results.run.points) for results in subject.runs)
    facts = [
        *(tasks if len(tasks) < 4 else [f"{len(tasks)} tasks"]),
        f"{len(subject.runs)} runs",
        f"{networks:,} networks",
    ]
    return el(
        "header",
        el("p", "ticketry report", class_="eyebrow"),
        el("h1", titles[0] if len(titles) == 1 else f"{len(subject.runs)} runs compared"),
        el("p", *(el("span", fact) for fact in facts), class_="facts-line"),
    )


def _contents(parts: Iterable[Part]) -> Html:
    """Links to the sections, by the id that each section begins with."""
    links = [el("a", name, href=f"#{_id_of(part)}") for name, part in parts if part is not None]
    return el("nav", *links, class_="contents", aria_label="contents")


def _id_of(section: Html) -> str:
    return section.split(">", 1)[0].split(' id="', 1)[1].split('"', 1)[0]


def _style() -> Html:
    """The style sheet, with the figures' colours as the variables of the light theme."""
    light = "".join(f"--{name}: {colour}; " for name, colour in COLOURS.items())
    sheet = files("ticketry.report").joinpath("style.css").read_text(encoding="utf-8")
    runs = "".join(f".swatch.run-{number} {{ background: var(--run-{number}); }}\n" for number in range(1, 9))
    return Html(f":root {{ {light}}}\n{sheet}\n{runs}")


def _script() -> Html:
    source = files("ticketry.report").joinpath("report.js").read_text(encoding="utf-8")
    return Html(source.replace("= COLOURS;", f"= {json.dumps(COLOURS)};"))


def _policy(script: str) -> str:
    """The browser is told to run this one script and to load nothing, whatever might have slipped into the page."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
