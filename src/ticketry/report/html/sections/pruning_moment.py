"""When networks were pruned early: the figure, and a table of the moments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ticketry.records.network import DISTANCE, MASKS, TICKET, Moment
from ticketry.report.figures import MOMENT, Drawing
from ticketry.report.html.blocks import Place, Row, Section, Table
from ticketry.report.tables.results import Group, Results
from ticketry.report.tables.rows import look_rows
from ticketry.report.wording import NONE, percent

_WORDS = {
    DISTANCE: "Measurement t of the detector is the distance d of the prunable weights from their initialisation, "
    "‖w − w₀‖ / ‖w₀‖. It compares |d(t) − d(t−1)| / d(1) with the threshold: the change since the measurement before, "
    "as a share of the first change, which is 1 itself. A network is pruned at the first measurement, after the first "
    "one, at which that lies below its threshold. ",
    MASKS: "At each measurement the detector has the mask that magnitudes would give, and waits until any two of the "
    "last five differ in no more than the threshold; shown is the difference to the measurement before alone, which "
    "may lie below the threshold somewhat earlier. ",
}


def moment_section(results: Results, drawings: Mapping[str, Drawing], place: Place) -> Section | None:
    """None where no row has a moment."""
    groups = [group for group in results.of_role(TICKET) if any(point.moment for point in group.points.values())]
    if not groups:
        return None
    detectors = {point.moment.detector for group in groups for point in group.points.values() if point.moment}
    words = "".join(text for name, text in _WORDS.items() if name in detectors)
    caption = f"{words}A line a replicate; coloured line: the threshold of a density; mark: where it was pruned. "
    figure = place.figure(drawings, MOMENT, caption, look_rows([results]))
    table = _table(results, sorted(groups, key=lambda group: -group.density), place)
    return Section(place.id("moments"), "When it was pruned", [figure, table], name="When pruned")


def _table(results: Results, groups: Sequence[Group], place: Place) -> Table:
    replicates = sorted({replicate for group in groups for replicate in group.points})
    looked = {p.moment.detector for group in groups for p in group.points.values() if p.moment and p.moment.looks}
    text = "The step at which each network was pruned"
    if looked:
        what = "what was compared with the threshold" if looked == {DISTANCE} else "the difference to the one before"
        text += f", and {what} at the last measurement until then"
    head = ["weights remaining, %", "threshold", *(f"replicate {replicate}" for replicate in replicates)]
    rows = [_row(results, group, replicates) for group in groups]
    return Table(place.id("table-moments"), f"{text}.", head, rows, "moments")


def _row(results: Results, group: Group, replicates: Sequence[int]) -> Row:
    moments = {r: point.moment for r, point in group.points.items() if point.moment}
    thresholds = {moment.threshold for moment in moments.values() if moment.looks}
    threshold = f"{thresholds.pop():.3g}" if len(thresholds) == 1 else NONE
    return Row(percent(group.density), [threshold, *(_text(results, moments.get(r)) for r in replicates)])


def _text(results: Results, moment: Moment | None) -> str:
    """``step 57 (3 ep), detected: 0.22``."""
    if moment is None:
        return NONE
    epoch = results.run.steps.per_epoch
    epochs = f" ({moment.step / epoch:.3g} ep)" if isinstance(epoch, int) and epoch > 0 and moment.step else ""
    value = "" if math.isnan(moment.value_at_pruning) else f": {moment.value_at_pruning:.3g}"
    return f"step {moment.step:,}{epochs}, {_how(results, moment)}{value}"


def _how(results: Results, moment: Moment) -> str:
    """Why it was that moment: ``detected``, ``latest allowed``, or ``as given``."""
    if moment.detected:
        return "detected"
    return "latest allowed" if moment.looks or results.run.settings.get("when") == "detect" else "as given"
