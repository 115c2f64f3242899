from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call, printed
from ticketry.cli import COMMANDS, NEED_ARGUMENT
from ticketry.cli.search import read_arguments
from ticketry.experiments.run_file import read_run_file

QUICK = ["--rate", "0.5", "--levels", "2", "--replicates", "2", "--recipe.length", "10it", "--workers", "0"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    store = tmp_path_factory.mktemp("cli") / "store"
    return store, json.loads(printed("search", "imp", *QUICK, "--store", str(store), "--json"))


def test_json_is_one_object_and_all_of_standard_output(searched: tuple[Path, dict[str, Any]]) -> None:
    """A ticket's value is what the network from its files alone measures."""
    store, result = searched
    found = [(one["replicate"], one["level"], one["density"]) for one in result["tickets"]]
    assert found == [(0, 1, 0.5), (0, 2, 0.25), (1, 1, 0.5), (1, 2, 0.25)]
    task = tk.task("digits")
    test = task.load().test
    for ticket in result["tickets"]:
        assert ticket["metric"] == "accuracy"
        loaded = tk.Ticket.load(ticket["path"])
        assert loaded.density == ticket["density"]
        assert loaded.info["retrain"] == ticket["retrain"] == "continue"
        assert loaded.info["value"] == ticket["value"]
        assert loaded.info["dense_value"] == ticket["dense_value"]
        model = loaded.apply(task.build(), "trained").eval()
        right = (model(task.prepare(test.inputs)).argmax(1) == test.targets).double().mean()
        assert 100 * float(right) == pytest.approx(ticket["value"], abs=1e-6)
    assert result["store"] == str(store)
    assert Path(result["report"]).is_file()
    # 2 replicates: dense, 2 tickets, 3 controls of each; the fresh start of a control at step 0 takes no step.
    assert result["cost"]["steps_trained"] == 2 * (1 + 2 + 6) * 10
    assert result["cost"]["search_steps_per_replicate"] == 3 * 10
    assert result["cost"]["control_steps"] == 2 * 6 * 10


def test_second_run_trains_nothing_and_says_the_same(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, first = searched
    code, out, _ = call(capsys, "search", "imp", *QUICK, "--store", str(store), "--json")
    second = json.loads(out)
    assert code == 0
    assert second.pop("now") == {"segments_asked": 22, "segments_trained": 0, "steps_trained": 0}
    assert second == {key: value for key, value in first.items() if key != "now"}


def test_run_file_repeats_the_run_and_words_go_before_it(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, first = searched
    config = store / "runs" / first["run"] / "run.toml"
    common = ("--config", str(config), "--store", str(store), "--workers", "0", "--json")
    code, out, _ = call(capsys, "search", *common)
    assert (code, json.loads(out)["run"]) == (0, first["run"])
    assert json.loads(out)["now"]["segments_trained"] == 0
    tables = read_run_file(config)
    assert (tables["method"], tables["settings"]["rate"], tables["recipe"]["length"]) == ("imp", 0.5, "10it")
    assert tables["seeds"] == {"initialisation": 0, "order": 0, "mask": 0}
    code, out, _ = call(capsys, "search", *common, "--levels", "1", "--controls", "none")
    varied = json.loads(out)
    assert len(varied["tickets"]) == 2
    assert varied["now"]["segments_trained"] == 0, "a shorter search is part of the longer one"
    assert varied["run"] != first["run"]


@pytest.mark.parametrize(
    "text",
    ["method = 'imp'\ncolour = 1", "method = 'imp'\n[settings]\ncolour = 1", "[recipe]\nlr = 'x", "method = 'no'"],
)
def test_wrong_run_files(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "run.toml").write_text(text)
    code, out, err = call(capsys, "search", "--config", str(tmp_path / "run.toml"), "--store", str(tmp_path / "s"))
    assert (code, out) == (2, "")
    assert err.startswith("ticketry: ")


@pytest.mark.slow
def test_seeds_are_kept_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "imp", *QUICK, "--levels", "1", "--replicates", "1", "--controls", "none", "--json"]
    runs = {}
    for name, extra in {"base": (), "order": ("--order-seed", "5"), "start": ("--initialisation-seed", "5")}.items():
        _, out, _ = call(capsys, *words, "--store", str(tmp_path), *extra)
        runs[name] = tk.Ticket.load(json.loads(out)["tickets"][0]["path"])
    base = runs["base"].start
    same = {name: all((base[n] == one.start[n]).all() for n in base) for name, one in runs.items()}
    assert same == {"base": True, "order": True, "start": False}
    assert runs["order"].mask != runs["base"].mask


@pytest.mark.slow
def test_own_task_with_options(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    words = ["search", "imp", "--task", "examples.own_task:Moons", "--option", "hidden=32", "noise=0.2"]
    code, out, err = call(
        capsys, *words, *QUICK[:-2], "--workers", "1", "--controls", "none", "--store", str(tmp_path), "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert result["task"]["parameters"] == 2 * 32 + 32 + 32 * 32 + 32 + 32 * 2 + 2
    assert result["task"]["name"] == "moons"


def test_report_and_lists(searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    store, first = searched
    code, out, _ = call(capsys, "report", first["run"], "--store", str(store), "--figures", "--json")
    (written,) = json.loads(out)["reports"]
    assert code == 0
    assert written["run"] == first["run"]
    assert all(Path(path).is_file() for path in [written["report"], *written["figures"]])
    code, out, _ = call(capsys, "list", "tickets", "--store", str(store), "--json")
    assert {ticket["path"] for ticket in first["tickets"]} <= {row["path"] for row in json.loads(out)}
    assert first["run"] in call(capsys, "list", "runs", "--store", str(store))[1]
    for what in ("tasks", "methods", "models", "scores"):
        code, out, _ = call(capsys, "list", what)
        assert code == 0
        assert out.strip()
        assert max(map(len, out.splitlines())) <= 80 or what not in ("methods", "scores")
    rows = {row["name"]: row for row in json.loads(call(capsys, "list", "methods", "--json")[1])}
    assert rows["early"]["paper"].startswith("Rachwan et al. 2022")
    assert (rows["early"]["prunes"], rows["early"]["scores"]) == ("before or early in", "crop")
    assert all("not said" not in row.values() for row in rows.values())
    assert {name: row["removes"] for name, row in rows.items() if row["removes"] != "weights"} == dict.fromkeys(
        ("early", "gradual", "iterative", "l0", "oneshot", "regularised"), "both"
    ) | {"decorators": "channels"}
    assert rows["regularised"]["scores"] == "by penalty"
    assert call(capsys, "report", "nothing", "--store", str(store))[0] == 1
    assert call(capsys, "list", "dreams")[0] == 2


def test_store_commands(
    searched: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store, _ = searched
    code, out, _ = call(capsys, "store", "check", "--store", str(store), "--json")
    health = json.loads(out)
    assert (code, health["sound"], health["damaged"]) == (0, True, [])
    code, out, _ = call(capsys, "store", "gc", "--store", str(store), "--grace-seconds", "0", "--json")
    assert (code, json.loads(out)["files"]) == (0, 0)
    assert call(capsys, "store", "check", "--store", str(tmp_path / "none"))[0] == 1
    assert not (tmp_path / "none").exists(), "looking does not make a store"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`ticketry verify $TICKET` with an empty variable shows it too, and has done nothing."""
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"ticketry {command}" in out
    assert "example" in out
    assert len(out.splitlines()) <= 60 or command not in ("verify", "stability", "bench")
    if command in NEED_ARGUMENT:
        code, out, _ = call(capsys, command)
        assert (code, f"ticketry {command}" in out) == (2, True)


@pytest.mark.parametrize("method", ["iterative", "continuous"])
def test_help_of_a_method_fits_a_screen_and_names_where_the_rest_is(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(capsys, "search", method, "--help")
    assert code == 0
    assert len(out.splitlines()) <= 60
    assert f"ticketry search {method} --help-all" in out
    assert {"--task", "--name", "--controls", "--json"} <= set(out.split())
    assert "--checkpoint-seconds" not in out
    assert "--checkpoint-seconds" in call(capsys, "search", method, "--help-all")[1]


NO_TASK = ("search", "imp", "--task", "digitz")
NO_REPLICATES = ("search", "imp", "--replicates", "0", "--workers", "0")


@pytest.mark.parametrize(
    "words", [(), ("fly",), ("search",), ("store",), ("store", "burn"), ("search", "magic"), NO_REPLICATES, NO_TASK]
)
def test_wrong_usage_is_code_2(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, *words)[0] == 2


def test_what_the_command_line_says_holds_in_place_of_a_run_file(tmp_path: Path) -> None:
    """How far a search goes is said in several ways, of which the file has one."""
    file = tmp_path / "run.toml"
    file.write_text('method = "iterative"\n[settings]\ndensity = 0.5\nrate = 0.3\n')

    def settings(*words: str) -> Any:
        return read_arguments(["--config", str(file), *words], command="search")[1].settings

    assert settings().density == 0.5
    assert settings("--levels", "2").targets == (0.7, 0.49)
    assert settings("--densities", "0.3,0.2").targets == (0.3, 0.2)
    assert settings("--sparsity", "0.6").targets[-1] == 0.4
    assert settings("--flops", "0.5").flops == (0.5,)


def test_a_method_alone_is_asked_what_to_train_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "search", "imp")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", []), "nothing is trained"
    assert err.startswith("ticketry: name what to train on: ticketry search imp --task")


def test_an_option_that_help_leaves_out_is_read_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "search oneshot --task digits --replicates 1 --controls none --recipe.length 5it --workers 0 --mask-seed 3"
    code, _, err = call(capsys, *words.split(), "--checkpoint-seconds", "5", "--store", str(tmp_path))
    assert code == 0, err
    assert "mask = 3" in next(tmp_path.glob("runs/*/run.toml")).read_text()


@pytest.mark.slow
def test_live_table_on_a_terminal(tmp_path: Path) -> None:
    """A real pseudo-terminal: the table is drawn there, on standard error only."""
    ours, theirs = pty.openpty()
    words = ["search", "imp", *QUICK, "--controls", "none", "--store", str(tmp_path), "--json"]
    command = [sys.executable, "-m", "ticketry", *words]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", "LINES": "40"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = bytearray()
        try:
            while chunk := os.read(ours, 1 << 16):
                shown += chunk
        except OSError:  # the terminal's other end is closed
            pass
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert len(json.loads(out)["tickets"]) == 4
    text = shown.decode()
    assert "IMP: iterative magnitude pruning with rewinding" in text
    assert "of 6 networks" in text
    assert "tickets" in text
