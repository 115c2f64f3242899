"""Made-up records, and a page that is drawn once."""

from __future__ import annotations

import pytest

from made_records import *  # noqa: F403
from ticketry.report import page as page_module
from ticketry.report.figures import Drawing
from ticketry.report.subject import read_report_subject

_DOT = Drawing(*2 * ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>',))


@pytest.fixture
def dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dot in place of each figure of a page: drawing takes seconds."""
    monkeypatch.setattr(page_module, "draw_figures", lambda makers: dict.fromkeys(makers, _DOT))


@pytest.fixture(scope="session")
def evidence(make_verify, make_stability, make_bench):
    """A record of each kind."""
    return [make_verify(), make_stability(levels=(7,)), make_bench(), make_bench(curves=True)]


@pytest.fixture(scope="session")
def whole_page(full_record, evidence):
    """A page with every section, its figures drawn."""
    return page_module.render_report(read_report_subject(full_record, evidence))
