"""Every score of channels tells what it is, once."""

from __future__ import annotations

from ticketry.core.score import names
from ticketry.core.structure.channel_scores import CHANNEL_ONLY, CHANNEL_SCORES


def test_every_score_of_channels_is_described_once():
    assert set(CHANNEL_ONLY) == set(CHANNEL_SCORES) - set(names())
    assert {found.about.channels for found in CHANNEL_ONLY.values()} == {"only"}
