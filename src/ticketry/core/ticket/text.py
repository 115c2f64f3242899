"""Descriptions of a ticket: plain text for a terminal, and a model card for the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ticketry.core.mask import Mask
from ticketry.core.tables import format_layer_lines, one_line


def describe(mask: Mask, info: Mapping[str, Any], trained: bool) -> str:
    """Return a ticket's method, density, metric, seeds and table of layers as plain text.

    `trained` says whether the ticket has trained weights.
    """
    facts = [f"{label + ':':<10} {text}" for label, text in list_facts(mask, info, trained)]
    return "\n".join([*facts, "", *format_layer_lines(mask.table())])


def model_card(
    mask: Mask, info: Mapping[str, Any], trained: bool, repo_id: str, *, verdict: str = "", figure: str = ""
) -> str:
    """Return the README.md of a ticket's repository: the hub's metadata, a table of facts, and how to load the ticket.

    Args:
        mask, info: the ticket's mask and info.
        trained: whether the ticket has trained weights.
        repo_id: ``user/name``.
        verdict: a sentence that says whether the ticket wins.
        figure: file name of an image in the repository.
    """
    licence = info.get("license")
    head = ["library_name: ticketry", "tags:", *(f"- {tag}" for tag in _TAGS)]
    if isinstance(licence, str):
        head.append(f"license: {json.dumps(licence)}")
    table = "\n".join(f"| {label} | {_escape_cell(text)} |" for label, text in list_facts(mask, info, trained))
    which = "trained" if trained else "start"
    claim = f"\n## Does it win?\n\n{_escape_cell(one_line(verdict))}\n" if verdict else ""
    image = f"\n![The metric by the share of weights kept]({figure})\n" if figure else ""
    return _CARD.format(head="\n".join(head), table=table, repo_id=repo_id, which=which, verdict=claim + image)


_TAGS = ("pytorch", "lottery-ticket", "pruning", "sparsity")

_CARD = """---
{head}
---

# A lottery ticket

A sparse sub-network of a PyTorch model, found with ticketry.

| | |
|---|---|
{table}
{verdict}
```python
import ticketry as tk

ticket = tk.Ticket.from_hub("{repo_id}")
model = ticket.apply(model, "{which}")
```

`model` is the plain dense model. `start` are the weights that the ticket's training starts from, `trained` those
after it; removed weights are 0. The mask itself is `ticket.mask`.
"""


def list_facts(mask: Mask, info: Mapping[str, Any], trained: bool) -> list[tuple[str, str]]:
    """Return the facts about a ticket, except the table of layers, as pairs (label, text)."""
    facts = [("method", _format_value(info.get("method", "not said")))]
    facts += [(key, _format_value(info[key])) for key in ("level", "replicate") if key in info]
    facts.append(("density", f"{mask.density:.4g} ({mask.kept:,} of {mask.total:,} prunable weights kept)"))
    facts.append(("sparsity", f"{mask.sparsity:.4g}"))
    parameters = info.get("parameters")
    if isinstance(parameters, int) and parameters >= mask.total > 0:
        left = parameters - mask.total + mask.kept
        facts.append(("of all", f"{left / parameters:.4g} ({left:,} of {parameters:,} parameters kept)"))
    if "value" in info:
        facts.append(("metric", f"{_format_value(info.get('metric', 'value'))} {_format_value(info['value'])}"))
    facts += [(key, _format_value(info[key])) for key in ("seeds", "settings") if key in info]
    facts.append(("trained", "yes" if trained else "no"))
    return facts


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return one_line(value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False))


def _escape_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
