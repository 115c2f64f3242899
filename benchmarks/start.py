"""Time from nothing to the first ticket of the user's model, following the quickstart page.

The checkout is cloned into an empty folder. Then every block of docs/quickstart.md that is a command is run there in
order, unchanged, and the first Python block is saved as the file that the page names. A command that fails
ends the benchmark. Reading is counted at 230 words a minute (Brysbaert 2019: 238 for English prose), code and
what the demo prints too; typing at 200 characters a minute, of the commands alone: the program is copied.

    python benchmarks/start.py [--python python3.12]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import HERE, Row, main, parser

ROOT = HERE.parent
WORDS, LETTERS = 230, 200
"""A minute."""
MOST = 5.0
"""Minutes."""


def measure(arguments: argparse.Namespace) -> list[Row]:
    page = (ROOT / "docs" / "quickstart.md").read_text()
    (name,) = re.findall(r"Save this as `([\w.]+)`", page)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    commands = [text.strip() for language, text in blocks if not language and text.startswith(("make ", ".venv/"))]
    program, _ = (text for language, text in blocks if language == "python")
    with tempfile.TemporaryDirectory() as empty:
        checkout = Path(empty) / "ticketry"
        subprocess.run(["git", "clone", "-q", str(ROOT), str(checkout)], check=True)
        (checkout / name).write_text(program)
        took = [_took(command, checkout, arguments.python) for command in commands]
        if not (checkout / "my-ticket" / "model.safetensors").is_file():
            sys.exit("the page's last command has left no ticket")
    reading = len(_visible_text(page).split()) / WORDS
    typing = sum(map(len, commands)) / LETTERS
    whole = reading + typing + sum(took) / 60
    how = "wall clock, an empty folder, packages from pip's own index and cache"
    return [
        Row("Start, read", reading, "min", how=f"{len(_visible_text(page).split())} words at {WORDS} a minute"),
        Row("Start, typed", typing, "min", how=f"{sum(map(len, commands))} letters at {LETTERS} a minute"),
        *(Row(f"`{command}`", one / 60, "min", how=how) for command, one in zip(commands, took, strict=True)),
        Row("from nothing to the first ticket of one's own model", whole, "min", target=MOST, how="all of it"),
    ]


def _visible_text(page: str) -> str:
    """The page's words: prose, tables, code and results, without addresses and comments."""
    return re.sub(r"```\w*|<!--.*?-->|\]\([^)]*\)|[|*`#\[]", " ", page, flags=re.DOTALL)


def _took(command: str, folder: Path, python: str) -> float:
    """Seconds of a command in an environment that knows nothing of this checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join(one for one in kept["PATH"].split(os.pathsep) if one != here)
    began = time.monotonic()
    subprocess.run(command, shell=True, cwd=folder, env=kept | {"PATH": path, "PYTHON": python}, check=True)
    return time.monotonic() - began


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--python", default="python3", help="that make sets the environment up with")
    main("start", measure, options)
