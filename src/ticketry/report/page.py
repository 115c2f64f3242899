"""Render HTML pages from templates: a page is one file with a small script, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ticketry.records.campaign import CampaignRecord
from ticketry.records.network import DISTANCE, MASKS
from ticketry.records.schema import as_json
from ticketry.report import campaigns, figures, wording
from ticketry.report.figures import Drawing, draw_figures
from ticketry.report.figures.evidence import claims_figure
from ticketry.report.figures.layout import to_inline_element
from ticketry.report.figures.style import COLOURS, run_colour
from ticketry.report.subject import Subject, rewind_text
from ticketry.report.tables import costs, evidence, frontier, masks, networks, observation, results, rows, speed
from ticketry.report.wording import printable

_MOST_RUNS = 20
"""Largest number of runs whose parts of the page are not compressed."""
_MOST_SAVED = 3
"""Largest number of timed tickets that have separate sections."""
_MOST_NETWORKS = 5_000
"""Largest number of networks that one table lists."""


@dataclass(frozen=True)
class PagePart:
    """A part of the page that is being rendered: prefix of its ids, table of contents, and next figure number."""

    prefix: str = ""
    contents: list[tuple[str, str]] = field(default_factory=list)
    """(id, title) of each section, for the table of contents."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def nested_part(self, prefix: str, listed: bool = True) -> PagePart:
        """Return a nested part with another prefix of ids; if `listed`, the table of contents lists the nested part."""
        return PagePart(f"{self.prefix}{prefix}-", self.contents if listed else [], self._numbers)

    def element_id(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def add_section(self, name: str, title: str) -> str:
        """Add a section to the table of contents, and return the section's id."""
        self.contents.append((self.element_id(name), title))
        return self.element_id(name)

    def add_figure(self, drawings: Mapping[str, Drawing], name: str, data: rows.Rows = ()) -> dict[str, object]:
        """Number a figure; return its id, number, SVG in both widths and link to its CSV data for the templates."""
        one, drawing = self.element_id(name), drawings[name]
        wide, narrow = (
            Markup(to_inline_element(svg, f"{one}-{width}", f"{one}-caption"))
            for svg, width in ((drawing.wide, "wide"), (drawing.narrow, "narrow"))
        )
        csv = quote(rows.csv_text(data), safe=" ,;:/?@-_.!~*'()+=")
        link = f"data:text/csv;charset=utf-8,{csv}" if csv else ""
        return {"id": one, "number": next(self._numbers), "wide": wide, "narrow": narrow, "data": link}


def render_report(subject: Subject) -> str:
    """Return the HTML page of one run or several runs; the same records give the same bytes."""
    place, several = PagePart(), len(subject.runs) > 1
    body = template_macro("report.html", "several" if several else "single")(subject, place)
    head = _comparison_page_head(subject) if several else _run_page_head(subject)
    return _render_document(body, place, head)


def render_campaign(record: CampaignRecord) -> str:
    """Return the HTML page of a campaign; the same record gives the same bytes."""
    place = PagePart()
    judged = [claim for claim in record.claims if claim.difference is not None]
    drawings = draw_figures({campaigns.FIGURE: partial(claims_figure, judged)} if judged else {})
    date = wording.json_text(record.environment.get("date", ""))
    head = {
        "title": f"{record.title}, {record.scale}",
        "eyebrow": "ticketry reproduce",
        "heading": record.title,
        "facts": [record.paper or wording.NONE, f"scale {record.scale}", date],
        "name": record.name,
        "lead": template_macro("campaign.html", "lead")(record),
    }
    return _render_document(template_macro("campaign.html", "sections")(record, drawings, place), place, head)


def render_watch(title: str, source: str) -> str:
    """Return the HTML page of ``--watch``, whose script repeatedly loads results from the file `source`."""
    script = _read_asset("watch.js")
    # 'self' matches nothing where a page is opened from a disk, so that scheme is named.
    policy = f"{_content_security_policy(script)} 'self' file:"
    context = {"script": script, "style": _read_style_sheet() + _read_asset("watch.css"), "policy": policy}
    template = _template_environment().get_template("watch.html")
    return template.render(title=title, source=source, **{name: Markup(text) for name, text in context.items()})


def _render_document(body: str, place: PagePart, head: Mapping[str, object]) -> str:
    end, script = "})();\n", _read_asset("report.js")
    if '<details class="packed' in body or '<details class="run packed' in body:
        script = script.removesuffix(end) + _read_asset("packed.js") + end
    script = script.replace("= COLOURS;", f"= {json.dumps(COLOURS)};")
    fixed = {"script": script, "style": _read_style_sheet(), "policy": _content_security_policy(script)}
    context = {name: Markup(text) for name, text in fixed.items()}
    return (
        _template_environment().get_template("page.html").render(body=body, contents=place.contents, **head, **context)
    )


def _run_page_head(subject: Subject) -> dict[str, object]:
    one = subject.runs[0]
    run, count = one.run, one.replicates
    facts = [run.task.title, run.known_as, f"{count} replicate{'' if count == 1 else 's'}"]
    if "date" in run.environment:
        facts.append(wording.json_text(run.environment["date"]).replace("T", " ").removesuffix("Z"))
    return {
        "title": f"{run.title}: {run.task.name}",
        "eyebrow": "ticketry search",
        "heading": run.title,
        "facts": facts,
        "name": run.name,
        "lead": template_macro("results.html", "observed")(one),
    }


def _comparison_page_head(subject: Subject) -> dict[str, object]:
    count = f"{len(subject.runs)} runs"
    titles = list(dict.fromkeys(one.run.title for one in subject.runs))
    tasks = list(dict.fromkeys(task.title for task in subject.run_indices_by_task))
    return {
        "title": f"{count} compared",
        "eyebrow": "ticketry report",
        "heading": titles[0] if len(titles) == 1 else f"{count} compared",
        "facts": [
            *(tasks if len(tasks) < 4 else [f"{len(tasks)} tasks"]),
            count,
            f"{subject.network_count:,} networks",
        ],
        "name": "",
        "lead": "",
    }


def _read_asset(name: str) -> str:
    return (files("ticketry.report") / "html" / name).read_text(encoding="utf-8")


def _read_style_sheet() -> str:
    """Return the style sheet, in which the colours of figures are CSS variables of the light theme."""
    light = "".join(f"--{name}: {colour}; " for name, colour in COLOURS.items())
    runs = "".join(f".swatch.run-{number} {{ background: var(--run-{number}); }}\n" for number in range(1, 9))
    return f":root {{ {light}}}\n{_read_asset('style.css')}\n{runs}"


def _content_security_policy(script: str) -> str:
    """Return a content security policy that lets the browser run only this script, and load nothing."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


@cache
def _template_environment() -> Environment:
    """Return the Jinja environment of the templates, with functions that compute tables, and filters for text."""
    made = Environment(
        loader=PackageLoader("ticketry.report", "html/templates"),
        extensions=["jinja2.ext.do"],
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda item: printable(item) if isinstance(item, str) and not isinstance(item, Markup) else item,
    )
    tables = (results, observation, costs, evidence, frontier, masks, networks, rows, speed)
    for module in (wording, *tables):
        made.globals |= {name: item for name, item in vars(module).items() if not name.startswith("_")}
    made.globals |= {name: item for name, item in vars(figures).items() if name.isupper()}
    made.globals |= {"measures_with_figures": figures.measures_with_figures, "campaigns": campaigns}
    made.globals |= {"DISTANCE": DISTANCE, "MASKS": MASKS, "MOST_SAVED": _MOST_SAVED}
    made.globals |= {"run_colour": run_colour, "rewind_text": rewind_text}
    made.globals |= {
        "has_many_runs": lambda subject: len(subject.runs) > _MOST_RUNS,
        "has_many_networks": lambda subject: subject.network_count > _MOST_NETWORKS,
        "style_of": wording.Style.for_results,
        "packed_networks": lambda one: compress_to_base64(
            json.dumps(networks.network_table_columns(one), ensure_ascii=False)
        ),
        "run_drawings": lambda one: draw_figures(figures.run_figures(one)),
        "comparison_drawings": lambda subject: (
            (one, draw_figures(makers))
            for one, makers in zip(
                subject.run_indices_by_task.items(), figures.comparison_figures(subject), strict=True
            )
        ),
        "timed_drawings": lambda subject, indices: draw_figures(
            figures.latency_figures(speed.latency_panels(subject, indices))
        ),
        "verify_drawings": lambda record: draw_figures(figures.verify_figures(record)),
        "stability_drawings": lambda record: draw_figures(figures.stability_figures(record)),
        "speed_drawings": lambda record: draw_figures(figures.speed_figures(record)),
    }
    filters = "direction_text metric_label percent difference_unit probability_text role_name shorten_middle"
    filters += " bare_p_value removed_percent"
    filters += " summary_label readable_text retained_percent share_percent format_thousands"
    made.filters |= {name: getattr(wording, name) for name in filters.split()}
    made.filters |= {"singular_role_name": evidence.singular_role_name, "seeds_needed_text": evidence.seeds_needed_text}
    made.filters |= {
        "as_json": as_json,
        "with_no_break_spaces": with_no_break_spaces,
        "compress_to_base64": compress_to_base64,
    }
    return made


def template_macro(template: str, name: str) -> Callable[..., Markup]:
    """Return the macro `name` of a template as a function."""
    function: Callable[..., Markup] = getattr(_template_environment().get_template(template).module, name)
    return function


def with_no_break_spaces(text: Any) -> Markup:
    """Return a sentence on one line, with no-break spaces between numbers and their signs and units."""
    if not isinstance(text, Markup):
        text = escape(printable(str(text)))
    text = re.sub(r"[ \n]+", " ", text).strip(" ")
    kept_together = r"(?<=\d) (?=[±%×])|(?<=[±×]) (?=\d)|(?<=n) (?==)|(?<==) (?=\d)"
    return Markup(re.sub(kept_together, "\N{NO-BREAK SPACE}", text))


def compress_to_base64(text: str) -> str:
    """Return the text compressed (raw deflate) and in base64; a browser unpacks it with DecompressionStream."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return base64.b64encode(deflate.compress(text.encode()) + deflate.flush()).decode()
