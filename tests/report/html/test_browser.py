"""The report in a real browser, offline: it says nothing on the console, asks for nothing and fits its window."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from browsers import NEEDS_BROWSER, launched, listened_to
from report.made_campaign import claim, record
from ticketry.report import write_report
from ticketry.report.figures.style import COLOURS
from ticketry.report.html.page import render_campaign

pytestmark = NEEDS_BROWSER

_CLASHES = """
svg => {
  const frame = svg.getBoundingClientRect();
  const boxes = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const outside = boxes.filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1
                                       || b.top < frame.top - 1 || b.bottom > frame.bottom + 1);
  const clashes = boxes.flatMap(([one, a], i) => boxes.slice(i + 1).filter(([, b]) =>
    a.left < b.right && b.left < a.right && a.top + 2 < b.bottom && b.top + 2 < a.bottom).map(([two]) => [one, two]));
  return {outside: outside.map(([text]) => text), clashes, count: boxes.length};
}
"""

_SCROLLED = """
[...document.querySelectorAll(".scroll, pre")].filter(
  one => one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight + 1
).map(one => one.textContent.slice(0, 80))
"""


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


_SLOW = pytest.mark.slow
_REPORTS = ["everything"]
_MORE_REPORTS = ["fifty layers", "three layers", "no controls", "in progress", "perplexity"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory, full_record, make_verify, make_stability):
    path = tmp_path_factory.mktemp("everything") / "report.html"
    return write_report(full_record, path, evidence=[make_verify(), make_stability()])


@pytest.fixture(scope="module", params=[*_REPORTS, *(pytest.param(name, marks=_SLOW) for name in _MORE_REPORTS)])
def report(request, tmp_path_factory, make_record, many_layers, partial_record):
    if request.param == "everything":
        return request.getfixturevalue("everything")
    record = {
        "three layers": lambda: make_record(),
        "fifty layers": lambda: make_record(levels=12, shapes=many_layers),
        "no controls": lambda: make_record(levels=5, replicates=1, controls=()),
        "in progress": lambda: partial_record,
        "perplexity": lambda: make_record(metric=("perplexity", "", False)),
    }[request.param]()
    return write_report(record, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, rewind_runs, many_layers, make_record):
    """Five runs of two tasks with 1,041 networks."""
    runs = [
        *rewind_runs,
        make_record(levels=20, replicates=9, controls=("shuffled", "random_prune"), shapes=many_layers),
    ]
    runs[-1]["run"], runs[-1]["task"]["name"] = "oneshot-" + "a-very-long-name-" * 6, "cifar10"
    path = write_report(runs, tmp_path_factory.mktemp("comparison") / "report.html")
    return path, sum(len(run["points"]) for run in runs)


@pytest.fixture(scope="module")
def few(tmp_path_factory, rewind_runs, make_record):
    """The same of runs with few networks, which are drawn in a moment."""
    runs = [rewind_runs[0], make_record(levels=2, replicates=2, controls=("shuffled", "random_prune"))]
    runs[-1]["run"], runs[-1]["task"]["name"] = "oneshot", "cifar10"
    path = write_report(runs, tmp_path_factory.mktemp("few") / "report.html")
    return path, sum(len(run["points"]) for run in runs)


def _open(browser, path, width=1400, scheme="light"):
    """A page and lists of what it says and asks for, which fill as it goes."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, accept_downloads=True
    )
    page = context.new_page()
    heard, asked = listened_to(page)
    page.goto(path.as_uri())
    return page, heard, [url for url in asked if not url.startswith("data:image/png;")]


_WINDOWS = [
    pytest.param(width, scheme, id=f"{width}-{scheme}", marks=marks)
    for width, scheme, marks in [
        (400, "light", ()),
        (1400, "dark", ()),
        (400, "dark", _SLOW),
        (1400, "light", _SLOW),
    ]
]


@pytest.fixture
def opened(browser, report, width, scheme):
    """The page, its details open; at the end it has said nothing and asked for nothing but itself."""
    page, heard, asked = _open(browser, report, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    yield page, width, scheme
    page.context.close()
    assert heard == []
    assert asked == [report.as_uri()]


@pytest.mark.parametrize(("width", "scheme"), _WINDOWS)
def test_it_can_be_seen_and_fits(opened):
    page, width, scheme = opened
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.get_by_role("heading", level=1).is_visible()
    assert page.locator("#results table").first.is_visible()
    shown, hidden = ("narrow", "wide") if width == 400 else ("wide", "narrow")
    for name in ("metric-by-density", "density-by-layer"):
        box = page.locator(f"#{name} .{shown} svg").bounding_box()
        assert min(box["width"], box["height"]) > 100
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert not page.locator(f"#{name} .{hidden} svg").is_visible()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(255, 255, 254)" if scheme == "light" else "rgb(20, 24, 28)")
    paper = page.locator(f"#metric-by-density .{shown} svg path").first
    assert paper.evaluate("path => getComputedStyle(path).fill") == background


def _assert_nothing_touches(page, width):
    for svg in page.locator(f".drawing.{'narrow' if width == 400 else 'wide'} svg").all():
        found = svg.evaluate(_CLASHES)
        assert found["count"] > 2
        assert found["clashes"] == []
        assert found["outside"] == []


@pytest.mark.parametrize(("width", "scheme"), _WINDOWS)
def test_no_text_of_a_figure_touches_another(opened):
    page, width, _ = opened
    _assert_nothing_touches(page, width)


def test_on_paper_nothing_is_hidden_in_a_scroll_box(browser, report):
    """A4 with Chromium's margins is 718 pixels wide."""
    page, heard, _ = _open(browser, report, 718)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.locator(".filters").is_visible()
    page.emulate_media(media="print")
    assert page.evaluate("[...document.querySelectorAll('table, pre')].every(one => one.scrollWidth <= 718)")
    assert page.evaluate(_SCROLLED) == []
    assert not page.locator(".filters").is_visible()
    page.context.close()
    assert heard == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "scheme"), [_WINDOWS[0], *(pytest.param(*one.values, marks=_SLOW) for one in _WINDOWS[1:])]
)
def test_a_comparison_of_a_thousand_networks_fits(browser, comparison, width, scheme):
    path, count = comparison
    assert count > 1000
    assert path.stat().st_size < 5_000_000
    page, heard, asked = _open(browser, path, width, scheme)
    assert page.locator("details.run[open]").count() == 0
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("table.networks tbody tr").count() == count
    _assert_nothing_touches(page, width)
    page.context.close()
    assert heard == []
    assert asked == [path.as_uri()]


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    """Three runs of early pruning and its rivals."""
    runs = json.loads((Path(__file__).parent.parent / "data" / "early_runs.json").read_text())
    return write_report(runs, tmp_path_factory.mktemp("early") / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), _WINDOWS)
def test_moments_and_costs_fit(browser, early, width, scheme):
    page, heard, asked = _open(browser, early, width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shown = "narrow" if width == 400 else "wide"
    for name in ("run-1-moment", "run-1-metric-by-whole-cost", "task-1-metric-by-whole-cost"):
        assert page.locator(f"#{name} .{shown} svg").is_visible()
    _assert_nothing_touches(page, width)
    page.context.close()
    assert heard == []
    assert asked == [early.as_uri()]


@pytest.mark.slow
def test_tables_by_method_sort_each_by_itself(browser, early):
    page, heard, _ = _open(browser, early)
    tables = page.locator("table.methods")
    tables.nth(1).locator("th", has_text="FLOPs").get_by_role("button").click()
    first, second = (
        [float(cell) for cell in table.locator("tbody td:nth-child(6)").all_inner_texts()] for table in tables.all()
    )
    assert second == sorted(second)
    assert first != sorted(first)
    assert page.locator("th[aria-sort]").count() == 1
    page.context.close()
    assert heard == []


def _column(page, name):
    """What the rows that are shown say in a column, from top to bottom."""
    return page.evaluate(
        """name => {
          const table = document.querySelector("table.networks");
          const column = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === name);
          return [...table.tBodies[0].rows].filter(row => !row.hidden).map(row => row.cells[column].textContent);
        }""",
        name,
    )


def test_the_table_sorts_by_mouse_and_keyboard(browser, few):
    page, heard, _ = _open(browser, few[0])
    before = _column(page, "test")
    head = page.locator("table.networks th", has_text="test")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in _column(page, "test")] == sorted(float(text) for text in before)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in _column(page, "test")] == sorted((float(text) for text in before), reverse=True)
    page.locator("table.networks th", has_text="steps").get_by_role("button").press("Space")
    assert head.get_attribute("aria-sort") is None
    numbers = [int(text.replace(",", "")) for text in _column(page, "steps")]
    assert numbers == sorted(numbers)
    page.locator("table.networks th", has_text="role").get_by_role("button").click()
    assert _column(page, "role") == sorted(_column(page, "role"))
    page.context.close()
    assert heard == []


def test_the_table_filters_by_words_and_role(browser, few):
    path, count = few
    page, heard, _ = _open(browser, path)
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
    page.get_by_label("Filter").fill("")
    page.get_by_label("Role").select_option("")
    assert shown.text_content() == f"{count:,} of {count:,}"
    page.context.close()
    assert heard == []


@pytest.mark.slow
def test_without_scripts_the_table_is_there_and_the_tools_are_not(browser, comparison):
    path, count = comparison
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("table.networks tbody tr").count() == count
    assert page.locator("table.networks tbody tr").first.is_visible()
    assert not page.locator(".filters").is_visible()
    assert page.locator("figure .downloads a").first.text_content() == "CSV"
    context.close()


@pytest.mark.slow
def test_a_link_to_a_run_opens_it(browser, comparison):
    page, heard, _ = _open(browser, comparison[0])
    page.locator("table.summary a").nth(1).click()
    page.locator("details.run[open]").wait_for()  # a click returns before the page has heard where it leads
    assert page.locator("details.run[open]").count() == 1
    assert page.locator("#run-2[open] #run-2-results").is_visible()
    page.context.close()
    assert heard == []


def test_figures_and_their_data_can_be_saved(browser, tmp_path, everything):
    page, heard, _ = _open(browser, everything, scheme="dark")
    for kind, check in (("SVG", _is_drawing), ("CSV", _is_table)):
        with page.expect_download() as caught:
            page.locator("#metric-by-density .downloads a", has_text=kind).click()
        assert caught.value.suggested_filename == f"metric-by-density.{kind.lower()}"
        caught.value.save_as(tmp_path / kind)
        check((tmp_path / kind).read_text(encoding="utf-8"))
    page.context.close()
    assert heard == []


def _is_drawing(text):
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    assert COLOURS["ticket"] in text


def _is_table(text):
    assert text.startswith("run,role,level,density,n,statistic,mean,sd,low,high\n")
    assert len(text.splitlines()) == 2 + 9 * 4


def test_a_campaign_page_fits_a_phone(browser, tmp_path):
    """Its digests are 64 letters long, without a place to break."""
    path = tmp_path / "campaign.html"
    path.write_text(render_campaign(record(claim("better", "undecided"))), encoding="utf-8")
    page, heard, _ = _open(browser, path, 400)
    assert page.locator("li", has_text="0" * 64).is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.context.close()
    assert heard == []
