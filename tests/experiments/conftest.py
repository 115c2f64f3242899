"""Pages without figures, which take three quarters of the time of a small search; a lab for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ticketry.lab.lab import Lab


@pytest.fixture(autouse=True, scope="module")
def no_figures() -> Iterator[None]:
    from ticketry.report import page
    from ticketry.report.figures import Drawing

    blank = '<svg viewBox="0 0 1 1"></svg>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_figures", lambda makers: dict.fromkeys(makers, Drawing(blank, blank)))
        yield


@pytest.fixture(scope="module")
def lab(shared_store: Path) -> Iterator[Lab]:
    with Lab(shared_store, device="cpu") as found:
        yield found
