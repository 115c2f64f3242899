"""What is said of a campaign as a whole."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from report.made_campaign import Found, claim, record
from ticketry.report.campaigns import campaign_sentences, replicates_needed_text


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
    assert made.hypothesis_counts == (decided, 3)
    assert (
        f" One is a replication on fresh replicates: {decided} of 3 hypotheses are decided."
        in campaign_sentences(made)[0]
    )


def test_beside_questions_stands_how_often_they_err() -> None:
    third = claim("x-third", "refuted", "x-again")
    made = record(claim("x", "undecided"), claim("y", "confirmed"), claim("x-again", "undecided", "x"), third)
    assert campaign_sentences(made)[0].endswith(
        "2 of 2 hypotheses are decided. Each is a separate test, so a hypothesis that is tested k times (here up to 3)"
        " errs with at most k times alpha, for confirmed and for refuted."
    )


def test_what_was_not_measured_is_said_and_asks_for_no_replicates() -> None:
    why = "no memory is known of the ticket of a in replicate 4"
    stuck = replace(claim("x", "undecided"), unknown=why, n=3, more=7)
    assert campaign_sentences(record(stuck))[-1] == f"No more replicates decide x: {why}."
    assert replicates_needed_text(stuck) == "–"


def test_where_nothing_is_asked_again_only_claims_are_counted() -> None:
    made = record(claim("x", "confirmed"), claim("y", "undecided"))
    assert campaign_sentences(made)[0] == "1 of 2 claims decided: 1 confirmed, 1 undecided."
