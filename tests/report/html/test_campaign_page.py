"""The page of a campaign: what belongs together stands together."""

from __future__ import annotations

from report.made_campaign import claim, record
from ticketry.report.html.campaign_page import render_campaign


def test_a_claim_and_the_one_that_asks_it_again_name_each_other() -> None:
    first, second = claim("better", "undecided"), claim("better-again", "confirmed", "better")
    page = render_campaign(record(first, second))
    assert page.count("Asked again on fresh replicates, as better-again: confirmed.") == 1
    assert page.count("Asks better again, on fresh replicates.") == 1
    assert "again" not in render_campaign(record(first)).partition("<main")[2]
