"""Define the look of all figures: colours, settings of matplotlib, lines and markers of roles and of runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ticketry.records.network import DENSE, TICKET
from ticketry.report.tables.results import CONTROLS

COLOURS = {
    "paper": "#fffffe",
    "ink": "#1d2329",
    "muted": "#5c6670",
    "rule": "#d9dde1",
    "shade": "#eef1f4",
    "mark": "#e3f0f8",
    "ticket": "#0072b2",
    "random-reinit": "#d55e00",
    "shuffled": "#009e73",
    "random-prune": "#b3589a",
    "other-1": "#8a6d00",
    "other-2": "#4d7fa8",
    "step-1": "#a6c8e0",
    "step-2": "#7fb0d3",
    "step-3": "#5596c4",
    "step-4": "#2f7bb0",
    "step-5": "#155f94",
    "step-6": "#0b4069",
    "run-1": "#2b4ea8",
    "run-2": "#c2410e",
    "run-3": "#00786e",
    "run-4": "#a3267f",
    "run-5": "#7a6a08",
    "run-6": "#6a3fc0",
    "run-7": "#3f7d1f",
    "run-8": "#c22b4b",
    "good": "#1a7f4b",
    "bad": "#b83227",
}
"""Colours of the light theme, each for one purpose. The colours of roles are those of Okabe and Ito, which
colour-blind readers can distinguish; one of them is darkened for white paper."""
SHADES = 6
"""Number of shades of a sequence, from the palest, ``step-1``, to the darkest, ``step-6``."""
SMALL = 11.0
"""Size in pixels of most letters; letters beside points have the size `TINY`."""
TINY = 10.0

_QUIET_AXES = {
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 1.0,
    "axes.titlelocation": "left",
    "axes.titlesize": SMALL,
    "axes.titlecolor": COLOURS["muted"],
    "axes.titlepad": 9.0,
    "axes.labelsize": SMALL,
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelpad": 6.0,
    "xaxis.labellocation": "right",
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in (("labelsize", SMALL), ("major.pad", 5.0))},
    **{f"{axis}tick.color": COLOURS["muted"] for axis in "xy"},
    **{f"xtick.{kind}.{name}": value for kind in ("major", "minor") for name, value in (("size", 4), ("width", 0.8))},
    **{f"ytick.{kind}.size": 0 for kind in ("major", "minor")},
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: sharp, small, to be searched and read aloud
    "svg.hashsalt": "ticketry",  # the same figure has the same ids, so the same record gives the same bytes
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; wider than readers' fonts, so what fits here fits there
    "font.size": 12,
    "text.parse_math": False,  # a $ in a name is a $
    "axes.unicode_minus": True,
    "path.simplify": False,
    "figure.constrained_layout.h_pad": 0.05,
    "figure.constrained_layout.w_pad": 0.05,
    "figure.constrained_layout.wspace": 0.04,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.labelcolor": COLOURS["ink"],
    "legend.borderpad": 0.2,
    "legend.borderaxespad": 0.0,
    "legend.columnspacing": 1.6,
    "lines.markersize": 6.0,
    "lines.markeredgecolor": COLOURS["paper"],
    "lines.markeredgewidth": 0.8,
    **_QUIET_AXES,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Apply the settings of figures during a `with` block, then restore the user's settings of matplotlib."""
    import warnings

    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw it
        yield


_LOOKS: dict[str, tuple[str, str, float, Any]] = {
    TICKET: ("ticket", "o", 7.0, "-"),
    DENSE: ("muted", "o", 5.5, "-"),
    "random_reinit": ("random-reinit", "s", 5.8, (0, (5, 2))),
    "shuffled": ("shuffled", "^", 7.4, (0, (1.5, 1.5))),
    "random_prune": ("random-prune", "D", 5.4, (0, (6, 2, 1.5, 2))),
    "cyclic": ("other-1", "v", 7.4, (0, (3, 1.5))),
    "cyclic_random": ("other-2", "P", 7.0, (0, (8, 2))),
    "uniform": ("random-reinit", "s", 5.8, (0, (5, 2))),
    "erk": ("random-prune", "D", 5.4, (0, (6, 2, 1.5, 2))),
    "small_dense": ("other-1", "v", 7.0, (0, (3, 1.5))),
    "dense_of_time": ("muted", "D", 5.2, (0, (4, 2))),
    "dense_of_flops": ("muted", "s", 5.8, (0, (4, 2))),
    "dense_by_recipe": ("muted", "o", 5.5, "-"),
    "dense_at_cost": ("muted", "P", 6.4, "-"),
    "dense_at_flops": ("muted", "X", 6.4, "-"),
}
"""Colour, marker, marker size and line style of each role; controls without an entry alternate between two looks."""


def role_plot_options(role: str, controls: Sequence[str] = (), size: float = 1.0) -> dict[str, Any]:
    """Return the options of `Axes.plot` that all figures use for a role, with markers scaled by `size`."""
    if role not in _LOOKS:
        unusual = [control for control in controls if control not in CONTROLS]
        role = ("cyclic", "cyclic_random")[(unusual.index(role) if role in unusual else 0) % 2]
    name, marker, usual, line = _LOOKS[role]
    return {"color": COLOURS[name], "linestyle": line, "marker": marker, "markersize": size * usual}


def role_colour(role: str) -> str:
    """Return the colour of a role as hexadecimal text."""
    return str(role_plot_options(role)["color"])


_RUN_MARKERS = "osD^vPX*"


def run_colour(index: int) -> str:
    """Return the name of the colour of run number `index`; the colours repeat after eight runs."""
    return f"run-{1 + index % 8}"


def run_plot_options(index: int, several: bool = True) -> dict[str, Any]:
    """Return colour and marker of a run, equal in all figures of a page; a single run gets those of tickets."""
    if not several:
        return {"color": COLOURS["ticket"], "marker": "o"}
    return {"color": COLOURS[run_colour(index)], "marker": _RUN_MARKERS[(index + index // 8) % len(_RUN_MARKERS)]}


def sequence_colour(index: int, count: int, palest: int = 1) -> str:
    """Return the colour of item `index` in a sequence of `count` items; later items are darker."""
    step = palest + index * (SHADES - palest) // (count - 1) if count > 1 else SHADES
    return COLOURS[f"step-{step}"]
