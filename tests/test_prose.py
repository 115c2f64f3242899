"""Every page, docstring and comment keeps to the rules of `styles/`, which Vale reads too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prose import ROOT, STYLES, found, only_prose, prose_of, rules

RULES = rules()
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY", "CHANGELOG")]
FILES = {
    "pages": [*PAGES, *(ROOT / "docs").rglob("*.md")],
    "tutorials": [*(ROOT / "docs" / "tutorials").glob("*.py")],
    "package": [*(ROOT / "src").rglob("*.py")],
    "examples": [*(ROOT / "examples").rglob("*.py")],
}


@pytest.mark.parametrize("kind", FILES)
def test_english(kind: str) -> None:
    assert FILES[kind]
    told = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted(FILES[kind])
        for line, what in found(prose_of(path), RULES)
    ]
    assert not told, "\n".join(told)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("Simply call it.", "Hedges: 'Simply'"),
        ("The network behaves as\nas before.", "Repetition"),
        ("A Dataset of images", "'data set', not 'Dataset'"),
        ("at each rewind point", "'rewind step', not 'rewind point'"),
        ("its behavior", "'behaviour', not 'behavior'"),
        ("prior to that", "'before', not 'prior to'"),
    ],
)
def test_what_is_found(text: str, what: str) -> None:
    ((line, told),) = found(f"One line.\n\n{text}", RULES)
    assert what in told
    assert line == 3


@pytest.mark.parametrize(
    "text",
    [
        "`optimizer.step()` and ``color``",
        "```python\noptimizer = simply(behavior)\n```",
        '"Towards Optimizing Behavior", 2019',
        "[a link](https://example.org/dataset/simply)",
        "the data set, its behaviour; simplify it",
        "<!-- simply -->",
    ],
)
def test_what_is_no_prose(text: str) -> None:
    assert not list(found(text, RULES))


def test_lines_stay_where_they_are() -> None:
    text = "one\n```\ntwo\n```\n`three`\nfour"
    assert only_prose(text).count("\n") == text.count("\n")
    assert only_prose(text).splitlines()[-1] == "four"


def test_python_is_read_where_it_is_prose(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(
        '"""Its behavior."""\n\ncolor = "gray"  # of a dataset\n\n\ndef f():\n    """One.\n\n    Simply two.\n    """\n'
    )
    told = [(line, what.partition(":")[0]) for line, what in found(prose_of(file), RULES)]
    assert sorted(told) == [(1, "Spelling"), (3, "Terms"), (9, "Hedges")]


def test_rules_that_nothing_would_check_are_refused(tmp_path: Path) -> None:
    (tmp_path / "Metric.yml").write_text("extends: metric\nmessage: too hard\nformula: 1\n")
    with pytest.raises(ValueError, match=re.escape("Metric.yml")):
        rules(tmp_path)


def test_vale_is_told_of_the_same_folder() -> None:
    told = (ROOT / ".vale.ini").read_text()
    assert (ROOT / re.search(r"StylesPath = (\w+)", told)[1] / re.search(r"BasedOnStyles = (\w+)", told)[1]) == STYLES  # type: ignore[index]


def test_words_of_the_rules_are_those_of_the_glossary() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text().lower()
    (terms,) = (rule for rule in RULES if rule.name == "Terms")
    other = {"data set", "hyper-parameter", "back-propagation", "pre-trained", "batch", "command line"}
    told = {instead for _, _, instead in terms.patterns} - other
    assert not [term for term in told if term not in glossary]
