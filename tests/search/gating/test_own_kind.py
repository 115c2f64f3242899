"""Kinds of gates of another package: their trainings are described to other processes, and come back."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ticketry as tk
from installed import site
from ticketry.errors import UsageError
from ticketry.lab.training.variant import variant_from
from ticketry.search.gating.gating import Gating
from ticketry.search.gating.search import _Moves

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


def test_they_come_back_from_their_description(kind: str) -> None:
    own, built_in = Gating(scope=("fc.weight",), kind=kind), Gating(scope=("fc.weight",))
    assert variant_from(described(own)) == own
    assert variant_from(described(built_in)) == built_in


def test_they_have_the_temperature_of_their_kind_unless_one_is_given(kind: str) -> None:
    """It was that of concrete gates, whatever the kind said, as no search has a setting for it."""
    own = Gating(scope=("fc.weight",), kind=kind)
    assert own.temperature == own.make_kind().temperature == 0.1  # type: ignore[attr-defined]
    given = Gating(scope=("fc.weight",), kind=kind, temperature=0.5)
    assert given.make_kind().temperature == 0.5  # type: ignore[attr-defined]
    assert variant_from(described(given)) == given
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
        init = _Moves(lab, result, None).init_for(0.3)
    assert float((ends - 0.3 + init >= 0.25 - 1e-6).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_of_a_kind_whose_source_has_changed_they_are_others(kind: str) -> None:
    told = described(Gating(scope=("fc.weight",), kind=kind))
    for source in ({"source": "0" * 64}, {}):
        with pytest.raises(UsageError, match=r"^the source of the variant of training 'gates' is no longer that"):
            variant_from({name: told[name] for name in told if name != "source"} | source)


@dataclass(frozen=True, kw_only=True)
class Derived(Gating):
    name = "derived"


def test_a_variant_of_ones_own_may_derive_from_them(kind: str) -> None:
    for own in (Derived(scope=("fc.weight",), kind=kind), Derived(scope=("fc.weight",))):
        assert variant_from(described(own)) == own


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
