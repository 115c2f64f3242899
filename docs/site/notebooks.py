"""Runs the tutorials and writes them with their outputs: `python docs/site/notebooks.py [NAME …]`."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parent.parent / "tutorials"
HANGS = 3600
"""Seconds after which a cell is taken to hang. The longest computes for half a minute, but takes any time by the clock
where others use the machine too."""


def sources() -> list[Path]:
    """The tutorials as scripts with cells."""
    return sorted(TUTORIALS.glob("*.py"))


def executed(source: Path) -> Any:
    """The notebook of a script with its outputs, run in an empty folder; raises what a cell raises."""
    notebook = jupytext.read(source)
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=HANGS, resources={"metadata": {"path": folder}}).execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.output_type = "display_data"
    return notebook


def joined(outputs: list[Any]) -> list[Any]:
    """Outputs without standard error, and what was printed in several pieces as one."""
    found: list[Any] = []
    for one in outputs:
        if one.output_type != "stream":
            found.append(one)
        elif one.name == "stdout" and found and found[-1].output_type == "stream":
            found[-1].text += one.text
        elif one.name == "stdout":
            found.append(one)
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in sources():
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        began, computed = time.monotonic(), time.process_time()
        jupytext.write(executed(path), path.with_suffix(".ipynb"), fmt="ipynb")
        print(f"{path.stem}: {time.monotonic() - began:.0f} s", flush=True)
