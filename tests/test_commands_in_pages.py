"""Commands that pages show exist, with the options that pages give them."""

from __future__ import annotations

import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest

from ticketry.cli import COMMANDS
from ticketry.search import METHODS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs" / "site"))

import commands_reference  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTSIDE = {"movement"}
"""Methods of the package in tests/plugin."""


def commands(text: str) -> list[list[str]]:
    """Return the words of every line of a code block that begins with `ticketry`."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    plain = [block for language, block in blocks if language in ("", "sh", "bash")]
    lines = [line for block in plain for line in block.replace("\\\n", " ").splitlines()]
    found = [shlex.split(line, comments=True) for line in lines if line.startswith("ticketry ")]
    return [words[1:] for words in found]


@cache
def options(command: str, kind: str) -> frozenset[str]:
    """Return the options of a command; of `search` and `store`, of one method or verb."""
    words = (kind, "--help") if kind else ("--help",)
    made = commands_reference.parser(commands_reference.asked(command, words))
    if command == "store":
        made = dict(commands_reference._subcommands(made))[kind]
    return frozenset(name for row in commands_reference.rows(made) for name in row.names) | {"--help", "--help-all"}


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
        if first == "METHOD" or first in OUTSIDE:
            return []
        kind = {"imp": "iterative"}.get(first, first)
    given = [word.partition("=")[0] for word in rest if word.startswith("--")]
    return [f"{command} {kind} has no {name}" for name in given if name not in options(command, kind)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_of_a_page(path: Path) -> None:
    wrong = {" ".join(words): problems(words) for words in commands(path.read_text(encoding="utf-8"))}
    assert not {line: what for line, what in wrong.items() if what}


def test_the_example_of_the_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "comparison.md").read_text(), re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out == "0.5\n"
    assert "print(mask.density)  # 0.5" in code


def test_what_is_found() -> None:
    page = "```\nticketry search imp --level 3  # none\nticketry lists\nticketry store check --repair\n```\n"
    found = [problems(words) for words in commands(page)]
    assert found == [["search iterative has no --level"], ["no command lists"], []]
    assert sum(len(commands(path.read_text(encoding="utf-8"))) for path in PAGES) > 60
    assert "iterative" in METHODS
