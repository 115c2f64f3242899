"""The documentation site: it builds without a warning, is complete and loads nothing from other hosts."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from browsers import NEEDS_BROWSER, launched
from ticketry.cli import COMMANDS
from ticketry.experiments.options import LabOptions
from ticketry.search import methods

ROOT = Path(__file__).parent.parent
TUTORIALS = ROOT / "docs" / "tutorials"
NEEDED = {"a-timm-network": ("timm",), "on-a-cluster": ("distributed",)}
"""Tutorial -> further packages that it imports."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'ticketry[docs]'")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed: pip install 'ticketry[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


class Outside(HTMLParser):
    """Collect what a page loads from other hosts, its links and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: set[str] = set()
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = dict(attributes)
        self.anchors |= {value for name in ("id", "name") if (value := told.get(name))}
        if tag == "a" and (target := told.get("href")):
            self.links.add(target)
        for name in ("src", "href") if tag != "a" else ():
            if (told.get(name) or "").startswith(("http", "//")) and told.get("rel") != "canonical":
                self.found.append(f"{tag} {told[name]}")


@pytest.mark.slow
def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        reader = Outside()
        reader.feed(page.read_text(encoding="utf-8"))
        assert not reader.found, page


@pytest.mark.slow
def test_no_link_is_broken(site: Path) -> None:
    pages: dict[Path, Outside] = {}
    for path in site.rglob("*.html"):
        pages[path] = Outside()
        pages[path].feed(path.read_text(encoding="utf-8"))
    broken = []
    for path, page in pages.items():
        for link in page.links:
            told = urlsplit(link)
            if told.scheme or told.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(told.path))) if told.path else path
            anchors = pages[target].anchors if target in pages else set()
            if not target.exists() or (told.fragment and unquote(told.fragment) not in anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert sum(len(page.links) for page in pages.values()) > 5000
    assert not broken


@pytest.mark.slow
def test_scores_that_are_a_formula_have_the_signature_of_a_score(site: Path) -> None:
    page = (site / "reference" / "python-score.html").read_text(encoding="utf-8")
    for name in ("taylor", "fisher", "snip", "grasp"):
        (entry,) = re.findall(rf'id="ticketry\.core\.score\.(?:\w+\.)?{name}".*?</code></pre>', page, re.DOTALL)
        signature = re.sub(r"<[^>]+>|\s", "", entry)
        assert "scope:Scope" in signature, signature
        assert "at:Mask|None=None" in signature


@pytest.mark.slow
def test_every_command_and_option_has_a_place(site: Path) -> None:
    for command in COMMANDS:
        page = (site / "reference" / f"command-{command}.html").read_text(encoding="utf-8")
        assert "<td></td>" not in page, f"an option of {command} has no words"
    store = (site / "reference" / "command-store.html").read_text(encoding="utf-8")
    for asked in ("check", "gc", "du", "mv", "copy", "pack", "unpack"):  # each has options of its own
        assert f'id="ticketry-store-{asked}"' in store
    assert "--grace-seconds" in store
    search = (site / "reference" / "command-search.html").read_text(encoding="utf-8")
    search = re.sub(r'<span class="option">([^<]*)</span>', r"\1", search)  # what keeps a name in one line
    for field in dataclasses.fields(LabOptions):
        assert f"<code>--{field.name.replace('_', '-')}</code>" in search
    for name, method in methods().items():
        assert f'id="{name}"' in search
        for field in dataclasses.fields(method.Settings):
            assert f"--{field.name.replace('_', '-')}" in search, (name, field.name)


@pytest.mark.slow
@NEEDS_BROWSER
def test_pages_fit_a_phone_and_a_desk(site: Path) -> None:
    """Tables, code and figures scroll; no page is wider than the window."""
    wide = []
    with launched() as browser:
        for width in (400, 1400):
            page = browser.new_page(viewport={"width": width, "height": 1000})
            for path in sorted(site.rglob("*.html")):
                page.goto(path.as_uri(), wait_until="domcontentloaded")
                over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                wide += [f"{path.relative_to(site)}: {over} px at {width}"] if over > 0 else []
    assert not wide


@pytest.mark.slow
def test_it_can_be_searched_without_a_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    for words in ("lottery ticket", "--checkpoint-seconds", "confidence interval"):
        assert words in index


@pytest.mark.parametrize("source", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_notebooks_are_their_sources(source: Path) -> None:
    cells = json.loads(source.with_suffix(".ipynb").read_text())["cells"]
    written = source.read_text()
    for cell in cells:
        for line in "".join(cell["source"]).splitlines():
            assert (f"# {line}".rstrip() if cell["cell_type"] == "markdown" else line) in written
    code = [line for line in written.splitlines() if line.strip() and not line.startswith("#")]
    assert code == [
        line
        for cell in cells
        if cell["cell_type"] == "code"
        for line in "".join(cell["source"]).splitlines()
        if line.strip() and not line.startswith("#")
    ]
    assert any(cell.get("outputs") for cell in cells)


def test_every_page_is_in_the_navigation() -> None:
    told = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in told, page


def test_every_tutorial_is_listed() -> None:
    listed = re.findall(r"\]\(([\w-]+)\.ipynb\)", (TUTORIALS / "README.md").read_text())
    assert sorted(listed) == sorted(path.stem for path in TUTORIALS.glob("*.py"))


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a guard against hanging: on a shared machine any cell may take minutes
@pytest.mark.parametrize("source", sorted(TUTORIALS.glob("*.py")), ids=lambda path: path.stem)
def test_tutorials_run(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("jupytext", "nbclient", "ipykernel"):
        pytest.importorskip(module, reason=f"{module} is not installed: pip install 'ticketry[docs]'")
    for module in NEEDED.get(source.stem, ()):
        if subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode:
            pytest.skip(f"{module} does not load: pip install 'ticketry[timm,dask]'")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    import notebooks

    again = notebooks.executed(source)  # a cell that fails raises
    assert sum(bool(cell.get("outputs")) for cell in again.cells) == sum(
        bool(cell.get("outputs")) for cell in json.loads(source.with_suffix(".ipynb").read_text())["cells"]
    )
