"""Notebooks as pages: their text, code and outputs, without scripts from anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"


def notebooks() -> list[Path]:
    """All, in the order in which the page of tutorials names them."""
    named = re.findall(r"\]\(([\w-]+\.ipynb)\)", (TUTORIALS / "README.md").read_text(encoding="utf-8"))
    return [TUTORIALS / name for name in named]


def page(path: Path) -> str:
    """A notebook as Markdown."""
    return "\n\n".join(part for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    if source.strip():
        yield f"```python\n{source}\n```"
    for output in cell.get("outputs", ()):
        yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    data = output.get("data", {})
    if output["output_type"] == "stream" and output["name"] == "stdout":
        yield f"```text\n{''.join(output['text']).rstrip()}\n```"
    elif "image/svg+xml" in data:
        picture = "".join(data["image/svg+xml"])
        yield f'<div class="figure">{picture[picture.index("<svg") :]}</div>'
    elif "text/html" in data:
        yield "".join(line.strip() for line in "".join(data["text/html"]).splitlines())
    elif "text/plain" in data:
        yield f"```text\n{''.join(data['text/plain'])}\n```"
