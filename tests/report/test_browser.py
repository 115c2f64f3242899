"""The report in a real browser, offline: it says nothing on the console, asks for nothing and fits its window."""

from __future__ import annotations

import shutil

import pytest

from ticketry.report import write_report

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no chromium or chrome on the PATH")

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


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=["three layers", "fifty layers", "no controls", "in progress", "perplexity"])
def report(request, tmp_path_factory, make_record, many_layers, partial_record):
    record = {
        "three layers": lambda: make_record(),
        "fifty layers": lambda: make_record(levels=12, shapes=many_layers),
        "no controls": lambda: make_record(levels=5, replicates=1, controls=()),
        "in progress": lambda: partial_record,
        "perplexity": lambda: make_record(metric=("perplexity", "", False)),
    }[request.param]()
    return write_report(record, tmp_path_factory.mktemp("report") / "report.html")


@pytest.fixture(params=[(400, "light"), (400, "dark"), (1400, "light"), (1400, "dark")], ids=str)
def opened(request, browser, report):
    """The page, its details open, and what was heard of it."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    heard, asked = [], []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    yield page, width, scheme
    context.close()
    assert heard == []
    assert asked == [report.as_uri()]


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


def test_no_text_of_a_figure_touches_another(opened):
    page, width, _ = opened
    for svg in page.locator(f".drawing.{'narrow' if width == 400 else 'wide'} svg").all():
        found = svg.evaluate(_CLASHES)
        assert found["count"] > 5
        assert found["clashes"] == []
        assert found["outside"] == []
