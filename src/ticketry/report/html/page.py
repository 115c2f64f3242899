"""The page: one HTML file with everything in it, one small script of its own and nothing to load."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

from ticketry.report.figures import (
    Drawing,
    comparison_figures,
    drawn,
    run_figures,
    speed_figures,
    stability_figures,
    timed_figures,
    verify_figures,
)
from ticketry.report.figures.style import COLOURS, run_colour
from ticketry.report.html.blocks import Folded, PackedRows, PackedRun, Part, Place, Run, Section, Text, packed
from ticketry.report.html.markup import environment, html
from ticketry.report.html.sections.comparison import comparison_section, methods_section, summary_section
from ticketry.report.html.sections.costs import cost_section
from ticketry.report.html.sections.frontier import frontier_sections
from ticketry.report.html.sections.gates import gates_section
from ticketry.report.html.sections.masks import first_layer_section, layers_section, structure_section
from ticketry.report.html.sections.networks import networks_section
from ticketry.report.html.sections.pruning_moment import moment_section
from ticketry.report.html.sections.results import results_section
from ticketry.report.html.sections.settings import notes_section, repeat_section, settings_section
from ticketry.report.html.sections.stability import stability_section
from ticketry.report.html.sections.times import saved_section, timed_section
from ticketry.report.html.sections.verdicts import verdicts_section, verify_section
from ticketry.report.subject import Subject
from ticketry.report.tables.measured_time import panels_of
from ticketry.report.tables.observation import observe
from ticketry.report.tables.results import Results
from ticketry.report.wording import percent, value

_MOST_RUNS = 20
"""Runs that a page has unpacked."""
_MOST_SAVED = 3
"""Tickets that were timed, each with a section of its own."""


def render(subject: Subject) -> str:
    """The whole document. The same records give the same bytes."""
    several, place = len(subject.runs) > 1, Place()
    sections = list(_several(subject, place) if several else _single(subject, place))
    head = _head_of_several(subject) if several else _head(subject)
    return document([section for section in sections if section is not None], head)


def document(sections: Sequence[Section], head: Mapping[str, object]) -> str:
    """A page of these sections.

    Args:
        head: title, eyebrow, heading, facts, name and lead.
    """
    script = _script(_has_packed(sections))
    fixed = {"script": script, "style": style(), "policy": _policy(script)}
    return environment().get_template("page.html").render(sections=sections, **head, **fixed)


def _single(subject: Subject, place: Place) -> Iterator[Section | None]:
    (results,) = subject.runs
    drawings = drawn(run_figures(results))
    yield from frontier_sections(subject, (0,), drawings, place)
    own = _of_run(results, place, drawings)
    yield from itertools.islice(own, 2)  # results and verdicts; figures are numbered in the order of the page
    yield _timed(subject, (0,), place)
    yield from _evidence(subject, place)
    yield from itertools.islice(own, 6)
    yield networks_section(subject)
    yield from own
    yield notes_section(subject.runs)


def _of_run(results: Results, place: Place, drawings: Mapping[str, Drawing]) -> Iterator[Section | None]:
    """What is told of a run by itself."""
    yield results_section(results, drawings, place)
    yield verdicts_section(results, place)
    yield layers_section(results, drawings, place)
    yield first_layer_section(results, drawings, place)
    yield structure_section(results, drawings, place)
    yield gates_section(results, drawings, place)
    yield moment_section(results, drawings, place)
    yield cost_section(results, drawings, place)
    yield repeat_section(results, place)
    yield settings_section(results, place)


def _several(subject: Subject, place: Place) -> Iterator[Section | None]:
    yield summary_section(subject)
    tasks = zip(subject.by_task.items(), comparison_figures(subject), strict=True)
    for number, ((task, indices), makers) in enumerate(tasks, start=1):
        where = place.within(f"task-{number}")
        drawings = drawn(makers)
        yield from frontier_sections(subject, indices, drawings, where)
        yield comparison_section(subject, task, indices, drawings, where)
        yield _timed(subject, indices, where)
        yield methods_section(subject, task, indices, where)
    yield from _evidence(subject, place)
    yield networks_section(subject)
    runs = [_run(subject, index, place.within(f"run-{index + 1}")) for index in range(len(subject.runs))]
    yield Section("run-by-run", "Run by run", runs)
    yield notes_section(subject.runs)


def _run(subject: Subject, index: int, place: Place) -> Run | PackedRun:
    results = subject.runs[index]
    blocks = [*_observed(results), *_of_run(results, place, drawn(run_figures(results)))]
    named = (f"run-{index + 1}", run_colour(index), subject.labels[index], results.run.name)
    if len(subject.runs) <= _MOST_RUNS:
        return Run(*named, blocks)
    return PackedRun(*named, packed("".join(map(html, blocks))))


def _timed(subject: Subject, indices: Sequence[int], place: Place) -> Section | None:
    panels = panels_of(subject, indices)
    return timed_section(panels, subject.speeds, drawn(timed_figures(panels)), place)


def _evidence(subject: Subject, place: Place) -> Iterator[Section]:
    for number, verify in enumerate(subject.verifications, start=1):
        yield verify_section(verify, drawn(verify_figures(verify)), place.within(f"verify-{number}"))
    for number, study in enumerate(subject.studies, start=1):
        yield stability_section(study, drawn(stability_figures(study)), place.within(f"stability-{number}"))
    saved = [
        saved_section(speed, drawn(speed_figures(speed)), place.within(f"saved-{number}"))
        for number, speed in enumerate(subject.speeds, start=1)
    ]
    if len(saved) <= _MOST_SAVED:
        yield from saved
        return
    folded = [
        Folded((f"{percent(speed.density)} % of the weights: ", Part(speed.ticket)), [section])
        for speed, section in zip(subject.speeds, saved, strict=True)
    ]
    yield Section(place.id("saved"), "What it saves, ticket by ticket", folded, name="What it saves")


# -- the head ----------------------------------------------------------------------------------------------------------


def _observed(results: Results) -> list[Text | None]:
    seen, ended = observe(results), results.run.ended
    return [
        Text(seen.finding, "lead"),
        Text(seen.remark, "remark") if seen.remark else None,
        Text(f"Less was found than was asked for: {ended}", "remark") if ended else None,
    ]


def _head(subject: Subject) -> dict[str, object]:
    results = subject.runs[0]
    run, count = results.run, results.replicates
    facts = [run.task.title, run.known_as, f"{count} replicate{'' if count == 1 else 's'}"]
    if "date" in run.environment:
        facts.append(value(run.environment["date"]).replace("T", " ").removesuffix("Z"))
    return {
        "title": f"{run.title}: {run.task.name}",
        "eyebrow": "ticketry search",
        "heading": run.title,
        "facts": facts,
        "name": run.name,
        "lead": _observed(results),
    }


def _head_of_several(subject: Subject) -> dict[str, object]:
    count = f"{len(subject.runs)} runs"
    titles = list(dict.fromkeys(results.run.title for results in subject.runs))
    tasks = list(dict.fromkeys(task.title for task in subject.by_task))
    networks = sum(len(results.run.points) for results in subject.runs)
    return {
        "title": f"{count} compared",
        "eyebrow": "ticketry report",
        "heading": titles[0] if len(titles) == 1 else f"{count} compared",
        "facts": [*(tasks if len(tasks) < 4 else [f"{len(tasks)} tasks"]), count, f"{networks:,} networks"],
        "name": "",
        "lead": [],
    }


def style() -> str:
    """The style sheet, with the figures' colours as the variables of the light theme."""
    light = "".join(f"--{name}: {colour}; " for name, colour in COLOURS.items())
    sheet = files("ticketry.report.html").joinpath("style.css").read_text(encoding="utf-8")
    runs = "".join(f".swatch.run-{number} {{ background: var(--run-{number}); }}\n" for number in range(1, 9))
    return f":root {{ {light}}}\n{sheet}\n{runs}"


def _has_packed(sections: Sequence[Section]) -> bool:
    return any(isinstance(block, PackedRows | PackedRun) for section in sections for block in section.blocks)


def _script(unpacks: bool) -> str:
    """With what unpacks, where it is needed: it goes into the function that the script is."""
    end = "})();\n"
    source = files("ticketry.report.html").joinpath("report.js").read_text(encoding="utf-8")
    if unpacks:
        more = files("ticketry.report.html").joinpath("packed.js").read_text(encoding="utf-8")
        source = source.removesuffix(end) + more + end
    return source.replace("= COLOURS;", f"= {json.dumps(COLOURS)};")


def _policy(script: str) -> str:
    """The browser is told to run this one script and to load nothing, whatever might have slipped into the page."""
    return (
        f"default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {hashed(script)}"
    )


def hashed(script: str) -> str:
    """A script as a policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
