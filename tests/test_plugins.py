"""Score, search, gates, control, task and runner of another package: tests/plugin, which nothing in src/ names."""

from __future__ import annotations

import ast
import builtins
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from experiments.conftest import no_figures  # noqa: F401
from installed import install, install_project, site  # noqa: F401
from lab_fixtures import PointsTask
from ticketry.cli import main
from ticketry.errors import UsageError
from ticketry.evidence.settings import VerifySettings
from ticketry.lab.runners.runner import RUNNERS, InProcess
from ticketry.testing import check_score, check_search

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "tests" / "plugin"
FAST = ("--replicates", "1", "--workers", "0", "--json")


@pytest.fixture(scope="session")
def extras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install tests/plugin in a folder."""
    return install_project(PROJECT, tmp_path_factory.mktemp("site"))


@pytest.fixture
def here(extras: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let this process import the package."""
    monkeypatch.syspath_prepend(extras)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "lottery_extras"]:
        del sys.modules[name]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``ticketry WORDS`` in a process in which the packages of `folder` are installed."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")])}
    words = (*words, "--store", str(folder / "store")) if "--store" not in words and words[0] == "search" else words
    return subprocess.run(
        [sys.executable, "-m", "ticketry", *words], capture_output=True, text=True, env=env, cwd=folder
    )


def result_of(folder: Path, *words: str) -> dict[str, Any]:
    done = command(folder, *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def record_of(found: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(found["report"]).with_name("run.json").read_text())
    return record


# -- contracts ---------------------------------------------------------------------------------------------------------


def test_nothing_in_the_library_names_the_package() -> None:
    names = r"lottery.extras|\b(lamp|movement|hard.sigmoid|random.signs|spirals)\b"
    sources = [path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py")]
    assert len(sources) > 300
    assert not [found for source in sources if (found := re.search(names, source, re.IGNORECASE))]


def test_the_score(here: None) -> None:
    check_score("lamp")
    check_score("lottery_extras.lamp:lamp")
    weight = torch.tensor([[3.0, -1.0], [0.0, 2.0]])
    model = nn.Linear(2, 2, bias=False)
    model.weight.data = weight
    found = tk.score.get("lamp")(model, tk.scope(model))["weight"]
    slow = [[w**2 / sum(v**2 for v in weight.flatten() if abs(v) >= abs(w)) for w in row] for row in weight]
    torch.testing.assert_close(found, torch.tensor(slow).double())
    mask = tk.prune(model, 0.5, score="lamp")
    assert mask["weight"].tolist() == [[True, False], [False, True]]


def test_the_search(here: None, tmp_path: Path) -> None:
    method = tk.search.method("movement")
    settings = method.Settings(density=(0.5, 0.2), rewind="10%")
    task = tk.task("spirals", options={"turns": "0.7"})
    short = task.recipe.changed(length="24it")
    found = check_search("movement", tmp_path, settings=settings, densities=(0.5, 0.2), task=task, recipe=short)
    assert found[1].searched[0].segment.variants[0].identity()["place"].startswith("lottery_extras.movement.variant:")
    assert [(one.level, one.density) for one in method.tickets(settings)] == [(1, 0.5), (2, 0.2)]


def test_check_search_finds_a_variant_that_forgets_its_state(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lottery_extras.movement.variant import MovementEffect  # type: ignore[import-not-found]

    begin = MovementEffect.begin
    monkeypatch.setattr(MovementEffect, "begin", lambda self, training, carried: begin(self, training, {}))
    settings = tk.search.method("movement").Settings(density=(0.5,), fade=0.05)
    with pytest.raises(AssertionError, match="interrupted in the middle of a training"):
        check_search("movement", tmp_path, settings=settings, task=PointsTask(), recipe=PointsTask.recipe)


def test_the_gates(here: None) -> None:
    torch.manual_seed(0)
    model, inputs = nn.Linear(8, 4), torch.randn(64, 8)
    targets = inputs @ torch.randn(8, 4) * (torch.arange(8) < 3)[:, None].float().mean()
    gates = tk.gates.attach(model, kind="hard-sigmoid", init=0.2)
    optimizer = torch.optim.SGD([*model.parameters(), *gates.parameters()], lr=0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        (loss + gates.penalty(1e-2)).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert tk.gates.attach(nn.Linear(3, 2), kind="lottery_extras.hard_sigmoid:HardSigmoid").kind == gates.kind
    assert 0 < gates.density() <= 1


# -- on the command line -----------------------------------------------------------------------------------------------


def test_help_without_torch(extras: Path) -> None:
    code = """
import contextlib, sys
from ticketry.cli import main
for words in (["search", "--help"], ["search", "movement", "--help"]):
    with contextlib.suppress(SystemExit):
        main(words)
    print("----")
assert "torch" not in sys.modules
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(extras), str(ROOT / "src")]), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    methods, movement, _ = done.stdout.split("----")
    assert "Movement pruning" in methods
    assert "Movement pruning: weights are kept that training moves away from 0." in movement
    assert "--fade" in movement
    assert "By how much weights that move towards 0 shrink" in movement


@pytest.mark.slow
def test_lists_name_the_package(extras: Path) -> None:
    names = {"methods": "movement", "scores": "lamp", "gates": "hard-sigmoid", "tasks": "spirals"}
    names |= {"controls": "random_signs"}
    calls = "\n".join(f"main(['list', '{what}', '--json']); main(['list', '{what}']); print('----')" for what in names)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(extras), str(ROOT / "src")])}
    code = f"from ticketry.cli import main\n{calls}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    for (what, name), printed in zip(names.items(), done.stdout.split("----\n"), strict=False):
        listed, table = printed.split("\n", 1)
        rows = {row["name"]: row for row in json.loads(listed)}
        assert rows[name]["from"] == "lottery-extras 0.1", what
        assert rows[name]["description"]
        assert {row["from"] for other, row in rows.items() if other != name} == {"built in"}
        assert "lottery-extras 0.1" in table


@pytest.mark.slow
def test_a_whole_run_its_report_and_its_run_file(extras: Path) -> None:
    words = "--task spirals --option turns=0.7 --density 0.5,0.2 --controls random_signs,shuffled".split()  # noqa: SIM905
    found = result_of(extras, "search", "movement", *words, "--replicates", "2", "--workers", "2", "--json")
    record = record_of(found)
    roles = {point["role"] for point in record["points"]}
    assert roles == {"dense", "ticket", "random_signs", "shuffled"}
    assert {point["level"] for point in record["points"] if point["role"] == "random_signs"} == {1, 2}
    by_role = {p["role"]: p for p in record["points"] if p["level"] == 2 and p["replicate"] == 1}
    assert by_role["random_signs"]["kept"] == by_role["ticket"]["kept"]
    assert by_role["random_signs"]["test"] != by_role["ticket"]["test"]
    assert record["method"] == "movement"
    page = Path(found["report"]).read_text()
    assert "Movement pruning" in page
    assert "random_signs" in page or "random signs" in page
    again = result_of(
        extras, "search", "--config", str(Path(found["report"]).with_name("run.toml")), "--trust", "--json"
    )
    assert again["now"]["steps_trained"] == 0
    assert [one["path"] for one in again["tickets"]] == [one["path"] for one in found["tickets"]]


ONESHOT = ("--density", "0.3", "--rewind", "0", "--retrain", "continue")


@pytest.mark.parametrize(
    "words",
    [
        ("lottery_extras.movement:search", "--density", "0.3", "--recipe.length", "20it"),
        pytest.param(("oneshot", "--score", "lottery_extras.lamp:lamp", *ONESHOT), marks=pytest.mark.slow),
        pytest.param(
            ("continuous", "--kind", "hard-sigmoid", "--rounds", "1", "--rewind", "0", "--init", "0.05"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda words: " ".join(words[:3]),
)
def test_by_name_and_by_place(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    def answer(*words: str) -> dict[str, Any]:
        assert main(["search", *words, "--store", str(tmp_path / "store")]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    place = "lottery_extras.spirals:Spirals"
    control = "lottery_extras.random_signs:RandomSigns"
    found = answer(*words, "--task", place, "--controls", control, *FAST)
    assert {point["role"] for point in record_of(found)["points"]} == {"dense", "ticket", control}
    again = answer("--config", str(Path(found["report"]).with_name("run.toml")), "--trust", "--workers", "0", "--json")
    assert again["now"]["steps_trained"] == 0
    assert again["run"] == found["run"]


def test_gates_without_a_rule_for_further_rounds(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--kind", "hard-sigmoid", "--task", "spirals", "--workers", "0", "--store", str(tmp_path / "store")]
    assert main(["search", "continuous", *words]) == 2
    assert "gates of kind 'hard-sigmoid' have no rule for a further round: give rounds 1" in capsys.readouterr().err


KILLED = """
import os, signal
import ticketry as tk

def on_event(event):
    if event.kind == "progress" and "movement" in event.label and event.step > 70:
        os.kill(os.getpid(), signal.SIGKILL)

method = tk.search.method("movement")
with tk.Lab("killed", on_event=on_event, checkpoint_seconds=1e-3) as lab:
    method(lab, tk.task("spirals"), method.Settings(density=(0.2,)))
"""


@pytest.mark.slow
def test_a_killed_search_resumes_with_the_same_bits(extras: Path, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(extras), str(ROOT / "src")])}
    done = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    words = ("search", "movement", "--task", "spirals", "--density", "0.2", "--controls", "none", "--replicates", "1")
    stores = {name: str(tmp_path / name) for name in ("killed", "whole")}
    resumed, whole = (
        result_of(extras, *words, "--workers", "0", "--json", "--store", store) for store in stores.values()
    )
    assert whole["now"]["steps_trained"] == 3 * 120
    assert 120 < resumed["now"]["steps_trained"] < 120 + 60  # the ticket, and the end of the training that was killed
    for file in ("mask.safetensors", "model.safetensors", "start.safetensors"):
        first, second = (Path(one["tickets"][0]["path"], file).read_bytes() for one in (resumed, whole))
        assert first == second, file


# -- in Python ---------------------------------------------------------------------------------------------------------


def test_the_control_in_a_verification(here: None, tmp_path: Path) -> None:
    task = tk.task("spirals")
    run = tk.run("movement", task=task, density=0.3, replicates=1, controls=(), store=tmp_path, workers=0)
    settings = VerifySettings(controls=("random_signs",), seeds=1, noise=False, references=False)
    with tk.Lab(tmp_path) as lab:
        found = tk.evidence.verify(lab, run.tickets[0].load(), settings, task=task)
    assert set(found.values) == {"ticket", "dense", "random_signs"}
    assert len(set(found.budgets.values())) == 1
    with pytest.raises(UsageError, match="'random_sign' is not known"), tk.Lab(tmp_path) as lab:
        tk.evidence.verify(lab, run.tickets[0].load(), VerifySettings(controls=("random_sign",)), task=task)


def test_controls_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strange_controls.py").write_text(
        "import ticketry as tk\n"
        "from ticketry.evidence import Control\n"
        "class Mirrored(Control):\n"
        "    def mask(self, ticket, drawing):\n"
        "        return tk.Mask({name: kept.flip(0) for name, kept in ticket.items()})\n"
        "class Denser(Control):\n"
        "    def mask(self, ticket, drawing):\n"
        "        return tk.Mask({name: kept | True for name, kept in ticket.items()})\n"
        "class Both(Control):\n"
        "    fresh = True\n"
        "    def weights(self, weights, ticket, seed):\n"
        "        return {}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from ticketry.evidence.controls import draw_control_mask
    from ticketry.lab.search_result import Seeds

    mask = tk.Mask({"a": torch.tensor([[True, True], [False, True]])})
    made = draw_control_mask("strange_controls:Mirrored", mask, Seeds())
    assert made["a"].tolist() == [[False, True], [True, True]]
    with pytest.raises(UsageError, match="Denser draws a mask of other parameters than the ticket's, or of another d"):
        draw_control_mask("strange_controls:Denser", mask, Seeds())
    with pytest.raises(UsageError, match=r"'strange_controls:Both' is not known: a control starts from fresh weights"):
        draw_control_mask("strange_controls:Both", mask, Seeds())
    with pytest.raises(UsageError, match=r"is not a class derived from ticketry.evidence.Control"):
        draw_control_mask("math:pi", mask, Seeds())


class Counting(InProcess):
    """A runner that counts."""

    submitted = 0

    def submit(self, *work: Any) -> Any:
        type(self).submitted += 1
        return super().submit(*work)


def test_a_runner_by_name(here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: Path) -> None:  # noqa: F811
    (site / "counting.py").write_text("import test_plugins_runner\nCounting = test_plugins_runner.Counting\n")
    monkeypatch.setitem(sys.modules, "test_plugins_runner", sys.modules[__name__])
    install(site, "counting", {"counting": "counting:Counting"}, group="ticketry.runners")
    assert RUNNERS.find_origin("counting") == "counting 1.2"
    for runner in ("counting", "counting:Counting"):
        before = Counting.submitted
        with tk.Lab(tmp_path / runner.replace(":", "-"), runner=runner) as lab:
            lab.train(lab.segment(tk.task("spirals"), start=0, last=3))
        assert Counting.submitted == before + 1
    with pytest.raises(UsageError, match=r"runner 'cloud' is not known: in-process, .*, slurm, counting"):
        tk.Lab(tmp_path / "store", runner="cloud")


# -- packages that cannot be used --------------------------------------------------------------------------------------

BAD = {
    "no-module": {"absent": "no_such_module_at_all"},
    "no-settings": {"unset": "bad_methods:Unset"},
    "odd-settings": {"odd": "bad_methods:Odd"},
    "usurper": {"iterative": "bad_methods:Unset", "imp": "bad_methods:Unset"},
}


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    folder = install_project(PROJECT, tmp_path / "site")
    (folder / "bad_methods.py").write_text(
        "class Unset:\n    'No settings.'\n    def search(*_): ...\n\n"
        "class Odd(Unset):\n    Settings = dict\n\n"
        "class Aging:\n    raise_on_call = True\n"
    )
    for name, offers in BAD.items():
        install(folder, name, offers, group="ticketry.methods")
    for group in ("scores", "gates", "controls", "tasks", "runners"):
        install(folder, f"no-{group}", {"gone": "no_such_module_at_all:thing"}, group=f"ticketry.{group}")
    return folder


@pytest.mark.slow
def test_broken_packages_are_named_and_all_else_works(bad: Path) -> None:
    listed = command(bad, "list", "methods", "--json")
    assert listed.returncode == 0
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["movement"]["from"] == "lottery-extras 0.1"
    assert rows["iterative"]["from"] == "built in"
    assert not {"absent", "unset", "odd"} & set(rows)
    for words in (
        "the search method 'absent' of the package no-module 1.2 cannot be used: the module 'no_such_module_at_all'",
        "the search method 'unset' of the package no-settings 1.2 cannot be used: Unset is no search method: it has no",
        "the search method 'odd' of the package odd-settings 1.2 cannot be used: Odd is no search method: its Settings",
        "the package usurper 1.2 offers a search method 'iterative', which is the name of one that is built in",
        "the package usurper 1.2 offers a search method 'imp', which is the name of one that is built in",
    ):
        assert words in listed.stderr
    for what in ("scores", "gates", "controls", "runners"):
        done = command(bad, "list", what)
        assert done.returncode == 0
        assert f"the package no-{what} 1.2 cannot be used" in done.stderr
    assert "the package no-tasks 1.2 cannot be used" in command(bad, "list", "tasks").stdout
    done = command(bad, "search", "unset", "--help")
    assert done.returncode == 1
    assert "of the package no-settings 1.2 cannot be used" in done.stderr
    assert "Traceback" not in done.stderr
    done = command(bad, "search", "imp", "--task", "spirals", "--levels", "1", "--controls", "gone", *FAST)
    assert done.returncode == 1
    assert "the control 'gone' of the package no-controls 1.2 cannot be used" in done.stderr
    words = ("search", "imp", "--task", "spirals", "--levels", "1", "--controls", "none", *FAST)
    assert len(result_of(bad, *words)["tickets"]) == 2


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_package() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", page, re.S)
    shown = [*PROJECT.rglob("*.*"), ROOT / "tests" / "own_runner.py"]  # test_executor_runner.py trains with it
    sources = [path.read_text("utf-8") for path in shown if path.suffix in (".py", ".toml")]
    assert len(blocks) >= 6
    for block in blocks:
        assert any(block in source for source in sources), block


@pytest.mark.parametrize("heading", ["score", "search", "Training", "kind", "control", "task"])
def test_an_example_of_the_page_imports_what_it_uses(here: None, heading: str) -> None:
    """Copied into another file, it can be imported."""
    page = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    (section,) = re.findall(rf"^## (?:A |An )?{heading}\b.*?(?=^## |\Z)", page, re.S | re.M)
    (block,) = re.findall(r"```python\n(.*?)```", section, re.S)
    names: dict[str, object] = {"__name__": "copied"}
    sys.modules["copied"] = types.ModuleType("copied")  # which dataclasses look for
    try:
        exec(compile(block, heading, "exec"), names)
    finally:
        del sys.modules["copied"]
    known = {*names, *dir(builtins)}
    for function in (one for one in ast.walk(ast.parse(block)) if isinstance(one, ast.FunctionDef)):
        local = {one.id for one in ast.walk(function) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        local |= {one.arg for one in ast.walk(function) if isinstance(one, ast.arg)}
        local |= {one.asname or one.name for one in ast.walk(function) if isinstance(one, ast.alias)}
        used = {one.id for one in ast.walk(function) if isinstance(one, ast.Name)}
        assert used <= known | local, "every name is imported"
