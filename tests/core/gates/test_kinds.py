"""Each kind of gate against its definition, written out or computed another way."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch import nn

import ticketry as tk
from ticketry.core.gates import (
    BinaryConcrete,
    Continuous,
    HardConcrete,
    Kind,
    Moment,
    Stochastic,
    by_epoch,
    by_step,
    inverse_temperature,
)
from ticketry.core.gates.kinds import make_kind
from ticketry.errors import UsageError
from ticketry_engine.support.seeds import generator

AT = Moment(init=0.0, beta=1.0)
SOME = torch.tensor([-4.0, -2.5, -2.3, -0.5, 0.0, 0.7, 3.0], dtype=torch.float64)


def logistic(value):
    return 1 / (1 + np.exp(-value))


class TestContinuous:
    @pytest.mark.parametrize("init", [-0.3, 0.0, 0.1, 2.0])
    def test_a_fresh_gate_is_1(self, init):
        moment = Moment(init, 1.0)
        torch.testing.assert_close(Continuous().gate(torch.tensor([init]), moment, None), torch.ones(1))

    def test_it_tends_to_the_hard_gate(self):
        hard = Continuous().hard_gate(SOME, Moment(0.1, 1.0))
        assert hard.tolist() == [0, 0, 0, 0, 0, pytest.approx(1 + math.exp(-0.1)), pytest.approx(1 + math.exp(-0.1))]
        soft = Continuous().gate(SOME, Moment(0.1, 1e6), None)
        torch.testing.assert_close(soft[SOME != 0], hard[SOME != 0])

    def test_written_out(self):
        gate = Continuous().test_gate(SOME, Moment(0.3, 12.0))
        np.testing.assert_allclose(gate, logistic(12 * SOME.numpy()) / logistic(0.3))
        np.testing.assert_allclose(Continuous().open(SOME, Moment(0.3, 12.0)), logistic(12 * SOME.numpy()))

    def test_temperature(self):
        assert [Continuous().inverse_temperature(p) for p in (0, 0.5, 1)] == [1, pytest.approx(200**0.5), 200]
        assert Continuous(final=500).inverse_temperature(1) == 500


class TestStochastic:
    def test_draws_are_0_or_1_with_the_probability_of_s(self):
        logits = SOME.repeat(40_000, 1)
        gate = Stochastic().gate(logits, AT, torch.rand(logits.shape, dtype=torch.float64, generator=generator(1)))
        assert set(gate.unique().tolist()) == {0, 1}
        chance = logistic(SOME.numpy())
        assert (np.abs(gate.mean(0).numpy() - chance) < 5 * np.sqrt(chance * (1 - chance) / 40_000)).all()

    def test_straight_through(self):
        """dL/ds = dL/dm sigmoid'(s), whatever was drawn; dL/dw = dL/dm m."""
        layer = nn.Linear(50, 40, bias=False)
        model = nn.Sequential(layer)
        g = tk.gates.attach(model, kind="stochastic", init=0.4)
        seen = []
        layer.register_forward_hook(lambda module, args, output: seen.append(module.weight))
        inputs = torch.randn(3, 50)
        outputs = model(inputs)
        outputs.square().sum().backward()
        of_product = (2 * outputs).t() @ inputs
        drawn = seen[0].detach() != 0
        assert 0.5 < drawn.float().mean() < 0.7  # sigmoid(0.4) = 0.6
        torch.testing.assert_close(seen[0], layer.weight * drawn)
        slope = float(logistic(0.4) * (1 - logistic(0.4)))
        torch.testing.assert_close(g.parameters()[0].grad, of_product * layer.weight * slope)
        torch.testing.assert_close(layer.weight.grad, of_product * drawn)

    def test_eval_is_the_mask(self):
        assert Stochastic().test_gate(SOME, AT).tolist() == [0, 0, 0, 0, 0, 1, 1]


class TestDraws:
    @pytest.mark.parametrize("kind", ["stochastic", "hard-concrete", "binary-concrete"])
    def test_a_pure_function_of_seed_and_step(self, build, kind):
        case = build("resnet")
        g = tk.gates.attach(case.model.train(), kind=kind, seed=3)
        for module in case.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        inputs = case.batches[0][0]

        def at(step):
            g.set_step(step)
            return case.model(inputs)

        first, second = at(7), at(8)
        assert not torch.equal(first, second)
        torch.rand(100)
        assert torch.equal(at(7), first)
        assert torch.equal(case.model(inputs), first)  # until the gates change
        case.model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(at(7), first)
        g.detach()
        other = tk.gates.attach(case.model, kind=kind, seed=4)
        other.set_step(7)
        assert not torch.equal(case.model(inputs), first)

    @pytest.mark.parametrize("options", [{}, {"fused": True}])
    def test_steps_follow_the_updates(self, options):
        """Several forward passes between two updates see the same gates (accumulation, checkpointing)."""
        model = nn.Sequential(nn.Linear(20, 20, bias=False))
        g = tk.gates.attach(model, kind="stochastic", seed=1)
        optimizer = torch.optim.SGD(g.parameters(), lr=1e-6, **options)
        seen = []
        model[0].register_forward_hook(lambda module, args, output: seen.append(module.weight != 0))
        for _ in range(3):
            for _ in range(2):
                model(torch.ones(1, 20)).sum().backward()
            optimizer.step()
        assert g.step == 3
        assert [torch.equal(seen[0], other) for other in seen] == [True, True, False, False, False, False]
        assert torch.equal(seen[2], seen[3])
        for step in range(3):
            g.set_step(step)
            model(torch.ones(1, 20))
            assert torch.equal(seen[-1], seen[2 * step])

    def test_parameters_of_one_shape_differ(self):
        model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        tk.gates.attach(model, kind="stochastic")
        seen = []
        for module in model:
            module.register_forward_hook(lambda module, args, output: seen.append(module.weight != 0))
        model(torch.ones(1, 20))
        assert not torch.equal(*seen)

    def test_resuming_goes_on_with_the_next_draws(self):
        def run(steps, model, g, optimizer):
            for _ in range(steps):
                model(torch.ones(1, 20)).square().sum().backward()
                optimizer.step()

        def fresh():
            torch.manual_seed(0)
            model = nn.Linear(20, 20)
            g = tk.gates.attach(model, kind="hard-concrete", seed=1)
            return model, g, torch.optim.SGD([*model.parameters(), *g.parameters()], lr=0.01, fused=True)

        whole, first, second = fresh(), fresh(), fresh()
        run(5, *whole)
        run(2, *first)
        second[0].load_state_dict(first[0].state_dict())
        second[1].load_state_dict(first[1].state_dict())
        for one, other in zip(second[2].param_groups[0]["params"], first[2].param_groups[0]["params"], strict=True):
            one.grad = other.grad.clone()  # this loop never sets gradients to 0
        run(3, *second)
        assert torch.equal(whole[0].weight, second[0].weight)
        assert torch.equal(whole[1].parameters()[0], second[1].parameters()[0])


def hard_concrete_density(kind: HardConcrete, s: float):
    """The density of the stretched concrete variable, before it is clipped (Louizos et al., equations 23 and 24)."""
    tau = kind.temperature

    def concrete(z):
        odds = z ** (-tau - 1) * (1 - z) ** (-tau - 1)
        return tau * np.exp(s) * odds / (np.exp(s) * z**-tau + (1 - z) ** -tau) ** 2

    return lambda x: concrete((x - kind.gamma) / (kind.zeta - kind.gamma)) / (kind.zeta - kind.gamma)


@pytest.mark.parametrize("kind", [HardConcrete(), HardConcrete(gamma=-0.2, zeta=1.3, temperature=0.5)])
class TestHardConcrete:
    def test_the_penalty_is_the_share_of_draws_that_are_not_0(self, kind):
        count = 100_000
        logits = SOME.repeat(count, 1)
        gate = kind.gate(logits, AT, torch.rand(logits.shape, dtype=torch.float64, generator=generator(2)))
        assert 0 <= float(gate.min()) <= float(gate.max()) <= 1
        assert (gate == 0).any()
        assert (gate == 1).any()
        chance = kind.open(SOME, AT)
        assert bool(((gate != 0).double().mean(0) - chance).abs().lt(5 * (chance * (1 - chance) / count).sqrt()).all())

    @pytest.mark.parametrize("s", [-1.0, 0.5])
    def test_draws_have_the_density(self, kind, s):
        draws = kind.gate(
            torch.full((50_000,), s, dtype=torch.float64),
            AT,
            torch.rand(50_000, dtype=torch.float64, generator=generator(3)),
        )
        for edge in (0.1, 0.5, 0.9):
            below, _ = integrate.quad(hard_concrete_density(kind, s), kind.gamma, edge, limit=200)
            assert float((draws <= edge).double().mean()) == pytest.approx(below, abs=0.012)

    def test_eval_is_the_median_stretched_and_clipped(self, kind):
        expected = np.clip(logistic(SOME.numpy()) * (kind.zeta - kind.gamma) + kind.gamma, 0, 1)
        np.testing.assert_allclose(kind.test_gate(SOME, AT), expected)
        np.testing.assert_allclose(kind.hard_gate(SOME, AT), expected)

    def test_the_mask_is_the_support_of_the_gates(self, kind):
        model = nn.Linear(7, 1, bias=False)
        g = tk.gates.attach(model, kind=kind)
        with torch.no_grad():
            g.parameters()[0].copy_(SOME)
        expected = [[value > 0 for value in kind.test_gate(SOME, AT).tolist()]]
        assert g.harden()["weight"].tolist() == expected
        model.eval()
        g.detach(apply=True)
        assert (model.weight != 0).tolist() == expected

    def test_the_border(self, kind):
        border = torch.tensor([kind.threshold, np.nextafter(kind.threshold, 9)], dtype=torch.float64)
        assert kind.hard_gate(border, AT)[0] == 0
        assert float(kind.test_gate(border, AT)[1]) < 1e-9


def test_the_published_hard_concrete_numbers():
    kind = HardConcrete()
    assert (kind.gamma, kind.zeta, kind.temperature) == (-0.1, 1.1, 2 / 3)
    assert kind.threshold == pytest.approx(math.log(0.1 / 1.1))
    assert float(kind.open(torch.tensor(0.0), AT)) == pytest.approx(1 / (1 + (0.1 / 1.1) ** (2 / 3)))


class TestBinaryConcrete:
    @pytest.mark.parametrize("temperature", [0.1, 2 / 3, 1.0])
    def test_distribution(self, temperature):
        """P(m <= x) = sigmoid(temperature logit(x) - s), by solving for the noise."""
        kind, logits = BinaryConcrete(temperature), SOME.repeat(50_000, 1)
        gate = kind.gate(logits, AT, torch.rand(logits.shape, dtype=torch.float64, generator=generator(4)))
        for x in (0.05, 0.5, 0.8):
            expected = logistic(temperature * math.log(x / (1 - x)) - SOME.numpy())
            np.testing.assert_allclose((gate <= x).double().mean(0), expected, atol=0.012)

    def test_eval_is_the_retention_probability(self):
        np.testing.assert_allclose(BinaryConcrete().test_gate(SOME, AT), logistic(SOME.numpy()))
        np.testing.assert_allclose(BinaryConcrete().open(SOME, AT), logistic(SOME.numpy()))
        assert BinaryConcrete().hard_gate(SOME, AT).tolist() == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", [HardConcrete(), BinaryConcrete(), BinaryConcrete(0.2)])
def test_gradients_of_relaxed_draws(kind):
    logits = SOME.clone().requires_grad_()
    uniform = torch.rand(SOME.shape, dtype=torch.float64, generator=generator(5))
    assert torch.autograd.gradcheck(lambda s: kind.gate(s, AT, uniform), (logits,))


@pytest.mark.parametrize("kind", [Continuous(), Stochastic(), HardConcrete(), BinaryConcrete()])
@given(s=st.floats(width=32, allow_nan=False), uniform=st.sampled_from([2.0**-23, 0.5, 1 - 2.0**-24]))
def test_extreme_logits_give_gates_and_gradients_that_are_numbers(kind: Kind, s, uniform):
    logits = torch.tensor([s], requires_grad=True)
    for moment in (AT, Moment(0.0, kind.inverse_temperature(1.0))):
        gates = [
            kind.gate(logits, moment, torch.tensor([uniform])),
            kind.test_gate(logits, moment),
            kind.hard_gate(logits, moment),
            kind.open(logits, moment),
        ]
        assert all(0 <= float(gate.detach()) <= 2 for gate in gates)
        (gradient,) = torch.autograd.grad(sum(gates).sum(), logits)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Continuous(final=0.5),
        lambda: Continuous(final=float("inf")),
        lambda: Continuous(final=float("nan")),
        lambda: Stochastic(final=0),
        lambda: BinaryConcrete(0),
        lambda: BinaryConcrete(1.5),
        lambda: HardConcrete(gamma=0.1),
        lambda: HardConcrete(zeta=1),
        lambda: HardConcrete(temperature=-1),
    ],
)
def test_settings_that_cannot_be_meant(make):
    with pytest.raises(UsageError):
        make()


class Needy(Kind):
    name = "needy"

    def __init__(self, width):
        self.width = width

    def gate(self, logits, moment, uniform):
        return logits / self.width

    test_gate = open = gate


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Needy, "an object of a kind's class, not the class Needy: call it"),
        (None, "not a NoneType"),
        (f"{__name__}:Needy", "cannot be made by its name alone: .*missing 1 required positional argument: 'width'"),
    ],
)
def test_what_is_no_kind_is_told(kind, told):
    with pytest.raises(UsageError, match=told):
        tk.gates.attach(nn.Linear(3, 2), kind=kind)


class Half(Kind):
    """No name, and half of what a kind has to say."""

    def gate(self, logits, moment, uniform):
        return torch.sigmoid(logits)


class Flat(Half):
    name = "flat"

    def test_gate(self, logits, moment):
        return torch.sigmoid(logits).mean()

    def open(self, logits, moment):
        return torch.sigmoid(logits)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Half, r"the kind of gates Half lacks test_gate\(\), open\(\), name, a word"),
        (Flat, r"test_gate\(\) of the gates 'flat' gives \[\] for s of shape \[3, 2\]"),
    ],
)
def test_a_kind_that_does_not_say_all_that_it_has_to_is_told_before_a_step(kind, told):
    for named in (kind(), f"{__name__}:{kind.__name__}"):
        with pytest.raises(UsageError, match=told):
            tk.gates.attach(nn.Linear(3, 2), kind=named)


def test_a_kind_of_ones_own(build):
    class Halves(Kind):
        """Gates of 0.5 everywhere."""

        name = "halves"

        def gate(self, logits, moment, uniform):
            return 0.5 + 0 * logits

        def test_gate(self, logits, moment):
            return self.gate(logits, moment, None)

        def open(self, logits, moment):
            return self.gate(logits, moment, None)

    model, inputs = nn.Linear(3, 2, bias=False), torch.ones(1, 3)
    expected = model(inputs) / 2
    g = tk.gates.attach(model, kind=Halves())
    assert torch.equal(model(inputs), expected)
    assert float(g.penalty(2.0).detach()) == 6
    g.anneal(0.5)
    assert g.beta == 1


def test_a_kind_of_ones_own_is_named_by_its_place(tmp_path, monkeypatch):
    (tmp_path / "kinds_of_mine.py").write_text(
        "from dataclasses import dataclass\nfrom ticketry.core.gates import Continuous, Kind\n\n"
        "@dataclass(frozen=True)\nclass Mine(Continuous):\n    name = 'mine'\n    slope: float = 1.0\n\n"
        "class Other: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    g = tk.gates.attach(nn.Linear(2, 2), kind="kinds_of_mine:Mine")
    assert g.kind.name == "mine"
    made = make_kind("kinds_of_mine:Mine", slope=3.0, final=10.0, temperature=0.5)
    assert made == replace(g.kind, slope=3.0, final=10.0)
    for wrong in ("kinds_of_mine:Other", "kinds_of_mine:absent", "nonsense"):
        with pytest.raises(UsageError, match="known"):
            make_kind(wrong)


def test_by_step_and_by_epoch():
    """The paper's beta_T ^ (t / T), and the official code's 200 ^ (e / (E - 1))."""
    assert [by_step(step, 4) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert [by_epoch(epoch, 5) for epoch in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert by_epoch(0, 1) == 1
    assert 200 ** by_epoch(84, 85) == 200


@pytest.mark.parametrize(
    "call",
    [
        lambda: inverse_temperature(-0.1, 200),
        lambda: inverse_temperature(1.1, 200),
        lambda: inverse_temperature(float("nan"), 200),
        lambda: inverse_temperature(0.5, 0.5),
        lambda: inverse_temperature(0.5, 1e13),
        lambda: by_step(5, 4),
        lambda: by_step(-1, 4),
        lambda: by_epoch(5, 5),
    ],
)
def test_temperatures_outside(call):
    with pytest.raises(UsageError):
        call()
