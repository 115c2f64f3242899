"""Checks the JSON that the demo prints: that it holds what it should, and that the tickets are there and load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ticketry as tk

result = json.load(sys.stdin)
tickets = result["tickets"]
replicates = {ticket["replicate"] for ticket in tickets}
assert replicates == {0, 1, 2}, replicates
sparsest = [ticket for ticket in tickets if ticket["level"] == max(ticket["level"] for ticket in tickets)]
assert len(sparsest) == 3
for ticket in sparsest:
    assert abs(ticket["density"] - 0.05) < 1e-4, ticket["density"]
    assert ticket["value"] > 90, f"a ticket of digits should reach well above 90 %, not {ticket['value']}"
    loaded = tk.Ticket.load(ticket["path"])
    model = loaded.apply(tk.task("digits").build(), "trained")
    assert (
        sum(int((p == 0).sum()) for p in loaded.mask.parameters(model).values()) >= loaded.mask.total - loaded.mask.kept
    )
report = Path(result["report"]).read_text(encoding="utf-8")
assert "<svg" in report
assert "http://" not in report.replace("http://www.w3.org", "")
assert result["cost"]["segments_trained"] > 0
print(f"the demo holds: {len(tickets)} tickets, {result['report']}")
