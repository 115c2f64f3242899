"""Settings of gates: objectives, schedules, and kinds of gates from other packages."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

import ticketry as tk
from installed import site
from lab_fixtures import Lines
from ticketry.errors import TaskError, UsageError
from ticketry.lab.training.variant import variant_from_description
from ticketry.search.gating.gating import Gating, mean_kl_divergence, require_class_scores, require_classification
from ticketry.search.gating.search import _GateMovement
from ticketry.tasks.recipe import Recipe

SCOPE = ("0.weight",)
STEERED = {"kind": "binary-concrete", "penalty": 0, "frozen": True, "objective": "reverse_kl"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"final": 1e13}, "final inverse temperature"),
        ({"final": 0.5}, "final inverse temperature"),
        ({"init": 51}, "init"),
        ({"penalty": float("nan")}, "penalty"),
        ({"kind": "magic"}, "kind 'magic'"),
        ({"anneal": "batch"}, "anneal 'batch'"),
        ({"lr_schedule": "cosine"}, "lr_schedule"),
        ({"optimizer": "muon"}, "optimizer 'muon'"),
        ({"lr": -1}, "lr"),
        ({"reset": "none"}, "reset 'none'"),
        ({"scope": ()}, "no parameter"),
        ({"kind": "binary-concrete", "temperature": float("nan")}, "temperature"),
        ({"frozen": True, "objective": "mse"}, "objective 'mse' is not known: loss, reverse_kl, forward_kl"),
        ({"objective": "reverse_kl"}, "freeze them"),
        ({**STEERED, "density": 1.0}, "density above 0 and below 1"),
        ({**STEERED, "density": float("nan")}, "density above 0 and below 1"),
        ({"structured": True, "reset": "paper"}, "no further rounds"),
        ({"structured": True, "kind": "binary-concrete", "density": 0.5}, "steered to no density"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        Gating(**{"scope": SCOPE, **wrong})


def test_numbers_have_one_key():
    assert Gating(scope=SCOPE, init=0, final=200) == Gating(scope=SCOPE)


def test_annealing_progresses_by_step_or_by_epoch():
    """Three epochs, the last one cut short: the official code's e / (E - 1)."""
    gating = Gating(scope=SCOPE)
    assert [gating.annealing_progress(step, total=4, per_epoch=2) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    gating = Gating(scope=SCOPE, anneal="epoch")
    found = [gating.annealing_progress(step, total=5, per_epoch=2) for step in range(7)]
    assert found == [0, 0, 0.5, 0.5, 1, 1, 1]


def test_the_recipe_of_gates():
    weights = Recipe(schedule="multistep", milestones=("50%",), weight_decay=1e-4, warmup="3it")
    gates = Gating(scope=SCOPE, lr=0.3, momentum=0.5).gate_recipe(weights)
    assert (gates.lr, gates.momentum, gates.weight_decay) == (0.3, 0.5, 0)
    assert (gates.schedule, gates.milestones, gates.warmup) == ("multistep", ("50%",), "3it")
    constant = Gating(scope=SCOPE, lr_schedule="constant").gate_recipe(weights)
    assert (constant.schedule, constant.warmup) == ("constant", "0it")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12), count=st.integers(1, 9), scale=st.floats(0.01, 30))
def test_divergence_is_torch_s(seed: int, classes: int, count: int, scale: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    outputs, bare = (scale * torch.randn(count, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    p, q = Categorical(logits=outputs), Categorical(logits=bare)
    assert float(mean_kl_divergence(outputs, bare, reverse=True)) == pytest.approx(
        float(kl_divergence(p, q).mean()), abs=1e-9
    )
    assert float(mean_kl_divergence(outputs, bare, reverse=False)) == pytest.approx(
        float(kl_divergence(q, p).mean()), abs=1e-9
    )
    assert float(mean_kl_divergence(outputs, outputs + 3, reverse=True)) == pytest.approx(0, abs=1e-9)


def test_each_place_of_a_sequence_counts() -> None:
    outputs, bare = torch.randn(4, 7, 5), torch.randn(4, 7, 5)
    flat = [x.transpose(1, 2).reshape(20, 7) for x in (outputs, bare)]
    torch.testing.assert_close(mean_kl_divergence(outputs, bare, reverse=True), mean_kl_divergence(*flat, reverse=True))


NAMED = SimpleNamespace(name="lines")


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(4, 1), torch.zeros(4, 1)),  # regression
        (torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)),  # a single logit
        (torch.zeros(4, 5, 3), torch.zeros(4, 4, dtype=torch.int64)),
    ],
)
def test_no_class_scores(outputs: torch.Tensor, targets: torch.Tensor) -> None:
    with pytest.raises(TaskError, match=r"'lines' has outputs .*\(--objective loss\)"):
        require_class_scores(NAMED, outputs, targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_class_scores(shape: tuple[int, ...]) -> None:
    require_class_scores(NAMED, torch.zeros(4, 3, *shape), torch.zeros(4, *shape, dtype=torch.int64))  # type: ignore[arg-type]


def test_a_task_is_checked_before_anything_is_trained(lab, digits) -> None:
    with pytest.raises(TaskError, match="lines"):
        require_classification(lab, Lines())
    require_classification(lab, digits)
    assert lab.ledger.segments_asked == 0


__all__ = ["site"]  # a fixture

KIND = '''
from dataclasses import dataclass

import ticketry as tk


@dataclass(frozen=True)
class Steep(tk.gates.Kind):
    """Gates clip(s + 1/2, 0, 1), on where s is above 1/4."""

    name = "steep"
    threshold = 0.25
    temperature: float = 0.1

    def gate(self, logits, moment, uniform):
        return (logits + 0.5).clamp(0, 1)

    def test_gate(self, logits, moment):
        return self.gate(logits, moment, None)

    def open(self, logits, moment):
        return self.gate(logits, moment, None)
'''


@pytest.fixture
def kind(site: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind's place, known to this process and to those that it starts."""
    (site / "steep_gates.py").write_text(KIND)
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    return "steep_gates:Steep"


def described(gating: Gating) -> dict[str, object]:
    found: dict[str, object] = json.loads(json.dumps({**gating.identity(), **gating.describe()}))
    return found


def test_they_have_the_temperature_of_their_kind_unless_one_is_given(kind: str) -> None:
    """It was that of concrete gates, whatever the kind said, as no search has a setting for it."""
    own = Gating(scope=("fc.weight",), kind=kind)
    assert own.temperature == own.make_kind().temperature == 0.1  # type: ignore[attr-defined]
    given = Gating(scope=("fc.weight",), kind=kind, temperature=0.5)
    assert given.make_kind().temperature == 0.5  # type: ignore[attr-defined]
    assert variant_from_description(described(given)) == given
    assert Gating(scope=("fc.weight",), kind="binary-concrete").temperature == 2 / 3


def test_s0_is_found_beside_the_threshold_of_their_kind(kind: str, tmp_path: Path) -> None:
    """Gates of which one ended where s0 has to begin for a share to stay on: it was looked for beside 0."""
    with tk.Lab(tmp_path / "store", workers=0) as lab:
        task = tk.task("digits")
        names = tuple(tk.scope(task.build()))
        gating = Gating(scope=names, kind=kind, penalty=1e-3, init=0.3, lr=1.0)
        segment = lab.segment(task, start=0, recipe=task.recipe.changed(length="20it"), variants=(gating,))
        result = lab.train(segment)
        tensors = lab.store.get_tensors(result.variants["gates"])
        ends = torch.cat([tensors[f"s/{name}"].flatten() for name in sorted(names)])
        init = _GateMovement(lab, result, None).init_for_share(0.3)
    assert float((ends - 0.3 + init >= 0.25 - 1e-6).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_of_a_kind_whose_source_has_changed_they_are_others(kind: str) -> None:
    told = described(Gating(scope=("fc.weight",), kind=kind))
    for source in ({"source": "0" * 64}, {}):
        with pytest.raises(UsageError, match=r"^the source of the variant of training 'gates' is no longer that"):
            variant_from_description({name: told[name] for name in told if name != "source"} | source)


@pytest.mark.slow
def test_another_process_trains_the_same_bits(kind: str, tmp_path: Path) -> None:
    states = {}
    for workers in (0, 1):
        with tk.Lab(tmp_path / str(workers), workers=workers) as lab:
            task = tk.task("digits")
            gating = Gating(scope=tuple(tk.scope(task.build())), kind=kind, penalty=1e-3, init=0.1)
            segment = lab.segment(task, start=0, recipe=task.recipe.changed(length="20it"), variants=(gating,))
            states[workers] = lab.state(lab.train(segment))
    here, there = states[0], states[1]
    assert here.keys() == there.keys()
    assert all(torch.equal(here[name], there[name]) for name in here)


@dataclass(frozen=True, kw_only=True)
class Derived(Gating):
    name = "derived"


@pytest.mark.parametrize("variant", [Gating, Derived])
def test_gates_come_back_from_their_description(kind: str, variant: type[Gating]) -> None:
    plain, channels = variant(scope=SCOPE), variant(scope=SCOPE, structured=True)
    assert plain != channels
    for gating in (plain, channels, variant(scope=SCOPE, kind=kind)):
        assert variant_from_description(described(gating)) == gating


def test_what_is_known_is_not_loaded_again(lab, digits, monkeypatch) -> None:
    require_classification(lab, digits)
    monkeypatch.setattr(type(digits), "load", lambda self, data=None: pytest.fail("loaded again"))
    require_classification(lab, digits)
