"""Masks and tickets as notebooks show them: the numbers, and no markup but our own."""

from __future__ import annotations

from html.parser import HTMLParser

import torch

from ticketry.core.mask import Mask
from ticketry.core.tables import MOST_ROWS, html_table
from ticketry.core.ticket.ticket import Ticket

HOSTILE = "<script>alert('x')</script>&\"quoted\""


class Cells(HTMLParser):
    """The tags of a page, and the text of its cells row by row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.captions: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open, "every tag is closed"

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
        else:
            self.captions.append(data)


def mask() -> Mask:
    return Mask({"fc.weight": torch.eye(50), HOSTILE: torch.tensor([True, False, True, True])})


def test_a_mask_shows_each_layer_and_all_together():
    seen = Cells(mask()._repr_html_())
    assert seen.captions == ["Mask"]
    assert seen.rows == [
        ["layer", "shape", "kept", "of", "density"],
        ["all layers", "", "53", "2,504", "0.02117"],
        ["fc.weight", "50x50", "50", "2,500", "0.02"],
        [HOSTILE, "4", "3", "4", "0.75"],
    ]
    assert seen.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_a_ticket_shows_whose_it_is_and_of_what():
    start = {name: torch.zeros(tensor.shape) for name, tensor in mask().items()}
    info = {"method": HOSTILE, "metric": "accuracy", "value": 91.25, "level": 3, "parameters": 3000}
    seen = Cells(Ticket(mask(), start, info)._repr_html_())
    facts = dict(row for row in seen.rows if len(row) == 2)
    assert facts["method"] == HOSTILE
    assert facts["density"] == "0.02117 (53 of 2,504 prunable weights kept)"
    assert facts["of all"] == "0.183 (549 of 3,000 parameters kept)"
    assert facts["metric"] == "accuracy 91.25"
    assert facts["trained"] == "no"
    assert ["fc.weight", "50x50", "50", "2,500", "0.02"] in seen.rows
    assert seen.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}


def test_a_long_table_says_how_many_more_there_are():
    seen = Cells(html_table(HOSTILE, ("number", "square"), [(n, n * n) for n in range(MOST_ROWS + 1200)]))
    assert seen.captions == [HOSTILE]
    assert seen.rows[1:-1] == [[str(n), f"{n * n:,}"] for n in range(MOST_ROWS)]
    assert seen.rows[-1] == ["… and 1,200 more"]
