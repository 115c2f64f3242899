"""Claims of all metrics on one axis."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from report.made_campaign import claim
from ticketry.records.campaign import Claim
from ticketry.report.figures.evidence import claims_figure


def measured(name: str, difference: float, half: float, margin: float = 0.5) -> Claim:
    interval = (difference - half, difference + half)
    return replace(claim(name, "undecided"), n=3, difference=difference, interval=interval, margin=margin)


def places(claims: list[Claim], narrow: bool) -> dict[str, float]:
    """Where the points are, from the left end (0) to the right end (1) of the axis."""
    (axes,) = claims_figure(claims, narrow).axes
    shown = [line for line in axes.lines if line.get_marker() == "o"]
    x = [axes.transAxes.inverted().transform(axes.transData.transform((line.get_xdata()[0], 0)))[0] for line in shown]
    return dict(zip([one.name for one in claims], x, strict=True))


@pytest.mark.parametrize("narrow", [False, True])
def test_a_cost_that_is_far_from_its_bound_leaves_room_for_the_others(narrow: bool) -> None:
    """They were within a hundredth of the axis."""
    near = [measured("lower", -0.5, 0.3), measured("higher", 0.25, 0.3)]
    alone = places(near, narrow)
    assert 0 < alone["lower"] < alone["higher"] < 1
    beside = places([*near, measured("steps", 160_000.0, 1.0, margin=1000.0)], narrow)
    assert 0 < beside["lower"] < beside["higher"] < beside["steps"] < 1
    assert beside["higher"] - beside["lower"] > 0.1
    fewer = places([*near, measured("more steps", -160_000.0, 1.0, margin=1000.0)], narrow)
    assert 0 < fewer["more steps"] < fewer["lower"] < fewer["higher"] < 1
