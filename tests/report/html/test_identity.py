"""A page that shows the same records already is left; anything else is written anew."""

from __future__ import annotations

import pytest

from made_records import search_record, verify_record
from samples import sample
from ticketry.report import write_report
from ticketry.report.html.page import render
from ticketry.report.subject import subject_of


@pytest.fixture
def page(tmp_path):
    return write_report(search_record(levels=1, replicates=1), tmp_path / "report.html")


def written_again(page, records, evidence=()):
    """Whether the file is another one after it was asked for once more."""
    before = page.stat().st_ino
    write_report(records, page, evidence=iter(evidence))
    return page.stat().st_ino != before


def test_the_same_page_is_left(page):
    assert not written_again(page, search_record(levels=1, replicates=1))


@pytest.mark.parametrize("change", ["record", "evidence", "several"])
def test_another_is_written(page, change):
    record = search_record(levels=1, replicates=1)
    if change == "record":
        record["points"][0]["test"]["accuracy"] += 1e-9
    records = [record] if change == "several" else record
    assert written_again(page, records, [verify_record()] if change == "evidence" else [])


@pytest.mark.parametrize("damage", sample([lambda text: text[:-30], lambda text: "", lambda text: text[5000:]], 1))
def test_a_damaged_page_is_written_anew(page, damage):
    whole = page.read_text()
    page.write_text(damage(whole))
    assert written_again(page, search_record(levels=1, replicates=1))
    assert page.read_text() == whole


@pytest.mark.slow
def test_other_code_draws_anew(page, monkeypatch):
    monkeypatch.setattr("ticketry.report.writing._code", lambda: "other")
    assert written_again(page, search_record(levels=1, replicates=1))


def test_a_rendered_page_without_identity_is_never_taken_for_one(page):
    record = search_record(levels=1, replicates=1)
    page.write_text(render(subject_of([record], [])))
    assert written_again(page, record)
