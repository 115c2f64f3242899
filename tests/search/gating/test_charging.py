"""Searches by gates under a budget: tickets cost what was asked for, gates are charged, and what cannot be is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from samples import sample
from search.known_costs import costs, slowly, task
from search.test_aims import check_multiplications
from search.test_measured_time import Scripted
from ticketry.core.gates import Charges
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.lab import masks
from ticketry.lab.masks import dense_macs, macs_by_layer, remaining_macs
from ticketry.search.gating.gating import Gating, get_gating

SETTINGS: dict[str, dict[str, Any]] = {
    "continuous": {"rounds": 1, "rewind": "10%", "gate_lr": 10.0, "init": 0.05},
    "stochastic": {"rounds": 1, "rewind": "10%", "gate_lr": 10.0, "init": 0.05},
    "concrete": {"rewind": "10%", "collapse": "keep"},
    "l0": {"collapse": "keep"},
}
LENGTH = "60it"


def found_by(lab: tk.Lab, name: str, length: str = LENGTH, **asked: Any) -> list[tk.search.Found]:
    method = tk.search.method(name)
    settings = decode_settings({**SETTINGS[name], **asked}, method.Settings, what=name)[0]
    return method(lab, task(), settings, recipe=task().recipe.changed(length=length))[0]


@pytest.mark.parametrize("name", sample(SETTINGS, ("concrete",)))
def test_tickets_cost_the_multiplications_that_were_asked_for(name: str, tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, name, "20it", flops=0.4)[-1]
        check_multiplications(lab, ticket, 0.4)
        assert get_gating(ticket.searched[-1].segment).prices


@pytest.mark.parametrize("name", ["concrete", *(pytest.param(n, marks=pytest.mark.slow) for n in ("continuous", "l0"))])
def test_tickets_take_the_time_that_costs_tell(name: str, tmp_path: Path) -> None:
    file = costs().save(tmp_path / "costs.json")
    with tk.Lab(tmp_path / "store") as lab:
        ticket = found_by(lab, name, "20it", time=0.5, base="engine", profile=str(file))[-1]
        assert 0.49 < slowly(lab.store.get_mask(str(ticket.mask)), costs()) / costs().dense <= 0.5
        told = get_gating(ticket.searched[-1].segment)
        sizes = {name: layer.weights for name, layer in costs().layers.items()}
        charges = Charges.by(costs(), {name: sizes[name] for name in told.scope})
        assert [curve for curve, _ in zip(told.prices, charges.curves, strict=True)] == [
            (curve.densities, curve.costs) for curve in charges.curves
        ]


def test_charged_gates_leave_the_dear_weights(tmp_path: Path) -> None:
    """The same cost, reached by other layers: gates charged by multiplications are shut where they are dear."""
    with tk.Lab(tmp_path) as lab:
        kept, price = {}, macs_by_layer(lab, task())
        for unweighed in (False, True):
            ticket = found_by(lab, "l0", flops=0.5, unweighed=unweighed, penalty=60.0, until="80%")[-1]
            assert bool(get_gating(ticket.searched[-1].segment).prices) is not unweighed
            kept[unweighed] = lab.store.get_mask(str(ticket.mask))
    mean = sum(one * size for one, size in price.values()) / sum(size for _, size in price.values())
    dear = [name for name, (one, _) in price.items() if one > mean]
    assert 0 < len(dear) < len(price)
    charged, alike = (sum(int(kept[each][name].sum()) for name in dear) for each in (False, True))
    assert charged < alike
    assert kept[False].kept > 1.2 * kept[True].kept  # more weights for the same multiplications


def test_prices_are_plain_values_of_a_key() -> None:
    prices = (((0.0, 0.5, 1.0), (0.0, 1.0, 3.0)),)
    gating = Gating(scope=("0.weight",), prices=prices)
    described = gating.describe()
    assert Gating.from_description({**described, "prices": [[list(part) for part in prices[0]]]}) == gating
    assert "prices" not in Gating(scope=("0.weight",)).describe()
    with pytest.raises(UsageError, match="one curve for each parameter"):
        Gating(scope=("0.weight", "2.weight"), prices=prices)
    with pytest.raises(UsageError, match="of single weights"):
        Gating(scope=("0.weight",), prices=prices, structured=True)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("continuous", {"flops": (0.5, 0.3)}, "for one budget: give one flops"),
        ("continuous", {"flops": 0.5, "init": (0.0, 0.1)}, "flops finds s0 itself"),
        ("continuous", {"flops": 0.5, "structure": "rows:4"}, "leave structure rows:4 out"),
        ("continuous", {"flops": 0.5, "equal_cost": "steps"}, "with flops the number of rounds"),
        ("concrete", {"flops": 1.0}, "flops 1 is the dense network"),
        ("l0", {"flops": 0.5, "structure": "channels"}, "leave structure channels out"),
        (
            "concrete",
            {"time": 0.12, "base": "engine", "profile": "FILE"},
            "left without a single weight|below the floor",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = str(costs().save(tmp_path / "costs.json"))
    given = {key: file if value == "FILE" else value for key, value in settings.items()}
    own = {key: value for key, value in SETTINGS[name].items() if key not in given}
    with pytest.raises(UsageError, match=said):
        tk.run(name, task(), store=tmp_path / "store", **own, **given)
    assert not list((tmp_path / "store").rglob("segments/**/*.safetensors"))


def test_a_budget_below_the_floor_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(LayerCollapseError, match=r"one weight in each of 5 layers"):
        tk.run("concrete", task(), flops=0.0001, store=tmp_path, **SETTINGS["concrete"])
    assert not list(tmp_path.rglob("segments/**/*.safetensors"))


@pytest.mark.slow
def test_s0_is_found_by_the_costs_of_the_hard_gates(tmp_path: Path) -> None:
    """The gates themselves end within 10 % of the budget; the cut spends what is left."""
    from ticketry.search.gating.gating import mask_of_open_gates

    with tk.Lab(tmp_path) as lab:
        dense, *tickets = found_by(lab, "continuous", flops=0.3, rounds=2, init=0.0)
        assert dense.aim == ""
        ends = lab.store.get_mask(mask_of_open_gates(lab, tickets[-1].searched[-1]))
        full = dense_macs(lab, task())
        assert remaining_macs(lab, task(), ends) == pytest.approx(0.3 * full, rel=0.1)
        mask = lab.store.get_mask(str(tickets[-1].mask))
        smaller, larger = sorted((ends, mask), key=lambda one: one.kept)
        assert smaller & larger == smaller  # one threshold, moved


@pytest.mark.slow
def test_the_time_of_gates_is_met_by_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(masks, "_build_meter", lambda lab, of, costs: Scripted(lab, of, 1.25))
    monkeypatch.setattr(masks, "check_measurable_here", lambda costs: None)
    file = costs().save(tmp_path / "costs.json")
    common: dict[str, Any] = {"replicates": 1, "recipe": {"length": LENGTH}, "store": tmp_path / "store"}
    asked = {
        "time": 0.5,
        "base": "engine",
        "profile": str(file),
        "measured": True,
        "controls": ("random_prune", "dense_of_time"),
    }
    run = tk.run("concrete", task(), **SETTINGS["concrete"], **asked, **common)
    points = {point.role: point for point in run.record.points}
    achieved = 1.25 * slowly(run.tickets[0].load().mask, costs()) / costs().dense
    assert achieved == pytest.approx(0.5, rel=0.016)
    assert points["ticket"].timed.share == pytest.approx(achieved)
    assert points["dense_of_time"].timed.share >= points["ticket"].timed.share
    again = tk.run("concrete", task(), **SETTINGS["concrete"], **asked, **common)
    assert again.now["segments_trained"] == 0
    assert again.record == run.record
