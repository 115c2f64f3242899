"""Pages are Markdown that every reader of it understands alike: GitHub, the documentation site, an editor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "research").glob("*.md")])
ITEM = re.compile(r"([-*]|\d+\.) ")


def blocks(path: Path) -> list[tuple[int, list[str]]]:
    """What stands between empty lines, outside of code: the number of its first line, and its lines."""
    found: list[tuple[int, list[str]]] = []
    code, fresh = False, True
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.lstrip().startswith("```")
        if fence or code or not line.strip():
            code ^= fence
            fresh = True
        elif fresh:
            found.append((number, [line]))
            fresh = False
        else:
            found[-1][1].append(line)
    return found


def cells(row: str) -> int:
    """Cells of a table's row: what is between its bars, but for bars that are written as such."""
    return len(re.findall(r"(?<!\\)\|", row.strip())) - 1


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rows_of_a_table_have_as_many_cells_as_its_heading(path: Path) -> None:
    for number, block in blocks(path):
        rows = [line for line in block if line.lstrip().startswith("|")]
        if rows:
            assert len(rows) == len(block), f"line {number}: an empty line is missing around a table"
            assert re.fullmatch(r"[|: -]+", rows[1].strip()), f"line {number}: the second line of a table is its rule"
            wrong = [row for row in rows if cells(row) != cells(rows[0])]
            assert not wrong, f"line {number}: {cells(rows[0])} cells in the heading, but {wrong}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lists_begin_after_an_empty_line(path: Path) -> None:
    """Else the site shows their hyphens within the paragraph before, where GitHub shows a list."""
    for number, block in blocks(path):
        if not ITEM.match(block[0].lstrip()):
            assert not [line for line in block[1:] if ITEM.match(line.lstrip())], f"line {number}"


def test_they_are_found() -> None:
    assert len(PAGES) > 60
    assert cells("| a | b \\| c |") == 2
    assert (
        sum(len([line for line in block if line.startswith("|")]) > 1 for path in PAGES for _, block in blocks(path))
        > 150
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_columns_have_headings(path: Path) -> None:
    """All but the first, whose rows say what they are."""
    for number, block in blocks(path):
        if block[0].lstrip().startswith("|"):
            assert "" not in [cell.strip() for cell in block[0].strip().strip("|").split("|")[1:]], f"line {number}"
