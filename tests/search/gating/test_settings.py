"""Settings of gates: what cannot be meant is refused, and the temperature follows the schedule."""

from __future__ import annotations

import json
import sys

import pytest

from ticketry.errors import UsageError
from ticketry.search.gating.gating import Gating
from ticketry.tasks.recipe import Recipe

SCOPE = ("0.weight",)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"final": 1e13}, "final inverse temperature"),
        ({"final": float("inf")}, "final inverse temperature"),
        ({"final": 0.5}, "final inverse temperature"),
        ({"kind": "stochastic", "final": 1e13}, "final inverse temperature"),
        ({"init": 51}, "init"),
        ({"init": float("nan")}, "init"),
        ({"penalty": -1e-8}, "penalty"),
        ({"penalty": float("nan")}, "penalty"),
        ({"kind": "magic"}, "kind 'magic'"),
        ({"anneal": "batch"}, "anneal 'batch'"),
        ({"lr_schedule": "cosine"}, "lr_schedule"),
        ({"optimizer": "muon"}, "optimizer 'muon'"),
        ({"lr": -1}, "lr"),
        ({"reset": "none"}, "reset 'none'"),
        ({"scope": ()}, "no parameter"),
        ({"structured": True, "reset": "paper"}, "no further rounds"),
        ({"structured": True, "kind": "binary-concrete", "density": 0.5}, "steered to no density"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        Gating(**{"scope": SCOPE, **wrong})


def test_numbers_have_one_key():
    assert Gating(scope=SCOPE, init=0, final=200) == Gating(scope=SCOPE)


def test_gates_on_channels_have_keys_of_their_own():
    channels = Gating(scope=SCOPE, structured=True)
    assert Gating.from_description(channels.describe()) == channels != Gating(scope=SCOPE)


def test_progress_by_step():
    gating = Gating(scope=SCOPE)
    assert [gating.progress(step, total=4, per_epoch=2) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_progress_by_epoch():
    """Three epochs, the last one cut short: the official code's e / (E - 1)."""
    gating = Gating(scope=SCOPE, anneal="epoch")
    found = [gating.progress(step, total=5, per_epoch=2) for step in range(7)]
    assert found == [0, 0, 0.5, 0.5, 1, 1, 1]


def test_the_recipe_of_gates():
    weights = Recipe(schedule="multistep", milestones=("50%",), weight_decay=1e-4, warmup="3it")
    gates = Gating(scope=SCOPE, lr=0.3, momentum=0.5).recipe(weights)
    assert (gates.lr, gates.momentum, gates.weight_decay) == (0.3, 0.5, 0)
    assert (gates.schedule, gates.milestones, gates.warmup) == ("multistep", ("50%",), "3it")
    constant = Gating(scope=SCOPE, lr_schedule="constant").recipe(weights)
    assert (constant.schedule, constant.warmup) == ("constant", "0it")


def test_gates_of_a_kind_of_ones_own_have_a_key_of_its_source(tmp_path, monkeypatch):
    code = "from ticketry.core.gates import Stochastic\n\nclass Mine(Stochastic):\n    name = 'mine'\n"
    (tmp_path / "kind_of_mine.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    gating = Gating(scope=("fc.weight",), kind="kind_of_mine:Mine")
    told = gating.describe()
    assert Gating.from_description(json.loads(json.dumps(told))) == gating
    assert "source" not in Gating(scope=("fc.weight",)).describe()
    (tmp_path / "kind_of_mine.py").write_text(code + "# changed\n")
    del sys.modules["kind_of_mine"]  # as in another process: what is loaded stays what it is
    assert gating.describe() != told
