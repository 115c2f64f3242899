"""A verification: is this ticket really as good as dense, or better than its controls?"""

from __future__ import annotations

from ticketry.report.aggregate import summarise
from ticketry.report.evidence_record import Verify
from ticketry.report.figures import FOREST, SEEDS, Drawing
from ticketry.report.figures.forest import network_name, seed_style
from ticketry.report.forms import interval_text, seeds_text
from ticketry.report.markup import Html, el, escape, join, prose
from ticketry.report.rows import seed_rows, verify_rows
from ticketry.report.sections.parts import Place, chip, fact, head_row, made_by, scrolling
from ticketry.report.wording import NONE, Style, metric_label, p_value, percent, role_name


def verify_section(verify: Verify, drawings: dict[str, Drawing], place: Place) -> Html:
    """Verdict, differences, seeds, budgets, and what was left out and why."""
    judged, style = verify.judgement, seed_style(verify)
    what = f"Ticket of level {verify.level}, {percent(verify.density)} % of the weights"
    return el(
        "section",
        el("h2", f"Verification: {what[0].lower()}{what[1:]}"),
        el("p", *_facts_line(verify), class_="facts-line"),
        el("p", chip(judged.verdict), " ", prose(_sentence(verify, style)), class_="lead"),
        el("ul", *(el("li", prose(reason)) for reason in judged.reasons), class_="reasons") if judged.reasons else None,
        el("dl", *_facts(verify, style), class_="facts"),
        place.figure(drawings[FOREST], FOREST, _forest_caption(verify, style), verify_rows([verify])),
        _seeds(verify, drawings, place),
        _budgets(verify, style, place),
        _left_out(verify),
        made_by(verify.command, verify.cost, verify.environment),
        id=place.id("verification"),
    )


def _facts_line(verify: Verify) -> list[Html]:
    facts = [f"{verify.task.model} on {verify.task.name}", verify.method, f"replicate {verify.replicate}"]
    return [*(el("span", one) for one in facts if one), el("code", verify.run or verify.ticket)]


def _sentence(verify: Verify, style: Style) -> str:
    judged = verify.judgement
    interval = f" ({interval_text(style, judged.interval)})" if judged.interval else ""
    side = "better" if judged.difference >= 0 else "worse"
    unit = " points" if verify.task.metric.unit == "%" else ""
    return (
        f"Over {judged.n} paired seeds the ticket's test {verify.task.metric.words} is "
        f"{style.number(abs(judged.difference))}{unit} {side} than the dense network's{interval}."
    )


def _facts(verify: Verify, style: Style) -> list[Html]:
    judged, unit = verify.judgement, " points" if verify.task.metric.unit == "%" else ""
    looks = f"looks planned at {', '.join(map(str, verify.looks))} seeds" if verify.looks else ""
    noise = verify.noise
    if noise is None:
        floor = fact("Noise floor (A/A)", NONE, "not measured")
    else:
        spread = "" if noise.sd is None else f"sd of {noise.n} differences"
        number = style.number(noise.mean, sign=True) if noise.sd is None else f"± {style.number(noise.sd)}{unit}"
        floor = fact("Noise floor (A/A)", number, f"the same ticket, other seeds; {spread}".rstrip("; "))
    return [
        fact(f"Claim: {judged.claim}", p_value(judged.p), f"at {percent(judged.confidence, 0)} % confidence"),
        fact("Seeds", str(judged.n), looks),
        fact("Likely more seeds", seeds_text(judged), "to decide with a probability of 80 %"),
        floor,
    ]


def _forest_caption(verify: Verify, style: Style) -> Html:
    judged = verify.judgement
    return prose(
        f"Mean differences in test {metric_label(verify.task.metric)} over paired seeds, with their two-sided "
        f"{percent(judged.confidence, 0)} % intervals; to the right of 0 the ticket is better. Shaded: worse by less "
        f"than the margin of {style.number(judged.margin)}, which still counts as equally good. Hollow: the ticket "
        "minus itself under other seeds, what no difference looks like. "
    )


def _seeds(verify: Verify, drawings: dict[str, Drawing], place: Place) -> Html | None:
    if SEEDS not in drawings:
        return None
    caption = prose(f"Test {metric_label(verify.task.metric)} of every network trained; to the right: mean ± sd. ")
    return place.figure(drawings[SEEDS], SEEDS, caption, seed_rows([verify]))


def _budgets(verify: Verify, style: Style, place: Place) -> Html | None:
    rows = []
    for one in verify.networks:
        summary = style.summary(summarise(one.values))
        rows.append(_budget_row(one.role, summary, len(one.values), one.budget, one.parameters, one.model))
    for other in verify.references:
        summary = style.summary(summarise(other.values)) if other.values else NONE
        rows.append(_budget_row(other.role, summary, len(other.values), other.steps, None, other.note))
    if not rows:
        return None
    header = head_row("network", f"test {metric_label(verify.task.metric)}", "n", "steps each", "weights not 0", "")
    caption = escape("What each network was given. Those compared have the same number of training steps.")
    table = el("table", header, el("tbody", *rows), class_="results budgets")
    return scrolling(table, caption, place.id("table-budgets"))


def _budget_row(role: str, summary: str, n: int, steps: int | None, parameters: int | None, note: str) -> Html:
    return el(
        "tr",
        el("th", network_name(role), scope="row"),
        el("td", summary),
        el("td", str(n)),
        el("td", NONE if steps is None else f"{steps:,}"),
        el("td", NONE if parameters is None else f"{parameters:,}"),
        el("td", note, class_="note"),
    )


def _left_out(verify: Verify) -> Html | None:
    if not verify.left_out:
        return None
    items = [part for role, why in verify.left_out for part in (el("dt", role_name(role)), el("dd", prose(why)))]
    return join(el("h3", "Left out"), el("dl", *items, class_="notes"))
