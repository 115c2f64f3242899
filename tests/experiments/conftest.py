"""Pages without their figures: drawing takes three quarters of the time of a small search, and is tested in report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_figures() -> Iterator[None]:
    from ticketry.report import page
    from ticketry.report.figures import Drawing

    blank = '<svg viewBox="0 0 1 1"></svg>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_figures", lambda makers: dict.fromkeys(makers, Drawing(blank, blank)))
        yield
