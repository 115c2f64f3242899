"""The training steps of a control: what it begins with, and when it cannot be trained as its ticket. Needs no torch."""

from __future__ import annotations

from ticketry.evidence.comparison_names import CONTROLS, LONGER
from ticketry.lab.search_result import DYNAMIC, FROM_REWOUND, Found, budget
from ticketry.records.network import is_matched_dense


def begins_after(found: Found) -> int | None:
    """Training steps in the weights that a control of a ticket begins with; None if it cannot come to the ticket's.

    They are those of the rewound weights. Where the ticket keeps final weights they are the dense network's, after
    which the ticket's own training fits once or more; where a budget left the ticket a shorter schedule than the dense
    network has, those of a dense network of that schedule may be the ones.
    """
    own, steps = found.result.segment, budget(found)
    if found.retrain in FROM_REWOUND:
        begun = found.rewound.segment.last
        return begun if begun + (own.total if found.retrain == DYNAMIC else own.steps) == steps else None
    for begun in (found.dense.segment.last, own.total):
        if begun + own.steps == steps or 0 < own.steps < steps - begun:
            return begun
    return None


def obstacle(control: str, found: Found) -> str:
    """Why a control cannot be trained as a ticket is, for as many steps; empty if it can, or is not meant to."""
    if is_matched_dense(control):
        return ""
    from ticketry.lab.training.variant import bound_to_mask

    if CONTROLS.get(control).changes_mask and (why := bound_to_mask(found.result.segment.variants)):
        return why
    if control in LONGER or begins_after(found) is not None:
        return ""
    begun = (found.rewound if found.retrain in FROM_REWOUND else found.dense).segment.last
    own = found.result.segment.steps
    return f"trained as a ticket, {own:,} steps after {begun:,}, it never has a ticket's {budget(found):,}"
