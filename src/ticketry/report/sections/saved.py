"""What a compiled ticket saves: against the fastest dense engine, by batch, by layer and by density."""

from __future__ import annotations

from ticketry.report.figures import TIME_BY_DENSITY, TIME_BY_ENGINE, Drawing
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.rows import curve_rows, speed_rows
from ticketry.report.sections.parts import Place, fact, head_row, made_by, scrolling
from ticketry.report.speed_record import Saved, Speed, SpeedLayer, Timed
from ticketry.report.wording import MINUS, NONE, percent


def saved_section(speed: Speed, drawings: dict[str, Drawing], place: Place) -> Html:
    """Time saved, with how it was measured; engines, layers, and the time at other densities."""
    shown = speed.comparisons or tuple(curve.timed for curve in speed.curves)
    return el(
        "section",
        el("h2", heading(speed)),
        el("p", *_facts_line(speed, shown[-1]), class_="facts-line"),
        el("p", prose(_sentence(speed)), class_="lead") if speed.comparisons else None,
        el("dl", *(_batch_fact(timed) for timed in speed.comparisons), *_sizes(speed), class_="facts"),
        _figure(speed, drawings, place),
        _engines(speed, place),
        _layers(speed, place),
        _curves(speed, drawings, place),
        made_by(speed.command, {}, shown[-1].machine),
        id=place.id("saved"),
    )


def heading(speed: Speed) -> str:
    """Of the section, and in the list of contents."""
    return "What it saves" if speed.comparisons else "Time against density"


def _facts_line(speed: Speed, timed: Timed) -> list[Html]:
    density = f"{percent(speed.density)} % of the weights"
    facts = [f"{speed.model} on {speed.task}", density, timed.how]
    return [*(el("span", one) for one in facts if one.strip(" on")), el("code", speed.run or speed.ticket)]


def _sentence(speed: Speed) -> str:
    parts = []
    for timed in speed.comparisons:
        best = _best(timed)
        if best is not None:
            verb = "less" if best.saved >= 0 else "more"
            parts.append(f"{abs(100 * best.saved):.0f} % {verb} at batch {timed.batch} (against {best.against})")
    if not parts:
        return "Nothing was compared."
    return f"Against the fastest dense engine in the same rounds, a call takes {', '.join(parts)}."


def _best(timed: Timed) -> Saved | None:
    """Of the engine with sparse kernels, which is named first; a smaller dense model may be there as well."""
    return next(iter(timed.saved), None)


def _batch_fact(timed: Timed) -> Html:
    best = _best(timed)
    if best is None:
        return fact(f"Batch {timed.batch}", NONE, "not compared")
    detail = f"{100 * best.low:.1f} to {100 * best.high:.1f} %; against {best.against}"
    return fact(f"Time saved, batch {timed.batch}", f"{100 * best.saved:.1f} %", detail)


def _sizes(speed: Speed) -> list[Html]:
    if speed.compile_seconds is None:
        return []
    return [fact("Compiled in", f"{speed.compile_seconds:.2f} s", "kernels and their tables; later ones are cached")]


def _figure(speed: Speed, drawings: dict[str, Drawing], place: Place) -> Html | None:
    if TIME_BY_ENGINE not in drawings:
        return None
    sure = min((saved.confidence for timed in speed.comparisons for saved in timed.saved), default=0.0)
    caption = prose(
        "Median time of a call; thin lines: quartiles over rounds. All engines ran in turns in one process, on the same"
        " cores, after their outputs were compared with eager torch. Dark grey: the fastest dense engine. What is saved"
        f" is the median of the rounds' ratios, with an interval of {percent(sure, 0)} % by ranks. "
    )
    return place.figure(drawings[TIME_BY_ENGINE], TIME_BY_ENGINE, caption, speed_rows([speed]))


def _engines(speed: Speed, place: Place) -> Html | None:
    """Times of all engines, and why some have none."""
    if not speed.comparisons:
        return None
    names = dict.fromkeys(row.engine for timed in speed.comparisons for row in timed.times)
    rows = [
        el("tr", el("th", name, scope="row"), *(el("td", _cell(timed, name)) for timed in speed.comparisons))
        for name in names
    ]
    header = head_row("engine", *(f"batch {timed.batch}, ms" for timed in speed.comparisons))
    caption = prose("Milliseconds of a call: median (quartiles).")
    return scrolling(el("table", header, el("tbody", *rows), class_="results"), caption, place.id("table-engines"))


def _cell(timed: Timed, name: str) -> str:
    row = next((row for row in timed.times if row.engine == name), None)
    if row is None:
        return NONE
    if row.seconds is None:
        return row.why
    quartiles = "" if row.low is None or row.high is None else f" ({1e3 * row.low:.3g} to {1e3 * row.high:.3g})"
    return f"{1e3 * row.seconds:.3g}{quartiles}"


def _layers(speed: Speed, place: Place) -> Html | None:
    if not speed.layers:
        return None
    header = head_row("layer", "kind", "kernel", "weights kept", "rows that share columns", "ms", "share", "saved", "")
    at = "" if speed.layers_batch is None else f" at batch {speed.layers_batch}"
    caption = prose(
        f"What each layer runs in, and its time{at} on one thread; saved: against the same engine with nothing pruned."
    )
    table = el("table", header, el("tbody", *map(_layer_row, speed.layers)), class_="results")
    return el(
        "details", el("summary", "Layer by layer"), join(scrolling(table, caption, place.id("table-speed-layers")))
    )


def _layer_row(layer: SpeedLayer) -> Html:
    return el(
        "tr",
        el("th", layer.name, scope="row"),
        el("td", layer.kind),
        el("td", layer.kernel if layer.where == "engine" else "torch"),
        el("td", "" if layer.density is None else f"{percent(layer.density)} %"),
        el("td", layer.rows),
        el("td", "" if layer.seconds is None else f"{1e3 * layer.seconds:.3f}"),
        el("td", "" if layer.share is None else f"{100 * layer.share:.1f} %"),
        el("td", "" if layer.saved is None else f"{100 * layer.saved:.0f} %".replace("-", MINUS)),
        el("td", prose(layer.why), class_="note"),
    )


def _curves(speed: Speed, drawings: dict[str, Drawing], place: Place) -> Html | None:
    if TIME_BY_DENSITY not in drawings:
        return None
    caption = prose(
        f"Time of a call under synthetic masks ({speed.curves[0].pattern}) of the same network; dashed: density times"
        " that of the fastest dense engine, what would be ideal. "
    )
    return place.figure(drawings[TIME_BY_DENSITY], TIME_BY_DENSITY, caption, curve_rows([speed]))
