"""Two questions of a ticket, each with an answer of its own, and the verdict that they make together."""

from __future__ import annotations

from ticketry.records.verdict import Answer, Outcome


def answer(p_yes: float, p_no: float, alpha: float) -> Answer:
    """What is shown at alpha."""
    return "yes" if p_yes <= alpha else "no" if p_no <= alpha else "undecided"


def outcome(claim: str, as_good: Answer, better: Answer) -> Outcome:
    """The strongest that is shown.

    "wins": as good as dense, and better than every control. "matches": as good as dense. "loses": shown not to be as
    good as dense. Else "undecided". A claim that the ticket matches asks no more than that.
    """
    if as_good == "no":
        return "loses"
    if as_good == "undecided":
        return "undecided"
    return "wins" if claim == "wins" and better == "yes" else "matches"
