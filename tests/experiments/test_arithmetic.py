"""Runs of another arithmetic are other runs: each has its name and its tickets, and its file repeats it."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.cli import main
from ticketry.cli.results import _format_repeat_command
from ticketry.experiments.options import LabOptions, open_lab
from ticketry.experiments.reproduce.blocks import Block
from ticketry.experiments.reproduce.campaign_file import read_campaign
from ticketry.experiments.run import Run
from ticketry.experiments.run_file import read_run_file
from ticketry.lab.store.files import write_with_digest
from ticketry.lab.training.precision import non_default_choices
from ticketry.records.schema import as_json

SHORT: dict[str, Any] = {
    "task": "digits",
    "levels": 1,
    "replicates": 1,
    "controls": (),
    "recipe": {"length": "6it"},
    "workers": 0,
    "device": "cpu",
}


def search(store: Path, **chosen: Any) -> Run:
    return tk.run("iterative", store=store, **{**SHORT, "precision": "fp32", **chosen})


def repeated(run: Run, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    """What the run's file gives, and nothing else that is said."""
    capsys.readouterr()
    store = str(run.options.store)
    words = ["search", "--config", str(run.path / "run.toml"), "--store", store, "--workers", "0", "--json", *more]
    assert main(words) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def check_file_repeats(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    again = repeated(run, capsys)
    assert (again["run"], again["now"]["segments_trained"]) == (run.name, 0)


def test_what_is_unusual() -> None:
    assert non_default_choices(precision="fp32", norms="own", parallel="fsdp") == {}, (
        "of one device there is nothing to choose"
    )
    assert non_default_choices(precision="bf16", threads=2) == {"precision": "bf16", "threads": 2}
    several = {"devices": 2, "norms": "own", "parallel": "fsdp"}
    assert non_default_choices(precision="fp32", **several) == several
    assert non_default_choices(precision="fp32", devices=2) == {"devices": 2}


def test_each_arithmetic_has_its_own_run_which_its_file_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    chosen: list[dict[str, Any]] = [{}, {"precision": "bf16"}, {"threads": 2}]
    runs = [search(tmp_path / "store", **one) for one in chosen]
    assert len({run.name for run in runs}) == len(list((tmp_path / "store" / "runs").iterdir())) == 3
    assert [run.request.name for run in runs] == [run.name for run in runs]
    weights = [run.tickets[0].load().trained for run in runs]
    alone = search(tmp_path / "alone", threads=1, norms="own")
    assert alone.name == runs[0].name, "the defaults in words"
    assert "arithmetic" not in alone.request.identity()
    assert all(torch.equal(weights[0][name], found) for name, found in alone.tickets[0].load().trained.items())
    assert not all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not caplog.records
    for run in runs:
        check_file_repeats(run, capsys)


def test_a_file_repeats_a_run_in_sparse_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("llvmlite")
    check_file_repeats(search(tmp_path, kernels="sparse"), capsys)


@pytest.mark.slow  # two processes for each network
@pytest.mark.parametrize("chosen", [{"devices": 2}, {"devices": 2, "norms": "own"}], ids=str)
def test_a_file_repeats_a_run_on_several_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chosen: dict[str, Any]
) -> None:
    run = search(tmp_path, **chosen)
    assert run.name != search(tmp_path).name
    check_file_repeats(run, capsys)


def test_a_file_says_on_which_device_where_that_is_not_left_open(tmp_path: Path) -> None:
    assert read_run_file(search(tmp_path / "said").path / "run.toml")["device"] == "cpu"
    made = search(tmp_path / "open", device="auto")
    told = read_run_file(made.path / "run.toml").get("device")
    assert told == (None if made.record.environment["device"] == "cpu" else "cuda")


def test_the_command_that_repeats_a_run_of_an_older_file(tmp_path: Path) -> None:
    """Which said neither threads nor device: the record does."""
    record = search(tmp_path).record
    file = tmp_path / "run.toml"
    file.write_text('method = "iterative"\ntask = "digits"\n')
    record.environment.update(threads_per_segment=2, device="cuda")
    assert _format_repeat_command(file, record).endswith(" --kernels dense --precision fp32 --device cuda --threads 2")
    record.environment.update(threads_per_segment=1, device="cpu")
    assert _format_repeat_command(file, record).endswith(" --kernels dense --precision fp32")


def test_a_run_of_an_older_store_keeps_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its name told nothing of the arithmetic: its file makes its tickets again, and no second run."""
    made = search(tmp_path, precision="bf16")
    older = replace(made.request, arithmetic={})
    record = as_json(made.record) | {"run": older.name}
    shutil.rmtree(made.path)
    write_with_digest(tmp_path / "runs" / older.name / "run.json", record)
    again = search(tmp_path, precision="bf16")
    assert (again.name, again.now["segments_trained"]) == (older.name, 0)
    assert repeated(again, capsys)["run"] == older.name
    other = search(tmp_path, precision="bf16", threads=2)
    assert len({made.name, older.name, other.name}) == 3


def test_another_arithmetic_of_the_same_name_is_told_before_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("llvmlite")
    for kernels, told in (("dense", 0), ("sparse", 1), ("sparse", 0), ("dense", 1)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            search(tmp_path, kernels=kernels, task="norms_task:norms", levels=2, rate=0.6)
        assert len(caplog.records) == told, kernels
    assert "was trained with kernels sparse, and is now trained with kernels dense" in caplog.text


def test_kernels_that_were_asked_for_and_not_used_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = search(tmp_path, kernels="auto", precision="bf16")
    if made.record.environment["kernels_used"] != ["dense"]:
        pytest.skip("this processor uses them for dense networks too")
    with caplog.at_level(logging.WARNING):
        search(tmp_path, kernels="dense", precision="bf16")
    assert not caplog.records


CAMPAIGN = """
title = "Tickets in two precisions"
[scales.demo]
interim = [2]
[scales.demo.base]
task = "digits"
recipe = { length = "6it" }
method = "iterative"
settings = { densities = [0.5] }
precision = "bf16"
[scales.demo.bases.plain]
task = "digits"
recipe = { length = "6it" }
method = "iterative"
settings = { densities = [0.5] }
precision = "fp32"
[scales.demo.runs.half]
[scales.demo.runs.whole]
base = "plain"
[claims.half]
statement = "Tickets in bf16 are as good as dense."
a = { run = "half" }
b = { run = "half", role = "dense" }
density = 0.5
above = -90
margin = 80
[claims.whole]
statement = "And in fp32."
a = { run = "whole" }
b = { run = "whole", role = "dense" }
density = 0.5
above = -90
margin = 80
"""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("chosen", [{}, {"threads": 2}, {"devices": 2, "parallel": "fsdp", "norms": "own"}], ids=str)
def test_a_campaign_looks_for_what_its_lab_writes(tmp_path: Path, precision: Any, chosen: dict[str, Any]) -> None:
    (file := tmp_path / "two.toml").write_text(CAMPAIGN)
    options = LabOptions(store=tmp_path / "store", workers=0, device="cpu", **chosen)
    read = read_campaign(file, "demo")
    asked = replace(read, precisions=dict.fromkeys(read.runs, precision), together=options.lab_arguments)
    request = Block("whole", 0, 0, 2).search_request(asked)
    with open_lab(options, request.task) as lab, asked.with_arithmetic(lab, "whole"):
        assert replace(request, arithmetic={}).for_lab(lab).name == request.name
    usual = Block("whole", 0, 0, 2).search_request(read)
    assert (request.name == usual.name) == (not chosen and precision == "fp32")
