"""Where the command line writes: closed pipes, terminals that are not UTF-8, few open files, spreadsheets."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from samples import sample
from ticketry.cli import main
from ticketry.report.tables.rows import csv_text

COMMANDS = (["list", "tasks"], ["--help"], ["list", "scores", "--json"], ["search", "--help"])
LOCALES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C": {"LC_ALL": "C"},
    "C without UTF-8": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


def run(*words: str, shell: str = "{}", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a shell, in which {} stands for it."""
    line = " ".join([sys.executable, "-m", "ticketry", *words])
    return subprocess.run(["bash", "-c", shell.format(line)], capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("words", sample(COMMANDS, 1, ids=map(" ".join, COMMANDS)))
@pytest.mark.parametrize("reader", ["head -c 1", "true"])
def test_a_closed_pipe(words: list[str], reader: str) -> None:
    done = run(*words, shell="{} | " + reader + "; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    assert done.returncode in (0, 141), "0 if all of it was written before the reader left"


@pytest.mark.parametrize("name", sample(LOCALES, 1))
def test_a_terminal_that_is_not_utf_8(name: str) -> None:
    for words in COMMANDS[:1]:
        done = run(*words, **LOCALES[name])
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout
    done = run("list", "tasks", "--json", **LOCALES[name])
    assert {row["name"] for row in json.loads(done.stdout)} >= {"digits", "cifar10"}


def test_a_path_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"st\xffre")
    assert main(["list", "runs", "--store", str(folder)]) == 0
    assert main(["store", "check", "--store", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_few_open_files() -> None:
    words = [sys.executable, "-m", "ticketry", "search", "imp", "--task", "digits", "--store", "/nonexistent/store"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))  # noqa: E731
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_no_cell_of_a_table_is_a_formula() -> None:
    for text in ('=HYPERLINK("http://x")', "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"):
        (row,) = csv.DictReader(io.StringIO(csv_text([{"name": text, "value": -1.5, "count": -3}])))
        assert row["name"] == "'" + text.replace("\r", " ")
        assert (float(row["value"]), int(row["count"])) == (-1.5, -3), "numbers stay numbers"
