"""A page is made of records whenever it is asked for: one that is there already may be anybody's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from made_records import search_record
from report.made_campaign import record as campaign
from ticketry.report import write_report
from ticketry.report.writing import is_undamaged, write_campaign_page


@pytest.fixture(autouse=True)
def quickly_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("render_report", "render_campaign"):
        monkeypatch.setattr(f"ticketry.report.page.{name}", lambda record: "<html>drawn</html>\n")


def forged(page: bytes) -> bytes:
    """Another page with what the first one is told by, its digest made anew: anyone can."""
    body = page.partition(b"<!-- ")[0] + b"<script>"
    return body + b"<!-- " + hashlib.sha256(body).hexdigest().encode() + b" --></html>\n"


@pytest.mark.parametrize("kind", ["run", "campaign"])
def test_a_page_that_is_there_is_not_believed(tmp_path: Path, kind: str) -> None:
    def written() -> Path:
        if kind == "run":
            return write_report(search_record(levels=1, replicates=1), tmp_path / "a.html")
        return write_campaign_page(campaign(), tmp_path / "a.html")

    page = written()
    honest = page.read_bytes()
    page.write_bytes(forged(honest))
    assert is_undamaged(page)  # which tells damage, not makers
    assert written().read_bytes() == honest


def test_damage_is_told(tmp_path: Path) -> None:
    page = write_report(search_record(levels=1, replicates=1), tmp_path / "a.html")
    whole = page.read_bytes()
    assert is_undamaged(page)
    for damaged in (whole[:-30], b"", whole.replace(b"drawn", b"drown")):
        page.write_bytes(damaged)
        assert not is_undamaged(page)
    assert not is_undamaged(tmp_path / "absent.html")
