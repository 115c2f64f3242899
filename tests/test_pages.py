"""Markdown pages: tables, lists, links, commands, named tests and published numbers."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from ticketry.cli import COMMANDS
from ticketry.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import commands_reference  # noqa: E402
import findings  # noqa: E402

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "research").glob("*.md")])
ITEM = re.compile(r"([-*]|\d+\.) ")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def each_page(test):
    return pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))(test)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def blocks(path: Path) -> list[tuple[int, list[str]]]:
    """Return first line number and lines of each paragraph, list or table, without code."""
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


def cells(row: str) -> list[str]:
    """Return the cells of a row of a table; an escaped bar does not end a cell."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


@each_page
def test_tables_and_lists(path: Path) -> None:
    """GitHub and MkDocs show them alike: full rows, headings, an empty line before a list."""
    for number, block in blocks(path):
        rows = [line for line in block if line.lstrip().startswith("|")]
        if rows:
            assert len(rows) == len(block), f"line {number}: an empty line is missing around a table"
            assert re.fullmatch(r"[|: -]+", rows[1].strip()), f"line {number}: no rule below the heading"
            wrong = [row for row in rows if len(cells(row)) != len(cells(rows[0]))]
            assert not wrong, f"line {number}: {len(cells(rows[0]))} cells in the heading, but {wrong}"
            assert "" not in cells(rows[0])[1:], f"line {number}: a column without a heading"
        elif not ITEM.match(block[0].lstrip()):
            assert not [line for line in block[1:] if ITEM.match(line.lstrip())], f"line {number}: list in a paragraph"


@each_page
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_tables_are_found() -> None:
    assert len(PAGES) > 60
    assert cells("| a | b \\| c |") == ["a", "b \\| c"]
    assert sum(block[0].startswith("|") for path in PAGES for _, block in blocks(path)) > 150


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(text: str) -> list[list[str]]:
    """Return the words of every line of a code block that begins with `ticketry`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    shell = [block for language, block in found if language in ("", "sh", "bash")]
    lines = [line for block in shell for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ticketry ")]


@cache
def options(command: str, kind: str) -> frozenset[str]:
    """Return the options of a command; of `search` and `store`, of one method or verb."""
    parser = commands_reference.parser(commands_reference.asked(command, (kind, "--help") if kind else ("--help",)))
    if command == "store":
        parser = dict(commands_reference._subcommands(parser))[kind]
    return frozenset(name for row in commands_reference.rows(parser) for name in row.names) | {"--help", "--help-all"}


def problems(words: list[str]) -> list[str]:
    """Return what is wrong with a command."""
    command, *rest = words
    if command.startswith("-"):
        return []
    if command not in COMMANDS:
        return [f"no command {command}"]
    kind = ""
    if command in ("search", "store"):
        first = rest[0] if rest and not rest[0].startswith("-") else "iterative"
        if first in ("METHOD", "movement"):  # movement: a method of the package in tests/plugin
            return []
        kind = {"imp": "iterative"}.get(first, first)
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return [f"{command} {kind} has no {name}" for name in given if name not in options(command, kind)]


def test_commands_of_pages_exist_with_their_options() -> None:
    shown = [words for path in PAGES if path.parent != ROOT / "research" for words in commands(path.read_text())]
    assert len(shown) > 60
    assert not {" ".join(words): what for words in shown if (what := problems(words))}
    page = "```\nticketry search imp --level 3  # none\nticketry lists\nticketry store check --repair\n```\n"
    assert [problems(words) for words in commands(page)] == [
        ["search iterative has no --level"],
        ["no command lists"],
        [],
    ]
    named = set(re.findall(r"--[a-z][a-z-]+", read("docs/engine.md")))
    assert named <= set().union(*(options(command, "") for command in ("compile", "bench", "export")))


# -- named tests -------------------------------------------------------------------------------------------------------


@cache
def functions_and_constants(path: Path) -> tuple[set[str], set[object]]:
    nodes = [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    constants = {node.value for node in nodes if isinstance(node, ast.Constant)}
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}, constants


def test_rows_of_optimisers_name_tests_that_exist() -> None:
    rows = [
        line.strip("|").split("|")
        for line in read("docs/optimisers.md").splitlines()
        if line.startswith("|") and "`test_" in line
    ]
    assert len({row[0] for row in rows}) == len(rows) >= 30
    files = {path.stem: path for path in (ROOT / "tests").glob("*/**/test_*.py")}
    for row in rows:
        tests = re.findall(r"`(test_\w+)(?:\.(test_\w+)|\[([\w-]+)\])`", row[-1])
        assert len(tests) == row[-1].count("`") / 2, row
        for file, function, optimizer in tests:
            functions, constants = functions_and_constants(files[file])
            assert (optimizer in constants) if optimizer else (function in functions)
    shown = " ".join(row[0] for row in rows).replace("-", "").lower()
    kinds = [kind for kind in vars(torch.optim).values() if isinstance(kind, type)]
    for kind in kinds:
        if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer:
            assert re.search(rf"\b{kind.__name__.lower()}\b", shown), kind


# -- published numbers -------------------------------------------------------------------------------------------------

GROUPS = findings.findings()
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
"""Text without measured numbers, and numbers that are filled in from research/findings.toml."""


@pytest.mark.parametrize("path", findings.pages(), ids=lambda path: path.stem)
def test_pages_have_the_numbers_of_the_findings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert findings.filled(text, GROUPS) == text, "python docs/site/findings.py fills them in"
    assert "\n<!--= " not in text, "a comment that begins a line ends the paragraph before it"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_measured_number_comes_from_the_findings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for pattern in NOT_MEASURED:
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    assert not re.findall(r"[^\n]*(?<![\w.])[+-]?\d+\.\d+(?![.\w])[^\n]*", text)
    assert "±" not in text


def test_every_finding_is_used_and_has_a_log() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in findings.pages())
    assert set(GROUPS) == {*re.findall(r"<!--= ([\w-]+)\.", text), *re.findall(r"<!-- table ([\w-]+)", text)}
    for name, group in GROUPS.items():
        assert (ROOT / "research" / group["log"]).exists(), name
        assert len(group["regime"]) > 20, name
        assert all(len(row) == len(group["columns"]) == len(group["headings"]) for row in group["rows"].values()), name


def test_findings_are_filled_in() -> None:
    rows = {"r": ["x", "1.5"], "s": ["y", "2.5"]}
    groups = {"g": {"regime": "here", "columns": ["a", "b"], "headings": ["A", "B"], "rows": rows}}
    page = "It is <!--= g.r.b -->0<!--/-->, <!--= g.regime -->?<!--/-->.\n\n<!-- table g: b -->\nold\n<!-- end -->\n"
    assert findings.filled(page, groups) == (
        "It is <!--= g.r.b -->1.5<!--/-->, <!--= g.regime -->here<!--/-->.\n\n"
        "<!-- table g: b -->\n\n| B |\n| --- |\n| 1.5 |\n| 2.5 |\n\n<!-- end -->\n"
    )
    with pytest.raises(KeyError):
        findings.filled("<!--= g.t.b -->0<!--/-->", groups)


def test_the_citation_agrees_with_the_package() -> None:
    text, changes = read("CITATION.cff"), read("CHANGELOG.md")
    entries = dict(re.findall(r"^([a-z-]+): (\S.*)$", text, re.MULTILINE))
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert (entries["title"], entries["version"], entries["license"]) == (
        project["name"],
        __version__,
        project["license"],
    )
    (released,) = re.findall(rf"^## {re.escape(__version__)} \((.+)\)$", changes, re.MULTILINE)
    assert entries.get("date-released", "unreleased") == released
