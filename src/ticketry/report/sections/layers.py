"""Where the weights remain: density by layer, as a figure and as a table."""

from __future__ import annotations

from ticketry.report.aggregate import Results, layer_profiles
from ticketry.report.figures import DENSITY_BY_LAYER, Drawing
from ticketry.report.markup import Html, el, escape, prose
from ticketry.report.rows import layer_rows
from ticketry.report.sections.parts import Place, scrolling
from ticketry.report.wording import NONE, percent


def layers_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """Figure at selected levels, table at all; None where the record has no layers."""
    profiles = layer_profiles(results)
    if DENSITY_BY_LAYER not in drawings:
        return None
    names = list(dict.fromkeys(name for profile in profiles for name in profile.layers))
    header = [el("th", "layer", scope="col"), *(el("th", percent(p.density), scope="col") for p in profiles)]
    rows = [
        el(
            "tr",
            el("th", name, scope="row"),
            *(el("td", _share(profile.layers.get(name))) for profile in profiles),
        )
        for name in names
    ]
    caption = prose(
        "Share of each layer's weights that the tickets keep, mean over replicates, at levels spread over the "
        "run; layers in the order of the model. A straight vertical line would be one density for all layers. "
    )
    table = el("table", el("thead", el("tr", *header)), el("tbody", *rows), class_="results")
    about = escape("Weights remaining in each layer, %, by weights remaining in all of them together, % (columns).")
    whole = scrolling(table, about, place.id("table-layers"))
    return el(
        "section",
        el("h2", "Density by layer"),
        place.figure(drawings[DENSITY_BY_LAYER], DENSITY_BY_LAYER, caption, layer_rows(results)),
        el(
            "details",
            el("summary", "All layers and levels as a table"),
            whole,
        ),
        id=place.id("layers"),
    )


def _share(density: float | None) -> str:
    if density is None:
        return NONE
    return percent(density) if density > 0 else "0"
