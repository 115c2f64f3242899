"""Pages, docstrings and comments follow the rules in `styles/`, which Vale reads too.

The part of Vale's format that these rules use is implemented here: `existence` (words that are not wanted),
`substitution` (a word for another) and `repetition` (a word said twice). Code, addresses of links and quoted titles are
not checked.
"""

from __future__ import annotations

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
"""Strings, which may have a # in them, or a comment. `ast` and `tokenize` take over ten times as long."""
_ARGUMENT = re.compile(r"^ +\w+(, \w+)*: ")
"""Names of arguments in a docstring."""


@dataclass(frozen=True)
class Rule:
    """One file of the style."""

    name: str
    message: str
    patterns: tuple[tuple[str, re.Pattern[str], str], ...]
    """Literal start of the pattern, the pattern of what is not wanted, and the word to use instead."""


def read_rules(folder: Path = STYLES) -> list[Rule]:
    """Read all rule files of a folder; raise `ValueError` for unknown keys, which would not be checked."""
    return [_read_rule(path) for path in sorted(folder.glob("*.yml"))]


def _read_rule(path: Path) -> Rule:
    rule: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    unknown = set(rule) - {"extends", "message", "level", "ignorecase", "tokens", "swap", "alpha"}
    if rule["extends"] not in KINDS or unknown:
        raise ValueError(f"{path.name}: {rule['extends']} {sorted(unknown)} is not implemented in tests/test_prose.py")
    if rule["extends"] == "repetition":
        pairs = [("", r"\b([a-z]{2,})(?: +| *\n)\1\b(?!-)", "")]
    else:
        wanted = rule.get("swap") or dict.fromkeys(rule["tokens"], "")
        pairs = [(_literal_start(one), rf"(?<![\w-])(?:{one})(?![\w-])", other) for one, other in wanted.items()]
    compiled = tuple((start, re.compile(pattern, re.IGNORECASE), instead) for start, pattern, instead in pairs)
    return Rule(path.stem, rule["message"], compiled)


def _literal_start(pattern: str) -> str:
    """Return the literal start of a pattern: most texts lack it, which is quick to check."""
    letters = re.match(r"[a-z]*(?![?*|])", pattern)
    return letters[0] if letters else ""


def violations(text: str, rules: list[Rule]) -> Iterator[tuple[int, str]]:
    """Yield (line, message) for each violation in a text, ignoring what is not prose."""
    prose = only_prose(text)
    lowered = prose.lower()
    for rule in rules:
        for start, pattern, instead in rule.patterns:
            for match in pattern.finditer(prose) if start in lowered else ():
                words = (instead, match[0]) if instead else (match[0],)
                yield prose.count("\n", 0, match.start()) + 1, f"{rule.name}: {rule.message % words}"


def only_prose(text: str) -> str:
    """Return the text with everything else blanked out, line by line."""
    for pattern in _NOT_PROSE:
        text = re.sub(pattern, lambda match: re.sub(r"[^\n]", "\x00", match[0]), text)
    return text


def prose_of(path: Path) -> str:
    """Return a Markdown file unchanged, and docstrings and comments of a Python file on their lines."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return source
    lines = [""] * (source.count("\n") + 2)
    for match in _COMMENT.finditer(source):
        number = source.count("\n", 0, match.start())
        before = source[source.rfind("\n", 0, match.start()) + 1 : match.start()]
        alone = not before.strip(" r")  # or it ends with its line
        if comment := match["comment"]:
            lines[number] += comment.lstrip("#").strip() + (" " if alone else "\x00")
        elif alone and match[1] == '"""':
            for offset, line in enumerate(match[0][3:-3].splitlines()):
                lines[number + offset] += _ARGUMENT.sub("", line) + " "
    return "\n".join(lines)


RULES = read_rules()
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
FILES = {
    "pages": [*PAGES, *(ROOT / "docs").rglob("*.md")],
    "code": [path for folder in ("docs/tutorials", "src", "examples") for path in (ROOT / folder).rglob("*.py")],
}


@pytest.mark.parametrize("kind", FILES)
def test_english(kind: str) -> None:
    assert FILES[kind]
    found = [
        f"{path.relative_to(ROOT)}:{line}: {message}"
        for path in sorted(FILES[kind])
        for line, message in violations(prose_of(path), RULES)
    ]
    assert not found, "\n".join(found)


def test_violations_are_found() -> None:
    for text, message in {
        "Simply call it.": "Hedges: 'Simply'",
        "The network behaves as\nas before.": "Repetition",
        "A Dataset of images": "'data set', not 'Dataset'",
        "its behavior": "'behaviour', not 'behavior'",
    }.items():
        ((line, found),) = violations(f"One line.\n\n{text}", RULES)
        assert message in found
        assert line == 3
    for text in (
        "`optimizer.step()` and ``color``",
        "```python\noptimizer = simply(behavior)\n```",
        '"Towards Optimizing Behavior", 2019',
        "[a link](https://example.org/dataset/simply)",
        "<!-- simply -->",
    ):
        assert not list(violations(text, RULES)), text


def test_docstrings_and_comments_are_read_on_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '"""Its behavior."""\n\ncolor = "gray"  # of a dataset\n\n\ndef f():\n    """One.\n\n    Simply two.\n    """\n'
    )
    found = [(line, message.partition(":")[0]) for line, message in violations(prose_of(file), RULES)]
    assert sorted(found) == [(1, "Spelling"), (3, "Terms"), (9, "Hedges")]


def test_unknown_rules_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Metric.yml").write_text("extends: metric\nmessage: too hard\nformula: 1\n")
    with pytest.raises(ValueError, match=re.escape("Metric.yml")):
        read_rules(tmp_path)


def test_terms_are_those_of_the_glossary() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text().lower()
    (terms,) = (rule for rule in RULES if rule.name == "Terms")
    other = {"data set", "hyper-parameter", "back-propagation", "pre-trained", "batch", "command line"}
    assert not [term for _, _, term in terms.patterns if term not in other and term not in glossary]
