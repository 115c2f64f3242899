"""What is said of a campaign as a whole."""

from __future__ import annotations

import pytest

from report.made_campaign import Found, claim, record
from ticketry.report.tables.claims import facts


@pytest.mark.parametrize(
    ("first", "second", "decided"),
    [
        ("undecided", "confirmed", 2),
        ("undecided", "undecided", 1),
        ("refuted", "undecided", 2),
        ("refuted", "refuted", 2),
    ],
)
def test_a_claim_and_the_one_that_asks_it_again_are_one_question(first: Found, second: Found, decided: int) -> None:
    made = record(claim("x", first), claim("y", "confirmed"), claim("z", "undecided"), claim("x-again", second, "x"))
    assert made.questions == (decided, 3)
    assert facts(made)[0].endswith(
        f" One asks another again, on fresh replicates: of 3 questions {decided} are decided."
    )


def test_where_nothing_is_asked_again_only_claims_are_counted() -> None:
    made = record(claim("x", "confirmed"), claim("y", "undecided"))
    assert facts(made)[0] == "1 of 2 claims decided: 1 confirmed, 1 undecided."
