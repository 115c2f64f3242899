"""Published numbers are written once, in research/findings.toml, and every page has them from there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import findings  # noqa: E402

GROUPS = findings.findings()
PAGES = findings.pages()
RESULTS = [ROOT / "README.md", ROOT / "docs" / "papers.md", *sorted((ROOT / "docs" / "results").glob("*.md"))]


NOT_MEASURED = (
    r"```.*?```",
    r"`[^`]*`",
    r"\[\d{4}\.\d{5}\]\([^)]*\)",
    r"\]\([^)]*\)",
    r"Apache-2\.0",
    r"<!-- table .*?<!-- end -->",
    r"<!--= .*?<!--/-->",
    r"<[^>]+>",
    r"at \d+(\.\d+)? %",  # a density, which was set
    r"Python 3\.\d+",
)
"""What is no measured number, or is filled in from the findings."""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_have_the_numbers_of_the_findings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert findings.filled(text, GROUPS) == text, "python docs/site/findings.py fills them in"
    assert "\n<!--= " not in text, "a comment that begins a line ends the paragraph before it"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_measured_number_comes_from_the_findings(path: Path) -> None:
    """On pages of results and in README: a number with a decimal, an interval or a deviation is one of the findings."""
    text = path.read_text(encoding="utf-8")
    for pattern in NOT_MEASURED:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    assert not re.findall(r"[^\n]*(?<![\w.])[+-]?\d+\.\d+(?![.\w])[^\n]*", text)
    assert "±" not in text


def test_every_finding_has_a_place_and_a_log() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
    used = set(re.findall(r"<!--= ([\w-]+)\.", text)) | set(re.findall(r"<!-- table ([\w-]+)", text))
    assert set(GROUPS) == used
    for name, group in GROUPS.items():
        assert (ROOT / "research" / group["log"]).exists(), name
        assert len(group["regime"]) > 20, name
        assert all(len(row) == len(group["columns"]) == len(group["headings"]) for row in group["rows"].values()), name


def test_pages_are_filled() -> None:
    groups = {
        "g": {
            "regime": "here",
            "columns": ["a", "b"],
            "headings": ["A", "B"],
            "rows": {"r": ["x", "1.5"], "s": ["y", "2.5"]},
        }
    }
    page = "It is <!--= g.r.b -->0<!--/-->, <!--= g.regime -->?<!--/-->.\n\n<!-- table g: b -->\nold\n<!-- end -->\n"
    assert findings.filled(page, groups) == (
        "It is <!--= g.r.b -->1.5<!--/-->, <!--= g.regime -->here<!--/-->.\n\n"
        "<!-- table g: b -->\n\n| B |\n| --- |\n| 1.5 |\n| 2.5 |\n\n<!-- end -->\n"
    )
    with pytest.raises(KeyError):
        findings.filled("<!--= g.t.b -->0<!--/-->", groups)
