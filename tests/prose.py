"""Check a text against the rule files in `styles/`: the part of Vale's format that they use.

`existence` (words that are not wanted), `substitution` (a word for another) and `repetition` (a word said twice), in
the prose of Markdown and of Python's docstrings and comments; code, links' addresses and quoted titles are no prose.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install 'ticketry[docs]'")

ROOT = Path(__file__).resolve().parent.parent
STYLES = ROOT / "styles" / "ticketry"
KINDS = ("existence", "substitution", "repetition")

_NOT_PROSE = (
    r"(?ms)^ *(`{3,}|~{3,}).*?^ *\1\s*$",  # blocks of code
    r"(?s)<!--.*?-->",
    r"``.+?``",
    r"`[^`]*`",
    r"(?<=\])\([^)\s]*\)",  # where a link leads
    r"<[^<>\n]+>",
    r"https?://\S+",
    r'"[^"]{3,200}"',  # titles, as their authors spell them
    r"“[^”]{3,200}”",
    r"(?m)^\s*>>>.*$|^\s*\.\.\. .*$",
    r"(?m)^ {4,}[\w.]+( = .+|\(.*\))$",  # statements in indented blocks
)
_COMMENT = re.compile(
    r'''(?s)("""|\'\'\')(?:\\.|.)*?\1|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|(?P<comment>\#[^\n]*)'''
)
"""Strings, which may have a # in them, or a comment. `tokenize` takes over ten times as long."""
_ARGUMENT = re.compile(r"^ +\w+(, \w+)*: ")
"""Names of arguments in a docstring."""


@dataclass(frozen=True)
class Rule:
    """One file of the style."""

    name: str
    kind: str
    message: str
    patterns: tuple[tuple[str, re.Pattern[str], str], ...]
    """How it begins, in small letters, what is not wanted, and what is instead, if that is said."""


def rules(folder: Path = STYLES) -> list[Rule]:
    """All rule files of a folder; raise `ValueError` for unknown keys, which would not be checked."""
    return [_rule(path) for path in sorted(folder.glob("*.yml"))]


def _rule(path: Path) -> Rule:
    told: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(told) - {"extends", "message", "level", "ignorecase", "tokens", "swap", "alpha"}
    if told["extends"] not in KINDS or unknown:
        raise ValueError(f"{path.name}: {told['extends']} {sorted(unknown)} is not understood by tests/prose.py")
    if told["extends"] == "repetition":
        pairs = [("", r"\b([a-z]{2,})(?: +| *\n)\1\b(?!-)", "")]
    else:
        wanted = told.get("swap") or dict.fromkeys(told["tokens"], "")
        pairs = [(_begins(one), rf"(?<![\w-])(?:{one})(?![\w-])", instead) for one, instead in wanted.items()]
    compiled = tuple((begins, re.compile(pattern, re.IGNORECASE), instead) for begins, pattern, instead in pairs)
    return Rule(path.stem, told["extends"], told["message"], compiled)


def _begins(pattern: str) -> str:
    """Return the literal start of a pattern: most texts lack it, which is quick to check."""
    letters = re.match(r"[a-z]*(?![?*|])", pattern)
    return letters[0] if letters else ""


def found(text: str, by: list[Rule]) -> Iterator[tuple[int, str]]:
    """Yield (line, message) for each violation in a text, ignoring what is not prose."""
    prose = only_prose(text)
    lowered = prose.lower()
    for rule in by:
        for begins, pattern, instead in rule.patterns:
            for match in pattern.finditer(prose) if begins in lowered else ():
                words = (instead, match[0]) if instead else (match[0],)
                yield prose.count("\n", 0, match.start()) + 1, f"{rule.name}: {rule.message % words}"


def only_prose(text: str) -> str:
    """The text with everything else blanked out, line by line."""
    for pattern in _NOT_PROSE:
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", "\x00", match[0]), text)
    return text


def prose_of(path: Path) -> str:
    """Return a Markdown file unchanged, and docstrings and comments of a Python file on their lines."""
    text = path.read_text(encoding="utf-8")
    return _told_in(text) if path.suffix == ".py" else text


def _told_in(source: str) -> str:
    lines = [""] * (source.count("\n") + 2)
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for offset, line in enumerate(node.value.value.splitlines()):
                lines[node.lineno - 1 + offset] += _ARGUMENT.sub("", line) + " "
    for match in _COMMENT.finditer(source):
        if comment := match["comment"]:
            before = source[source.rfind("\n", 0, match.start()) + 1 : match.start()]
            alone = not before.strip()  # or it ends with its line
            number = source.count("\n", 0, match.start())
            lines[number] += comment.lstrip("#").strip() + (" " if alone else "\x00")
    return "\n".join(lines)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements in it, without the expressions, which are most of what `ast.walk` goes through."""
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(node, field, ())
        for one in inner if isinstance(inner, list) else ():
            yield one
            yield from _statements(one)
