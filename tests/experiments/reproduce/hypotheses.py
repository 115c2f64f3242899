"""A claim to judge, without a campaign's file."""

from __future__ import annotations

from ticketry.evidence.comparison import InterimAnalyses
from ticketry.experiments.reproduce.campaign_file import Hypothesis, Side


def a_claim(a: Side, b: Side, plan: InterimAnalyses) -> Hypothesis:
    """That A is better than B at all, in accuracy at 10 %, with a margin of half a point."""
    return Hypothesis(
        name="better",
        statement="A is better.",
        source="",
        figure="",
        a=a,
        b=b,
        density=0.1,
        metric="accuracy",
        unit="%",
        higher_is_better=True,
        above=0.0,
        margin=0.5,
        confidence=0.95,
        family="all",
        plan=plan,
    )
