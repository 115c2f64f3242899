"""What is asked of several devices, what it does to keys, and what is refused before anything is trained."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from lab_fixtures import PointsTask, on_the_cpu  # noqa: F401
from rank_trainings import task_of
from ticketry.errors import TaskError, UsageError
from ticketry.lab.lab import Lab
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic
from ticketry.lab.training.ranks.launch import check_machine
from ticketry.search.gating.gating import Gating
from ticketry.tasks import catalogue


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with Lab(tmp_path / "store", devices=2, device="cpu") as lab:
        yield lab


def test_one_device_adds_nothing_to_a_key():
    alone = {"device": "cpu", "precision": "fp32", "channels_last": False, "threads": 1}
    assert Arithmetic().describe() == alone
    several = Arithmetic(ranks=2, norms="own")
    assert several.describe() == {**alone, "ranks": 2, "norms": "own"}
    assert Arithmetic(**several.describe()) == several


def test_norms_are_part_of_a_key_where_there_are_some():
    plain, normed = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert choose_arithmetic(plain, ranks=2).norms == ""
    assert choose_arithmetic(normed, ranks=1).norms == ""
    assert choose_arithmetic(normed, ranks=2).norms == "synchronised"
    assert choose_arithmetic(normed, ranks=2, norms="own").norms == "own"
    with pytest.raises(UsageError, match="norms 'none' is not known"):
        choose_arithmetic(normed, ranks=2, norms="none")


def test_a_segment_of_several_devices(two):
    segment = two.segment(task_of(), start=0)
    assert (segment.arithmetic.ranks, segment.arithmetic.norms) == (2, "synchronised")
    assert type(segment).from_description(segment.describe(), segment.task) == segment


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("Summed", {}, "no mean over the examples of a batch"),
        ("Pictures", {"batch": 1}, "a batch of pictures has 1 example, fewer than the 2 devices"),
        ("OwnReader", {}, r"reader of own_reader \(WholeBatches\) reads whole batches only.*first is the place"),
        ("Pictures", {"examples": 193}, "the last batch of an epoch of pictures has 1 example"),
    ],
)
def test_tasks_that_cannot_be_cut(two, name, options, told):
    for _ in range(2):  # it is remembered
        with pytest.raises(TaskError, match=told):
            two.segment(task_of(name, **options), start=0)


def test_tasks_that_no_other_process_can_train(two):
    with pytest.raises(TaskError, match="not cut among several devices"):
        two.segment(catalogue.get("cartpole"), start=0)
    with pytest.raises(TaskError, match=r"name it as package.module:object.*on one device"):
        two.segment(PointsTask(), start=0)


def test_variants_that_one_process_trains(two):
    drawn = [{"kind": "hard-concrete"}, {"frozen": True}, {"structured": True}]
    for settings in drawn:
        with pytest.raises(UsageError, match="training with gates is done by one process, not by 2"):
            two.segment(task_of(), start=0, variants=(Gating(scope=("0.weight",), **settings),))
    assert two.segment(task_of(), start=0, variants=(Gating(scope=("0.weight",)),)).arithmetic.ranks == 2


def test_sparse_kernels_are_of_one_process(two):
    with two.training_in("sparse"), pytest.raises(UsageError, match="sparse kernels train in one process"):
        two.segment(task_of(), start=0)
    with two.training_in("auto"):
        assert two.segment(task_of(), start=0).arithmetic.kernels == "dense"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((3, 1, 1), "--devices 3 with 1 thread each compute on 3 cores, and this machine has 2"),
        ((2, 2, 1), "--devices 2 with 2 threads each compute on 4 cores"),
        ((2, 1, 2), "2 networks at once, each on 2 devices of 1 thread, compute on 4 cores.*--workers 1"),
    ],
)
def test_more_devices_than_the_machine_has(monkeypatch, tmp_path, asked, told):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    devices, threads, workers = asked
    with pytest.raises(UsageError, match=told):
        Lab(tmp_path / "store", devices=devices, threads=threads, workers=workers)
    check_machine(2, 1, 1, "cpu")


def test_more_gpus_than_the_machine_has(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_machine(2, 8, 1, "auto")
    with pytest.raises(UsageError, match="--devices 3 asks for as many GPUs, and this machine has 2"):
        check_machine(3, 1, 1, "auto")
