"""The file in docs/campaigns.md is one."""

from __future__ import annotations

import re
from pathlib import Path

from ticketry.experiments.reproduce.campaign_file import read_campaign

PAGE = Path(__file__).parents[3] / "docs" / "campaigns.md"


def test_the_campaign_of_the_page_can_be_read(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    campaign = read_campaign(tmp_path / "mine.toml", "demo")
    assert [claim.name for claim in campaign.claims] == ["weights-matter", "stable"]
    assert campaign.claims[0].plan.at == (3, 5, 7, 10)
