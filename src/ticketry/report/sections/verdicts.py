"""The verdicts of a run, level by level, with the numbers they rest on."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.forms import interval_text, seeds_text
from ticketry.report.markup import Html, el, escape, prose
from ticketry.report.record import Judgement, LevelVerdict
from ticketry.report.sections.parts import Place, chip, head_row, scrolling
from ticketry.report.wording import NONE, Style, percent, role_name, short_p


def verdicts_section(results: Results, place: Place) -> Html | None:
    """A row a level; or the reason why there is no verdict; None where the record has neither."""
    run = results.run
    if not run.verdicts:
        if not run.verdict_error:
            return None
        text = f"No verdict could be made: {run.verdict_error}"
        return el("section", el("h2", "Verdicts"), el("p", prose(text), class_="remark"), id=place.id("verdicts"))
    style, first = Style.of(results), run.verdicts[0].judgement
    controls = [one.role for one in first.comparisons if one.role != "dense"]
    # Differences are positive where tickets are better: of what is better when less, it is they that are taken away.
    less = not results.run.task.metric.higher_is_better

    def minus(name: str) -> str:
        return f"{name} minus tickets" if less else f"minus {name}"

    header = head_row(
        "level",
        "weights remaining, %",
        el("span", "verdict", class_="verdict"),
        minus("dense") if less else "tickets minus dense",
        f"{percent(first.confidence, 0)} % interval",
        *(minus(role_name(role)) for role in controls),
        *(f"{minus(role_name(each.role))} (shown only)" for each in first.beside),
        "n",
        "p",
        "p, Holm",
        "likely more seeds",
    )
    rows = [_row(style, one, controls) for one in run.verdicts]
    table = el("table", header, el("tbody", *rows), class_="results verdicts")
    return el(
        "section",
        el("h2", "Verdicts"),
        scrolling(table, prose(_caption(results, first)), place.id("table-verdicts")),
        _reasons(results),
        id=place.id("verdicts"),
    )


def _row(style: Style, one: LevelVerdict, controls: list[str]) -> Html:
    judged = one.judgement
    differences = {each.role: each for each in judged.comparisons}
    return el(
        "tr",
        el("th", str(one.level), scope="row"),
        el("td", percent(one.density)),
        el("td", chip(judged.verdict), class_="verdict"),
        el("td", style.number(judged.difference, sign=True)),
        el("td", interval_text(style, judged.interval)),
        *(el("td", style.number(differences[r].mean, sign=True) if r in differences else NONE) for r in controls),
        *(el("td", style.number(each.mean, sign=True)) for each in judged.beside),
        el("td", str(judged.n)),
        el("td", short_p(judged.p)),
        el("td", short_p(judged.p_holm)),
        el("td", seeds_text(judged)),
    )


def _caption(results: Results, first: Judgement) -> str:
    unit = " points" if results.run.task.metric.unit == "%" else ""
    others = "the dense network and controls" if len(first.comparisons) > 1 else "the dense network"
    return (
        f"Each level's tickets against {others}, paired by replicate; a difference above 0 is in the tickets' favour. "
        f"Claim: {first.claim}; margin {first.margin:.4g}{unit}; confidence {percent(first.confidence, 0)} %. The "
        f"verdict rests on p after Holm's correction for the {len(results.run.verdicts)} levels. A verdict is about "
        "the method at that density: what its next ticket will do."
        + (
            " Shown only: networks trained for as long as the whole search, that no verdict rests on."
            if first.beside
            else ""
        )
    )


def _reasons(results: Results) -> Html | None:
    items = [
        part
        for one in results.run.verdicts
        if one.judgement.reasons
        for part in (
            el("dt", f"level {one.level}, {percent(one.density)} %"),
            el("dd", chip(one.judgement.verdict), " ", escape("; ".join(one.judgement.reasons))),
        )
    ]
    if not items:
        return None
    return el("details", el("summary", "Why, level by level"), el("dl", *items, class_="notes"))
