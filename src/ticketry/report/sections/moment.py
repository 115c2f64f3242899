"""When networks were pruned early: the figure, and a table of the moments."""

from __future__ import annotations

import math

from ticketry.report.aggregate import Group, Results
from ticketry.report.figures import MOMENT, Drawing
from ticketry.report.markup import Html, el, prose
from ticketry.report.moments import DISTANCE, MASKS, Moment
from ticketry.report.record import TICKET
from ticketry.report.rows import look_rows
from ticketry.report.sections.parts import Place, head_row, scrolling
from ticketry.report.wording import NONE, percent

_WORDS = {
    DISTANCE: "At each look t the detector has the distance d of the prunable weights from their initialisation, "
    "‖w − w₀‖ / ‖w₀‖. What it compares with the threshold is |d(t) − d(t−1)| / d(1): the change since the look before "
    "as a share of the first change, which is 1 itself. A network is pruned at the first look after the first "
    "at which that lies below its threshold. ",
    MASKS: "At each look the detector has the mask that magnitudes would give, and waits until any two of the last "
    "five differ in no more than the threshold; shown is the difference to the look before alone, which may lie below "
    "the threshold some looks earlier. ",
}


def moment_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """None where no row has a moment."""
    groups = [group for group in results.of_role(TICKET) if any(point.moment for point in group.points.values())]
    if not groups:
        return None
    picture = None
    if MOMENT in drawings:
        detectors = {p.moment.detector for group in groups for p in group.points.values() if p.moment}
        words = "".join(text for name, text in _WORDS.items() if name in detectors)
        caption = prose(
            f"{words}A line a replicate; coloured line: the threshold of a density; mark: where it was pruned. "
        )
        picture = place.figure(drawings[MOMENT], MOMENT, caption, look_rows([results]))
    title = el("h2", "When it was pruned")
    return el("section", title, picture, _table(results, groups, place), id=place.id("moments"))


def _table(results: Results, groups: list[Group], place: Place) -> Html:
    replicates = sorted({replicate for group in groups for replicate in group.points})
    header = head_row("weights remaining, %", "threshold", *(f"replicate {replicate}" for replicate in replicates))
    body = [_row(results, group, replicates) for group in sorted(groups, key=lambda group: -group.density)]
    looked = {p.moment.detector for group in groups for p in group.points.values() if p.moment and p.moment.looks}
    text = "The step at which each network was pruned"
    if looked:
        what = "what was compared with the threshold" if looked == {DISTANCE} else "the difference to the look before"
        text += f", and {what} at the last look until then"
    table = el("table", header, el("tbody", *body), class_="results moments")
    return scrolling(table, prose(f"{text}."), place.id("table-moments"))


def _row(results: Results, group: Group, replicates: list[int]) -> Html:
    moments = {r: point.moment for r, point in group.points.items() if point.moment}
    thresholds = {moment.threshold for moment in moments.values() if moment.looks}
    return el(
        "tr",
        el("th", percent(group.density), scope="row"),
        el("td", f"{thresholds.pop():.3g}" if len(thresholds) == 1 else NONE),
        *(el("td", _text(results, moments.get(replicate))) for replicate in replicates),
    )


def _text(results: Results, moment: Moment | None) -> str:
    """``step 57 (3 ep), detected: 0.22``."""
    if moment is None:
        return NONE
    epoch = results.run.steps.get("per_epoch")
    epochs = f" ({moment.step / epoch:.3g} ep)" if isinstance(epoch, int) and epoch > 0 and moment.step else ""
    value = "" if math.isnan(moment.at) else f": {moment.at:.3g}"
    return f"step {moment.step:,}{epochs}, {how(results, moment)}{value}"


def how(results: Results, moment: Moment) -> str:
    """Why it was that moment: ``detected``, ``latest allowed``, or ``as given``."""
    if moment.detected:
        return "detected"
    return "latest allowed" if moment.looks or results.run.settings.get("when") == "detect" else "as given"
