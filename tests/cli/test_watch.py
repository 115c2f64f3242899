"""`ticketry report --watch` beside a search in a process of its own, in a real browser."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsers import NEEDS_BROWSER, launched, listened_to
from cli.calling import call

_SEARCH = shlex.split("search iterative --task digits --levels 2 --replicates 1 --recipe.length 2000it --workers 0")


@pytest.fixture
def search(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that runs."""
    command = [sys.executable, "-m", "ticketry", *_SEARCH, "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process
        process.kill()


@pytest.fixture
def watching(tmp_path: Path, search: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[str]]:
    """The command, beside a search that has told something."""
    _until(lambda: any((tmp_path / "store").glob("live/*/progress.json")))
    command = [sys.executable, "-m", "ticketry", "report", "--watch", "--store", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def page() -> Iterator[Any]:
    with launched() as browser:
        yield browser.new_page(viewport={"width": 400, "height": 900})


def _until(true: Any, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def _networks(page: Any) -> int:
    found = re.search(r"(\d+) of 9 networks", page.inner_text("#runs"))
    assert found is not None
    return int(found[1])


@NEEDS_BROWSER
@pytest.mark.slow
def test_the_page_renews_itself_until_ctrl_c(
    tmp_path: Path, search: subprocess.Popen[bytes], watching: subprocess.Popen[str], page: Any
) -> None:
    store = tmp_path / "store"
    assert watching.stdout is not None
    assert "watch.html" in watching.stdout.readline()
    heard, _ = listened_to(page)
    page.goto((store / "watch.html").as_uri())
    page.wait_for_selector(".chip >> text=running", timeout=30_000)
    first = _networks(page)
    _until(lambda: _networks(page) > first)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert "as of" in page.inner_text("#status")
    search.wait(timeout=120)
    page.wait_for_selector(".chip.matches >> text=done", timeout=30_000)
    assert page.locator("svg circle").count() == 2 * 4  # tickets and three controls
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=20)
    assert (watching.returncode, err) == (0, "")
    page.wait_for_selector("#status.late", timeout=30_000)
    assert heard == []
    assert not any(store.glob("live/*"))


@pytest.mark.parametrize(
    ("words", "told"), [(["--all"], "leave out all"), (["some-run", "--json"], "leave out runs, json")]
)
def test_what_does_not_go_with_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], told: str
) -> None:
    code, _, err = call(capsys, "report", "--watch", *words, "--store", str(tmp_path))
    assert (code, told in err) == (2, True), err


def test_where_there_is_no_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = call(capsys, "report", "--watch", "--store", str(tmp_path))
    assert code != 0
    assert "there is no store" in err
    assert list(tmp_path.iterdir()) == []
