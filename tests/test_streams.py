"""Where the command line writes: pipes that nobody reads, terminals without letters, few open files, spreadsheets."""

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

COMMANDS = (
    ["--help"],
    ["list", "tasks"],
    ["list", "scores", "--json"],
    ["search", "--help"],
    ["search", "imp", "--help"],
)


def ran(*words: str, shell: str = "{}", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a shell, in which {} stands for it."""
    line = " ".join([sys.executable, "-m", "ticketry", *words])
    return subprocess.run(["bash", "-c", shell.format(line)], capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("words", sample(COMMANDS, 2, ids=map(" ".join, COMMANDS)))
@pytest.mark.parametrize("reader", ["head -c 1", "true"])
def test_a_pipe_that_nobody_reads(words: list[str], reader: str) -> None:
    done = ran(*words, shell="{} | " + reader + "; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    assert done.returncode in (0, 141), "0 if all of it was written before the reader left"


@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                    {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}])  # fmt: skip
@pytest.mark.parametrize("words", sample(COMMANDS, 1, ids=map(" ".join, COMMANDS)))
def test_a_terminal_without_letters(words: list[str], locale: dict[str, str]) -> None:
    done = ran(*words, **locale)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_a_path_that_is_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / os.fsdecode(b"st\xffre")
    assert main(["list", "runs", "--store", str(folder)]) == 0
    assert main(["store", "check", "--store", str(folder)]) == 1
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_few_open_files() -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))

    words = [sys.executable, "-m", "ticketry", "search", "imp", "--task", "digits", "--store", "/nonexistent/store"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=few, env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_cell_is_a_formula(text: str) -> None:
    (row,) = csv.DictReader(io.StringIO(csv_text([{"name": text, "value": -1.5, "count": -3}])))
    assert row["name"].startswith("'")
    assert row["name"][1:] == text.replace("\r", " ")
    assert (float(row["value"]), int(row["count"])) == (-1.5, -3), "numbers stay numbers"


def test_json_is_json_whatever_the_terminal(tmp_path: Path) -> None:
    done = ran("list", "tasks", "--json", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert {row["name"] for row in json.loads(done.stdout)} >= {"digits", "cifar10"}
