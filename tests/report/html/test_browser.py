"""The report in a real browser, offline: it says nothing on the console, asks for nothing and fits its window."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree

import pytest

from browsers import NEEDS_BROWSER, launched, listened_to
from report.made_campaign import claim, record
from samples import sample
from ticketry.report import page as page_module
from ticketry.report import write_report
from ticketry.report.figures.style import COLOURS

pytestmark = NEEDS_BROWSER

_DRAWINGS = """
(drawings) => drawings.map(svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const outside = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1
                                       || b.top < frame.top - 1 || b.bottom > frame.bottom + 1);
  const clashes = boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom).map(([two]) => [one, two]));
  const {x, width, height} = frame;
  return {outside: outside.map(([text]) => text), clashes, count: boxes.length, x, width, height};
})
"""
"""Of each drawing: texts outside of it, pairs of texts that overlap, the number of texts, and its box."""

_SCROLLED = """
[...document.querySelectorAll(".scroll, pre")].filter(
  one => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight + 1
).map(one => one.textContent.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def everything(tmp_path_factory, whole_page):
    path = tmp_path_factory.mktemp("everything") / "report.html"
    path.write_text(whole_page, encoding="utf-8")
    return path


@pytest.fixture(params=sample(["small", "everything", "large", "early"], 1))
def report(request, tmp_path, rewind_runs, many_layers, make_record, make_verify):
    """One run and its verification, sections of all kinds, a thousand networks of two tasks, early pruning's rivals."""
    if request.param == "everything":
        return request.getfixturevalue("everything")
    if request.param == "small":
        return write_report(make_record(levels=6), tmp_path / "report.html", evidence=[make_verify()])
    runs = json.loads((Path(__file__).parent.parent / "data" / "early_runs.json").read_text())
    if request.param == "large":
        runs = [*rewind_runs, make_record(replicates=9, controls=("shuffled", "random_prune"), shapes=many_layers)]
        runs[-1]["run"], runs[-1]["task"]["name"] = "oneshot-" + "a-very-long-name-" * 6, "cifar10"
    return write_report(runs, tmp_path / "report.html")


@pytest.fixture
def few(tmp_path, make_record, dots):
    """Two runs of two tasks with few networks."""
    runs = [make_record(levels=3), make_record(levels=2, replicates=2, controls=("shuffled", "random_prune"))]
    runs[-1]["run"], runs[-1]["task"]["name"] = "oneshot", "cifar10"
    return write_report(runs, tmp_path / "report.html"), sum(len(run["points"]) for run in runs)


@pytest.fixture
def early(tmp_path, dots):
    """Three runs of early pruning and its rivals."""
    runs = json.loads((Path(__file__).parent.parent / "data" / "early_runs.json").read_text())
    return write_report(runs, tmp_path / "report.html")


@contextmanager
def _opened(browser, path, width=1400, scheme="light"):
    """A page with its details open; at the end it has logged nothing and requested nothing but itself."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, accept_downloads=True
    )
    page = context.new_page()
    heard, asked = listened_to(page)
    page.goto(path.as_uri())
    yield page
    context.close()
    assert heard == []
    loaded = [
        url.partition("#")[0] for url in asked if not url.startswith(("data:image/png;", "data:text/csv", "blob:"))
    ]
    assert set(loaded) == {path.as_uri()}


@pytest.mark.parametrize(("width", "scheme"), sample([(400, "light"), (1400, "dark")], 1))
def test_it_can_be_seen_and_fits(browser, report, width, scheme):
    with _opened(browser, report, width, scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_role("heading", level=1).is_visible()
        shown, hidden = ("narrow", "wide") if width == 400 else ("wide", "narrow")
        assert not page.locator(f".drawing.{hidden} svg").first.is_visible()
        for found in page.locator(f".drawing.{shown} svg").evaluate_all(_DRAWINGS):
            assert min(found["width"], found["height"]) > 100
            assert 0 <= found["x"] <= found["x"] + found["width"] <= width
            assert found["count"] > 2
            assert found["clashes"] == []
            assert found["outside"] == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 254)" if scheme == "light" else "rgb(20, 24, 28)")
        paper = page.locator(f".drawing.{shown} svg path").first
        assert paper.evaluate("path => getComputedStyle(path).fill") == background


@pytest.mark.slow
def test_on_paper_nothing_is_hidden_in_a_scroll_box(browser, everything):
    """A4 with Chromium's margins is 718 pixels wide."""
    with _opened(browser, everything, 718) as page:
        page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
        assert page.locator(".filters").is_visible()
        page.emulate_media(media="print")
        assert page.evaluate("[...document.querySelectorAll('table, pre')].every(one => one.scrollWidth <= 718)")
        assert page.evaluate(_SCROLLED) == []
        assert not page.locator(".filters").is_visible()


@pytest.mark.slow
def test_tables_by_method_sort_separately(browser, early):
    with _opened(browser, early) as page:
        tables = page.locator("table.methods")
        tables.nth(1).locator("th", has_text="FLOPs").get_by_role("button").click()
        first, second = (
            [float(cell) for cell in table.locator("tbody td:nth-child(6)").all_inner_texts()] for table in tables.all()
        )
        assert second == sorted(second)
        assert first != sorted(first)
        assert page.locator("th[aria-sort]").count() == 1


def _column(page, name):
    """The texts of a column in the visible rows, from top to bottom."""
    return page.evaluate(
        """name => {
          const table = document.querySelector("table.networks");
          const column = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
          return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[column].textContent);
        }""",
        name,
    )


def test_the_table_sorts_by_mouse_and_keyboard_and_filters_by_words_and_role(browser, few):
    path, count = few
    with _opened(browser, path) as page:
        before = [float(text) for text in _column(page, "test")]
        head = page.locator("table.networks th", has_text="test")
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == "ascending"
        assert [float(text) for text in _column(page, "test")] == sorted(before)
        head.get_by_role("button").press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert [float(text) for text in _column(page, "test")] == sorted(before, reverse=True)
        page.locator("table.networks th", has_text="steps").get_by_role("button").press("Space")
        assert head.get_attribute("aria-sort") is None
        numbers = [int(text.replace(",", "")) for text in _column(page, "steps")]
        assert numbers == sorted(numbers)

        shown = page.locator(".filters output")
        assert shown.text_content() == f"{count:,} of {count:,}"
        page.get_by_label("Role").select_option("shuffled masks")
        roles = _column(page, "role")
        assert set(roles) == {"shuffled masks"}
        assert shown.text_content() == f"{len(roles)} of {count:,}"
        page.get_by_label("Filter").fill("MASKS fashion")
        assert {text.split(",")[0] for text in _column(page, "run")} == {"lenet-300-100 on fashion-mnist"}
        page.get_by_label("Filter").fill("no such thing")
        assert _column(page, "role") == []


@pytest.mark.slow
def test_without_scripts_the_table_is_there_and_the_tools_are_not(browser, few):
    path, count = few
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("table.networks tbody tr").count() == count
    assert page.locator("table.networks tbody tr").first.is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator("figure .downloads a").first.text_content() == "CSV"
    context.close()


def test_a_link_to_a_run_opens_it(browser, few):
    with _opened(browser, few[0]) as page:
        assert page.locator("details.run[open]").count() == 0
        page.locator("table.summary a").nth(1).click()
        page.locator("details.run[open]").wait_for()  # a click returns before the page handles it
        assert page.locator("details.run[open]").count() == 1
        assert page.locator("#run-2[open] #run-2-results").is_visible()


@pytest.mark.slow
def test_figures_and_their_data_can_be_saved(browser, tmp_path, everything):
    with _opened(browser, everything, scheme="dark") as page:
        saved = {}
        for kind in ("SVG", "CSV"):
            with page.expect_download() as caught:
                page.locator("#metric-by-density .downloads a", has_text=kind).click()
            assert caught.value.suggested_filename == f"metric-by-density.{kind.lower()}"
            caught.value.save_as(tmp_path / kind)
            saved[kind] = (tmp_path / kind).read_text(encoding="utf-8")
    assert ElementTree.fromstring(saved["SVG"]).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in saved["SVG"]
    assert COLOURS["ticket"] in saved["SVG"]
    assert saved["CSV"].startswith("run,role,level,density,n,statistic,mean,sd,low,high\n")
    assert len(saved["CSV"].splitlines()) == 2 + 9 * 4


def test_a_campaign_page_fits_a_phone(browser, tmp_path):
    """Its digests are 64 letters long, without a place to break."""
    path = tmp_path / "campaign.html"
    path.write_text(page_module.render_campaign(record(claim("better", "undecided"))), encoding="utf-8")
    with _opened(browser, path, 400) as page:
        assert page.locator("li", has_text="0" * 64).is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
