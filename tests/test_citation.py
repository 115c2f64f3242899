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
