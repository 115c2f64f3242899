"""Rows of a campaign trained again: the same bits here, judged by the interval elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
from scipy import stats

import ticketry as tk
from cli.calling import call
from experiments.test_own_method import SOURCE
from ticketry.cli import main
from ticketry.experiments.reproduce.checking import CheckedNetwork, RecordedNetwork, prediction_interval
from ticketry.lab.store.files import read_with_digest, write_with_digest

SMALL = """
title = "Rows"
[scales.demo]
interim = [3]
[scales.demo.runs.tickets]
method = "iterative"
task = "digits"
recipe = { length = "40it" }
settings = { densities = [0.3, 0.1], rewind = "4it" }
controls = ["random_reinit", "random_prune"]
[claims.no-worse]
statement = "Tickets are no worse."
a = { run = "tickets" }
b = { run = "tickets", role = "dense" }
density = 0.1
above = -90
margin = 5
"""


@pytest.mark.slow
def test_rows_that_are_trained_again_have_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store, moved = tmp_path / "small.toml", tmp_path / "store", tmp_path / "moved"
    file.write_text(SMALL)
    words = ["reproduce", str(file), "--workers", "0", "--device", "cpu", "--store"]
    code, _, err = call(capsys, *words, str(store), "--check", "2")
    assert code == 2
    assert "nothing of the campaign small at the scale demo is in" in err
    assert main([*words, str(store)]) == 0
    bundle = tk.store.pack((), tmp_path / "all.tkz", store=store)  # without weights
    tk.store.unpack(bundle.path, store=moved)
    before = sorted(path for path in moved.rglob("*") if path.is_file())
    capsys.readouterr()

    # all 21 rows: three replicates of a dense network, two tickets and four controls
    code, out, _ = call(capsys, *words, str(moved), "--check", "100", "--json")
    assert code == 0
    found = json.loads(out)
    assert len(found) == 3 * (1 + 2 + 4)
    assert {one["found"] for one in found} == {"same bits"}
    assert len({(one["row"]["replicate"], one["row"]["level"], one["row"]["role"]) for one in found}) == 21
    after = sorted(path for path in moved.rglob("*") if path.is_file())
    assert set(after) - set(before) == {moved / "campaigns" / "small-demo.check.md"}, "the campaign's store stays"

    # of a bundle without masks only dense networks can be trained again
    records = tk.store.pack((), tmp_path / "records.tkz", store=store, masks=False)
    tk.store.unpack(records.path, store=tmp_path / "records")
    code, out, _ = call(capsys, *words, str(tmp_path / "records"), "--check", "100", "--json")
    assert code == 0
    assert [(one["row"]["role"], one["found"]) for one in json.loads(out)] == [("dense", "same bits")] * 3

    # the draw is by its seed
    drawn = []
    for seed in ("1", "1", "2"):
        code, out, _ = call(capsys, *words, str(store), "--check", "3", "--draw", seed, "--json")
        assert code == 0
        drawn.append([one["row"]["key"] for one in json.loads(out)])
    assert drawn[0] == drawn[1] != drawn[2]

    # a value that the table has and the training does not give
    (record,) = store.glob("runs/*/run.json")
    told = read_with_digest(record)
    for point in told["points"]:
        point["test"]["accuracy"] -= 7
    write_with_digest(record, told)
    code, out, _ = call(capsys, *words, str(store), "--check", "3")
    assert code == 1
    assert out.count("outside") == 3


@pytest.mark.parametrize(
    ("value", "same_bits", "same_machine", "found"),
    [
        (91.0, True, True, "same bits"),
        (91.0, True, False, "same bits"),
        (91.1, False, False, "inside"),
        (91.1, False, True, "outside"),  # where bits have to be the same, a near value is none of them
        (80.0, False, False, "outside"),
    ],
)
def test_what_is_found(value: float, same_bits: bool, same_machine: bool, found: str) -> None:
    values = (91.0, 91.4, 90.8)
    row = RecordedNetwork("run", 0, 1, "ticket", 0.1, "key", 91.0, values)
    assert CheckedNetwork(row, value, prediction_interval(values), same_bits, same_machine).found == found
    alone = CheckedNetwork(row, value, prediction_interval(values[:1]), same_bits, same_machine)
    assert alone.interval is None
    assert alone.found == ("same bits" if same_bits else "outside")


def test_numbers_have_the_decimals_of_their_spread() -> None:
    values = (8.1e-8, 8.9e-8, 8.3e-8)
    row = RecordedNetwork("run", 0, 1, "ticket", 0.1, "key", values[0], values)
    low, high = prediction_interval(values) or (0.0, 0.0)
    told = CheckedNetwork(row, 8.2e-8, (low, high), False, False).cells()
    assert told[4:6] == ["8.10e−8", "8.20e−8"]
    assert [float(end.replace("−", "-")) for end in told[6].split(" to ")] == pytest.approx([low, high], rel=0.01)


def test_the_interval_is_of_one_more_replicate() -> None:
    values = [91.0, 91.4, 90.8, 91.1]
    expected = stats.t.interval(0.95, 3, loc=fmean(values), scale=stdev(values) * (1 + 1 / 4) ** 0.5)
    assert prediction_interval(values) == pytest.approx(expected)


@pytest.mark.slow
def test_the_librarys_own_variants_are_known() -> None:
    """In a process that has imported nothing else, as a command has not."""
    code = (
        "import importlib, pkgutil, ticketry\n"
        "from ticketry.experiments.reproduce.checking import VARIANTS\n"
        "from ticketry.lab.training.variant import Variant\n"
        "for found in pkgutil.walk_packages(ticketry.__path__, 'ticketry.'):\n"
        "    if found.name.split('.')[1] in ('lab', 'search'):\n"
        "        importlib.import_module(found.name)\n"
        "found = {one.__module__ for one in Variant.__subclasses__()}\n"
        "assert found == set(VARIANTS), found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GATED = """
title = "Rows beside trainings with gates"
[scales.demo]
interim = [3]
[scales.demo.runs.gated]
method = "continuous"
task = "digits"
recipe = { length = "60it" }
settings = { density = 0.3, rounds = 1 }
[scales.demo.runs.tickets]
method = "iterative"
task = "digits"
recipe = { length = "60it" }
settings = { densities = [0.3], rewind = "0" }
[claims.no-worse]
statement = "Tickets are no worse."
a = { run = "tickets" }
b = { run = "gated" }
density = 0.3
above = -90
margin = 5
"""


@pytest.mark.slow
def test_weights_are_trained_again_by_the_plainest_training_that_gave_them(tmp_path: Path) -> None:
    """The initial weights are those that trainings with gates begin with too: none of these is trained for a ticket."""
    file, store = tmp_path / "gated.toml", tmp_path / "store"
    file.write_text(GATED)
    command = [sys.executable, "-m", "ticketry", "reproduce", str(file), "--workers", "0", "--device", "cpu"]
    subprocess.run([*command, "--store", str(store)], check=True)
    told = subprocess.run(
        [*command, "--store", str(store), "--check", "100", "--json"], check=True, capture_output=True
    )
    assert {one["found"] for one in json.loads(told.stdout)} == {"same bits"}


OWN_VARIANT = """
from dataclasses import dataclass

import torch

from ticketry.lab.training.variant import Effect, Variant


@dataclass(frozen=True, kw_only=True)
class Shrinking(Variant):
    name = "shrinking"

    def effect(self, around):
        return Smaller(around)


class Smaller(Effect):
    def begin(self, training, carried):
        self.model = training.model

    def after_step(self):
        with torch.no_grad():
            for weight in self.model.parameters():
                weight *= 0.999
"""
LATE = "    import ticketry as tk\n    from variant_of_mine import Shrinking\n"
OWN_METHOD = (
    SOURCE.replace("    import ticketry as tk\n", LATE)
    .replace('"order_seed": seeds.order}', '"order_seed": seeds.order, "variants": [Shrinking()]}')
    .replace("(0.2,)", "(0.3,)")
)


@pytest.mark.slow
def test_rows_of_a_method_of_ones_own_that_trains_in_a_way_of_its_own(tmp_path: Path) -> None:
    """In processes of their own, as commands are: nobody has imported its variant before."""
    (tmp_path / "variant_of_mine.py").write_text(OWN_VARIANT)
    (tmp_path / "of_mine").mkdir()
    (tmp_path / "of_mine" / "method.py").write_text(OWN_METHOD)
    text = SMALL.replace('"iterative"', '"of_mine:method"').replace('densities = [0.3, 0.1], rewind = "4it"', "")
    text = text.replace("random_reinit", "shuffled").replace("density = 0.1", "density = 0.3")
    (tmp_path / "small.toml").write_text(text)
    words = [sys.executable, "-m", "ticketry", "reproduce", "small.toml", "--trust", "--workers", "0", "--store", "new"]
    for more in ([], ["--check", "5", "--json"]):
        done = subprocess.run([*words, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert {one["found"] for one in json.loads(done.stdout)} == {"same bits"}
