"""A verdict as a notebook shows it: whose it is, a row for each comparison with the p-value that decides, and why."""

from __future__ import annotations

import re

import pytest

from ticketry.evidence.verdict import verdict

DENSE = [88.3, 87.8, 88.7, 88.1]
NEAR = [88.4, 88.0, 88.6, 88.2]
FAR = [86.9, 86.6, 87.2, 86.7]


def test_a_verdict_shows_its_comparisons() -> None:
    made = verdict(NEAR, DENSE, {"shuffled": FAR}, margin=0.75, confidence=0.9)
    page = made._repr_html_()
    assert f"{made.outcome} (claim: wins; margin 0.75, confidence 90 %, n = 4)" in page
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    rows = {cells[k]: cells[k + 1 : k + 5] for k in (0, 5)}
    dense, control = made.dense, made.controls["shuffled"]
    for name, one, p in (("dense", dense, dense.p_noninferior), ("shuffled", control, control.p_superior)):
        assert [float(cell) for cell in rows[name]] == pytest.approx([one.mean, one.low, one.high, p], rel=1e-3)
    assert dense.p_noninferior != pytest.approx(dense.p_superior, rel=0.01)
    for reason in made.reasons:
        assert reason in page


def test_a_claim_is_shown_if_the_verdict_is_what_is_claimed() -> None:
    ticket, dense = [*NEAR, *NEAR], [*DENSE, *DENSE]
    won = verdict(ticket, dense, {"shuffled": [*FAR, *FAR]})
    assert (won.outcome, won.shown, won.decided) == ("wins", True, True)
    tied = verdict(ticket, dense, {"shuffled": [*ticket[1:], ticket[0]]})
    assert (tied.outcome, tied.shown, tied.decided) == ("matches", False, False)
    assert verdict(ticket, dense, claim="matches").shown
