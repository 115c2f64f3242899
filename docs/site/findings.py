"""Fill published numbers into pages from research/findings.toml: `python docs/site/findings.py`.

A page names a number as `<!--= group.row.column -->` before it and `<!--/-->` after it, the regime of a group as
`<!--= group.regime -->`, and a whole table as `<!-- table group -->` before it and `<!-- end -->` after it; after the
group, columns may be chosen: `<!-- table group: method, d10 -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
NUMBER = re.compile(r"<!--= ([\w.-]+) -->(.*?)<!--/-->", re.DOTALL)
TABLE = re.compile(r"<!-- table ([\w-]+)(?:: ([\w, ]+))? -->\n.*?<!-- end -->", re.DOTALL)


def findings() -> dict[str, Any]:
    """Return the groups of research/findings.toml."""
    return tomllib.loads((ROOT / "research" / "findings.toml").read_text(encoding="utf-8"))


def pages() -> list[Path]:
    """Return the pages that take numbers from the findings."""
    candidates = [ROOT / "README.md", ROOT / "research" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in candidates if re.search(r"<!--= |<!-- table ", path.read_text(encoding="utf-8"))]


def number(groups: dict[str, Any], name: str) -> str:
    """Return the text of one number, or of a group's regime; KeyError for an unknown name."""
    group, *rest = name.split(".")
    if rest == ["regime"]:
        return str(groups[group]["regime"])
    row, column = rest
    return str(groups[group]["rows"][row][groups[group]["columns"].index(column)])


def table(groups: dict[str, Any], group: str, columns: str | None) -> str:
    """Return a group as a Markdown table."""
    found = groups[group]
    chosen = [found["columns"].index(one.strip()) for one in columns.split(",")] if columns else None
    places = range(len(found["columns"])) if chosen is None else chosen
    lines = [[found["headings"][place] for place in places], ["---" for _ in places]]
    lines += [[row[place] for place in places] for row in found["rows"].values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(text: str, groups: dict[str, Any]) -> str:
    """Return a page with every number and table taken from the findings."""
    text = NUMBER.sub(lambda match: f"<!--= {match[1]} -->{number(groups, match[1])}<!--/-->", text)

    def replaced(match: re.Match[str]) -> str:
        head = f"<!-- table {match[1]}{': ' + match[2] if match[2] else ''} -->"
        return f"{head}\n\n{table(groups, match[1], match[2])}\n\n<!-- end -->"

    return TABLE.sub(replaced, text)


if __name__ == "__main__":
    for path in pages():
        path.write_text(filled(path.read_text(encoding="utf-8"), findings()), encoding="utf-8")
