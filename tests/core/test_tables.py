"""Masks and tickets as notebooks show them: the numbers, and no markup but our own."""

from __future__ import annotations

import re
from html import unescape

import torch

from ticketry.core.mask import Mask
from ticketry.core.tables import MOST_ROWS, html_table
from ticketry.core.ticket.ticket import Ticket

HOSTILE = "<script>alert('x')</script>&\"quoted\""
MASK = Mask({"fc.weight": torch.eye(50), HOSTILE: torch.tensor([True, False, True, True])})


def cells(page: str) -> list[list[str]]:
    """The text of the cells, row by row."""
    assert set(re.findall(r"<(\w+)", page)) == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)] for row in rows]


def test_a_mask_shows_each_layer_and_all_together():
    assert cells(MASK._repr_html_()) == [
        ["layer", "shape", "kept", "of", "density"],
        ["all layers", "", "53", "2,504", "0.02117"],
        ["fc.weight", "50x50", "50", "2,500", "0.02"],
        [HOSTILE, "4", "3", "4", "0.75"],
    ]


def test_a_ticket_shows_whose_it_is_and_of_what():
    start = {name: torch.zeros(tensor.shape) for name, tensor in MASK.items()}
    info = {"method": HOSTILE, "metric": "accuracy", "value": 91.25, "level": 3, "parameters": 3000}
    rows = cells(Ticket(MASK, start, info)._repr_html_())
    facts = dict(row for row in rows if len(row) == 2)
    assert facts["method"] == HOSTILE
    assert facts["density"] == "0.02117 (53 of 2,504 prunable weights kept)"
    assert facts["of all"] == "0.183 (549 of 3,000 parameters kept)"
    assert facts["metric"] == "accuracy 91.25"
    assert facts["trained"] == "no"
    assert ["fc.weight", "50x50", "50", "2,500", "0.02"] in rows


def test_a_long_table_says_how_many_more_there_are():
    rows = cells(html_table(HOSTILE, ("number", "square"), [(n, n * n) for n in range(MOST_ROWS + 1200)]))
    assert rows[1:-1] == [[str(n), f"{n * n:,}"] for n in range(MOST_ROWS)]
    assert rows[-1] == ["… and 1,200 more"]
