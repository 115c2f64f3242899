"""CITATION.cff says what the package says of itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from ticketry.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]


def test_the_citation_is_of_this_package() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    told = dict(re.findall(r"^([a-z-]+): (\S.*)$", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (told["title"], told["version"], told["license"]) == (project["name"], __version__, project["license"])
    assert [{"name": name} for name in re.findall(r"^  - name: (.+)$", text, re.MULTILINE)] == project["authors"]
    assert re.findall(r"^  - (?!name)(.+)$", text, re.MULTILINE) == project["keywords"]
    assert project["description"] in text


def test_the_release_is_dated_alike() -> None:
    """In the changes and in the citation; while its changes are unreleased, the citation has no date."""
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {re.escape(__version__)} \((.+)\)$", changes, re.MULTILINE)
    cited = re.findall(r"^date-released: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited == ([] if found == "unreleased" else [found])
    assert found == "unreleased" or re.fullmatch(r"\d{4}-\d\d-\d\d", found)
