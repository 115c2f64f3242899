"""A real browser for tests: the installed Chromium or Chrome, driven by playwright."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_BROWSER = next(filter(None, map(shutil.which, _NAMES)), None)
NEEDS_BROWSER = pytest.mark.skipif(
    _BROWSER is None or find_spec("playwright") is None, reason="no chromium or chrome on the PATH, or no playwright"
)


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """It, until the end of a block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def listened_to(page: Any) -> tuple[list[str], list[str]]:
    """Record the console messages, errors and requested URLs of a page, in lists that grow while it runs."""
    heard: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda asking: asked.append(asking.url))
    return heard, asked
