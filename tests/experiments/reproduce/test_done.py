"""Several processes may carry out one campaign in one store: each counts what the others have finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ticketry.cli import main
from ticketry.experiments.reproduce import campaign as carrying_out
from ticketry.experiments.reproduce.blocks import FinishedBlocks
from ticketry.experiments.reproduce.campaign_file import read_campaign
from ticketry.lab.store.files import read_with_digest
from ticketry.lab.store.paths import Paths
from ticketry.records.campaign import read_campaign_record

TWO = """
title = "Tickets and gradual pruning"
[scales.demo]
interim = [2]
[scales.demo.base]
task = "digits"
recipe = { length = "6it" }
[scales.demo.runs.tickets]
method = "iterative"
settings = { densities = [0.05] }
[scales.demo.runs.at-once]
method = "oneshot"
settings = { density = 0.05 }
[claims.better]
statement = "Tickets are better than pruning once."
a = { run = "tickets" }
b = { run = "at-once" }
density = 0.05
above = -50.0
margin = 40
"""


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    (file := tmp_path / "two.toml").write_text(TWO)
    return file


def words(file: Path, store: Path, *more: str) -> list[str]:
    return ["reproduce", str(file), "--workers", "0", "--device", "cpu", "--store", str(store), *more]


def test_blocks_that_come_into_the_store_are_seen(campaign: Path, tmp_path: Path) -> None:
    assert main(words(campaign, tmp_path / "store")) == 0
    read = read_campaign(campaign, "demo")
    store, aside = tmp_path / "store", tmp_path / "aside"
    shutil.move(store / "runs", aside)
    done = FinishedBlocks(read, Paths(store))
    assert done.counts == {"tickets": 0, "at-once": 0}
    assert done.refresh() == []
    for name, folder in (("tickets", "iterative"), ("at-once", "oneshot")):
        for run in sorted(aside.glob(f"{folder}-*")):
            shutil.copytree(run, store / "runs" / run.name)
        assert done.refresh() == [name]
    assert done.counts == FinishedBlocks(read, Paths(store)).counts
    assert done.refresh() == []


def test_what_another_process_has_finished_is_not_searched_again(
    campaign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first block is searched, another process carries out the whole campaign in the same store."""
    store, searched = tmp_path / "store", []
    real = carrying_out.execute

    def execute(lab, request, *, command):
        searched.append(request.method.name)
        if len(searched) == 1:
            monkeypatch.setattr(carrying_out, "execute", real)
            assert main(words(campaign, store)) == 0
            monkeypatch.setattr(carrying_out, "execute", execute)
        return real(lab, request, command=command)

    monkeypatch.setattr(carrying_out, "execute", execute)
    assert main(words(campaign, store)) == 0
    assert len(searched) == 1, "the other's blocks were there when the next was looked for"
    record = read_campaign_record(read_with_digest(store / "campaigns" / "two-demo.json"))
    assert {run.name: run.replicates for run in record.runs} == {"tickets": 2, "at-once": 2}
