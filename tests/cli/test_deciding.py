"""The command that `ticketry search` prints for levels that its replicates leave undecided, run as it is printed."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from msgspec.structs import replace

from cli.calling import call
from ticketry.cli.results import suggestion_lines
from ticketry.lab.store.files import read_with_digest
from ticketry.records.run import read_run

SHORT = ("--levels", "2", "--replicates", "2", "--controls", "none", "--workers", "0", "--recipe.length", "8it")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_printed_command_verifies_an_own_task(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = "another place"
    code, out, err = call(capsys, "search", "iterative", "--task", "lab_fixtures:PointsTask", *SHORT, "--store", store)
    assert code == 0, err
    lines = out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("decide "))
    assert "undecided at 2 of 2 levels" in lines[at]
    command = shlex.split(lines[at + 1])
    assert command[:2] == ["ticketry", "verify"]
    assert "--trust" in command
    code, out, err = call(capsys, *command[1:], "--json")
    assert code == 0, err
    assert '"about": "procedure"' in out
    assert not (here / "another").exists()
    code, shown, _ = call(capsys, "report", "--store", store)
    assert (code, lines[at + 1] in shown.splitlines()) == (0, True)


def test_a_built_in_task_needs_no_trust_and_a_decided_run_no_command(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capsys, "search", "iterative", "--task", "digits", *SHORT)
    assert code == 0, err
    (command,) = [line for line in out.splitlines() if "ticketry verify" in line]
    assert "--trust" not in command
    record = read_run(read_with_digest(next(here.glob(".ticketry/runs/*/run.json"))))
    decided = [replace(one, as_good_as_dense="no") for one in record.verdicts]
    assert suggestion_lines(replace(record, verdicts=tuple(decided)), here / "run.toml") == []
