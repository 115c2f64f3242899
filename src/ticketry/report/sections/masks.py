"""What the masks keep of the first layer, as pictures."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.figures import FIRST_LAYER, Drawing
from ticketry.report.figures.masks import MOST_FILTERS, pictures
from ticketry.report.markup import Html, el, join, prose
from ticketry.report.sections.parts import Place


def masks_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """The first layer at a few levels; None where the record has no pictures of it."""
    if FIRST_LAYER not in drawings:
        return None
    layer = pictures(results)[0].layer
    if layer.kind == "inputs":
        text = (
            "The share of each input's weights that the mask keeps: brighter, more; black, none. Each picture is "
            "scaled to its own brightest input, whose share stands above it"
        )
    else:
        colours = (
            "in red, green and blue, for the channels that are kept; white, all three"
            if layer.shape[1] == 3
            else "white: kept"
            if layer.shape[1] == 1
            else f"brighter: more of the {layer.shape[1]} input channels kept"
        )
        more = f"; the first {MOST_FILTERS} of {layer.shape[0]}" if layer.shape[0] > MOST_FILTERS else ""
        text = f"A tile a filter, {layer.shape[2]} × {layer.shape[3]} weights each ({colours}; black: removed){more}"
    caption = join(prose("The mask of "), el("code", layer.name), prose(f" of one replicate. {text}. "))
    return el(
        "section",
        el("h2", "The first layer's mask"),
        place.figure(drawings[FIRST_LAYER], FIRST_LAYER, caption),
        id=place.id("first-layer-mask"),
    )
