"""A report of many networks: a summary, and compressed what is shown when it is opened."""

from __future__ import annotations

import base64
import copy
import json
import re
import statistics
import zlib

import pytest

from browsers import NEEDS_BROWSER, launched, listened_to
from ticketry.report import page as page_module
from ticketry.report import write_report
from ticketry.report.page import render_report
from ticketry.report.subject import read_report_subject


@pytest.fixture(scope="module")
def runs(make_record):
    """Three runs of a hundred networks or so, whose network tries to be markup."""
    made = []
    for number in range(3):
        record = copy.deepcopy(make_record(levels=4, replicates=9, controls=("shuffled",)))
        record["run"], record["settings"]["rewind"] = f"iterative-{number}", f"{number}%"
        record["task"]["model"] = "</script><b>bold</b>"
        made.append(record)
    return made


pytestmark = pytest.mark.usefixtures("dots")


@pytest.fixture
def packed(monkeypatch):
    """Few networks and runs are many."""
    monkeypatch.setattr(page_module, "_MOST_NETWORKS", 50)
    monkeypatch.setattr(page_module, "_MOST_RUNS", 2)


def unpacked(data):
    return zlib.decompress(base64.b64decode(data), -15).decode()


def chunks(page):
    return [unpacked(found) for found in re.findall(r'<script type="text/plain">([^<]*)</script>', page)]


def test_what_is_packed_is_what_a_small_report_has(runs, request):
    subject = read_report_subject(runs)
    plain = render_report(subject)
    assert "text/plain" not in plain
    assert "DecompressionStream" not in plain
    request.getfixturevalue("packed")
    page = render_report(subject)
    assert render_report(read_report_subject(runs)) == page
    found = chunks(page)
    assert len(found) == 6
    rows, folded = [json.loads(one) for one in found[:3]], found[3:]
    for record, table in zip(runs, rows, strict=True):
        columns = [column.split("\n") for column in table["columns"]]
        assert {len(column) for column in columns} == {len(record["points"])}
        told = dict(zip(table["heads"], columns, strict=True))
        assert told["replicate"] == [str(point["replicate"]) for point in record["points"]]
        assert told["segment"] == [point["key"][:10] for point in record["points"]]
        for value, point in zip(told["test"], record["points"], strict=True):
            assert abs(float(value.replace("−", "-")) - point["test"]["accuracy"]) < 0.1
    for blocks in folded:  # figures are numbered alike, so that the markup is the same
        assert "<svg" in blocks
        assert blocks in plain
    assert "<b>bold</b>" not in page + "".join(folded)


def test_the_summary_is_of_all_networks_of_a_method(runs, packed):
    page = render_report(read_report_subject(runs))
    rows = re.findall(r"<tr>(.*?)</tr>", page[page.index('id="table-networks"') :], re.S)
    cells = [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]
    (found,) = [row for row in cells if row and row[2:4] == ["tickets", "2"]]
    values = [
        point["test"]["accuracy"]
        for record in runs
        for point in record["points"]
        if point["role"] == "ticket" and point["level"] == 2
    ]
    assert found[5:7] == ["3", str(len(values))]
    mean, spread = found[8].split(" ± ")
    assert abs(float(mean) - statistics.fmean(values)) < 0.01
    assert abs(float(spread) - statistics.stdev(values)) < 0.01


@NEEDS_BROWSER
@pytest.mark.slow
def test_in_a_browser_it_is_unpacked_when_it_is_opened(runs, packed, tmp_path):
    path = write_report(runs, tmp_path / "report.html")
    with launched() as browser:
        page = browser.new_page()
        heard, asked = listened_to(page)
        page.goto(path.as_uri())
        assert page.locator("#run-2 svg").count() == 0
        page.click("#networks details.packed >> nth=0 >> summary")
        table = page.locator("#networks details.packed table").first
        table.locator("tbody tr").first.wait_for()
        count = len(runs[0]["points"])
        shown = page.locator("#networks details.packed output").first
        assert shown.inner_text() == f"{count} of {count}"
        assert page.locator("b", has_text="bold").count() == 0
        page.locator("#networks details.packed select").first.select_option("tickets")
        tickets = sum(point["role"] == "ticket" for point in runs[0]["points"])
        assert shown.inner_text() == f"{tickets} of {tickets} that fit, of {count}"
        table.get_by_role("button", name="test").click()
        column = [float(text) for text in table.locator("tbody tr td:nth-child(6)").all_inner_texts()]
        assert column == sorted(column)
        page.goto(path.as_uri() + "#run-2-results")
        page.locator("#run-2 svg").first.wait_for(state="attached")
        page.locator("#run-2 figure .downloads a", has_text="SVG").first.wait_for(state="attached")
        assert page.locator("#run-3 svg").count() == 0
    assert heard == []
    assert {url.partition("#")[0] for url in asked} == {path.as_uri()}
