"""The figures of a run by name: as standalone SVG files, and as elements of the page in two widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ticketry.report.aggregate import Results, layer_profiles
from ticketry.report.figures import svg
from ticketry.report.figures.layers import density_by_layer
from ticketry.report.figures.metric import metric_by_density
from ticketry.report.record import read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRIC_BY_DENSITY, DENSITY_BY_LAYER = "metric-by-density", "density-by-layer"


@dataclass(frozen=True)
class Drawing:
    """One figure as SVG documents."""

    wide: str
    narrow: str
    """The same for a telephone: fewer labels, letters of the same size."""


def drawings(results: Results) -> dict[str, Drawing]:
    """The figures that the run has something for, by name."""
    makers: dict[str, Callable[[bool], Figure]] = {}
    if results.levels:
        makers[METRIC_BY_DENSITY] = lambda narrow: metric_by_density(results, narrow)
    if profiles := layer_profiles(results):
        makers[DENSITY_BY_LAYER] = lambda narrow: density_by_layer(profiles, narrow)
    with svg.drawing():
        return {name: Drawing(*(svg.to_svg(make(narrow)) for narrow in (False, True))) for name, make in makers.items()}


def figure_svgs(record: Mapping[str, Any]) -> dict[str, str]:
    """Standalone SVG documents by name: ``metric-by-density`` and ``density-by-layer``, where there are data for them.

    The same record gives the same bytes.

    Raises:
        StoreError: if the record is malformed.
    """
    return {name: drawing.wide for name, drawing in drawings(Results(read(record))).items()}
