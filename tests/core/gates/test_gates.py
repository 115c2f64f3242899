"""The handle: temperature, masks, rounds, state, reports, and what it refuses."""

from __future__ import annotations

import copy
import gc
import io

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import LayerCollapseError, MaskError, ScopeError, TrainingError, UsageError


def small(values=(-1.0, 0.0, 0.5, 2.0), **options):
    """A model of one weight of four, with these s."""
    model = nn.Linear(4, 1, bias=False)
    g = tk.gates.attach(model, **options)
    set_logits(g, values)
    return model, g


@torch.no_grad()
def set_logits(g, values) -> None:
    g.parameters()[0].copy_(torch.tensor([values]))


def logits(g) -> list[float]:
    return g.parameters()[0].detach().flatten().tolist()


class TestBlocks:
    """`lifted` and `drawing`, on a network with batch norm."""

    def test_lifted_is_the_bare_model(self, build):
        case = build("resnet")
        inputs = torch.randn(3, 3, 8, 8)
        bare = copy.deepcopy(case.model).eval()(inputs)
        g = tk.gates.attach(case.model.eval(), init=-1.0, kind="binary-concrete")
        with g.lifted():
            assert torch.equal(case.model(inputs), bare)
            with g.drawing(), g.hardened():
                assert torch.equal(case.model(inputs), bare)
        assert not torch.equal(case.model(inputs), bare)

    def test_drawing_is_training_s_gates_in_eval_mode(self):
        model, g = small(kind="binary-concrete", seed=4)
        model.train()
        g.set_step(7)
        wanted = model(torch.ones(1, 4))
        model.eval()
        still = model(torch.ones(1, 4))
        with g.drawing():
            g.set_step(7)
            assert torch.equal(model(torch.ones(1, 4)), wanted)
            with g.hardened():
                assert torch.equal(model(torch.ones(1, 4)), model.weight.sum(1).view(1, 1) - model.weight[:, :2].sum())
        assert torch.equal(model(torch.ones(1, 4)), still)
        assert not torch.equal(still, wanted)

    def test_statistics_of_batch_norm_stay_while_drawing(self, build):
        case = build("resnet")
        g = tk.gates.attach(case.model.eval(), kind="binary-concrete")
        before = {name: value.clone() for name, value in case.model.state_dict().items()}
        with g.drawing():
            case.model(torch.randn(3, 3, 8, 8)).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in case.model.state_dict().items())
        assert all(s.grad is not None for s in g.parameters())

    def test_blocks_end_after_an_error(self):
        model, g = small(kind="binary-concrete")
        model.eval()
        before = model(torch.ones(1, 4))
        for block in (g.lifted, g.drawing):
            with pytest.raises(ZeroDivisionError), block():
                1 / 0  # noqa: B018
        assert torch.equal(model(torch.ones(1, 4)), before)


class TestHarden:
    def test_above_0(self):
        _, g = small()
        assert g.harden()["weight"].tolist() == [[False, False, True, True]]
        assert g.density() == 0.5
        assert g.kept() == {"weight": 2}
        assert g.ties() == {"weight": 1}

    def test_within(self):
        _, g = small((1.0, 0.0, -0.0, 2.0), within=tk.Mask({"weight": torch.tensor([[0, 1, 0, 1]])}))
        assert g.harden()["weight"].tolist() == [[False, False, False, True]]
        assert g.density() == 0.25
        assert g.ties() == {"weight": 1}
        assert g.soft_density() == pytest.approx(float(0.5 + torch.sigmoid(torch.tensor(2.0))) / 4)
        assert g.histogram(2).counts == {"weight": (0, 2)}

    def test_collapse(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        g = tk.gates.attach(model, init=0.5)
        g.anneal(0.5)
        with torch.no_grad():
            g.parameters()[1].copy_(torch.tensor([[-3.0, -1.0], [-1.0, -2.0]]))
        with pytest.raises(LayerCollapseError, match=r"'1\.weight' .* at progress 0\.5, inverse temperature 14\.1421"):
            g.harden()
        mask = g.harden(collapse="keep")
        assert mask["1.weight"].tolist() == [[False, True], [False, False]]  # of equals the first
        assert mask["0.weight"].all()

    def test_keeping_stays_within_the_mask(self):
        within = tk.Mask({"weight": torch.tensor([[1, 1, 0, 0]])})
        _, g = small((-2.0, -float("inf"), 5.0, -1.0), within=within)
        assert g.harden(collapse="keep")["weight"].tolist() == [[True, False, False, False]]

    def test_a_density_is_met_within_the_mask(self):
        """What it removes keeps s0, which training has left behind elsewhere."""
        _, g = small((-2.0, -1.0, 5.0, 5.0), within=tk.Mask({"weight": torch.tensor([[1, 1, 0, 0]])}))
        assert g.allocate(0.25)["weight"].tolist() == [[False, True, False, False]]
        with pytest.raises(MaskError, match=r"has only 2: ask for at most 0\.5"):
            g.allocate(0.75)

    def test_nothing_to_keep(self):
        masks = {"0.weight": torch.ones(2, 2), "1.weight": torch.zeros(2, 2)}
        g = tk.gates.attach(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), init=1.0, within=tk.Mask(masks))
        with pytest.raises(LayerCollapseError, match=r"'1\.weight'"):
            g.harden(collapse="keep")

    def test_hard_and_hardened(self):
        model, g = small()
        inputs, hard = torch.eye(4), (model.weight * torch.tensor([[0, 0, 2.0, 2.0]])).detach()
        soft = model(inputs)
        for mode in (True, False):
            model.train(mode)
            with g.hardened():
                torch.testing.assert_close(model(inputs).t().detach(), hard)
            torch.testing.assert_close(model(inputs), soft)
        g.hard()
        outputs = model(inputs)
        torch.testing.assert_close(outputs.t().detach(), hard)
        outputs.sum().backward()
        assert g.parameters()[0].grad is None or not g.parameters()[0].grad.any()
        assert model.weight.grad.tolist() == [[0, 0, 2, 2]]
        with g.hardened():
            pass
        torch.testing.assert_close(model(inputs), outputs)
        g.hard(False)
        torch.testing.assert_close(model(inputs), soft)


class TestRounds:
    def test_the_rule_of_the_paper(self):
        _, g = small((-0.01, 0.0, 0.0001, 3.0), init=0.1)
        g.anneal(1.0)
        assert g.beta == 200
        g.next_round()
        assert logits(g) == pytest.approx([-2.0, 0.0, 0.02, 0.1])  # min(200 s, s0)
        assert (g.beta, g.progress, g.round) == (1, 0, 1)

    def test_the_rule_of_the_code(self):
        _, g = small((-0.01, 0.0, 0.0001, 3.0), init=0.1)
        g.next_round(reset="code")
        assert logits(g) == pytest.approx([-0.01, 0.0, 0.0001, 0.1])  # min(s, s0)

    def test_negative_s0(self):
        _, g = small((-0.3, 0.2, 0.0, -1e-4), init=-0.2, kind=tk.gates.Continuous(final=10))
        g.next_round()
        assert logits(g) == pytest.approx([-3.0, -0.2, -0.2, -0.2])

    def test_suppressed_gates_stay_off(self):
        """Those of the paper's rule have no gradient any more; those of the code's do."""
        for reset, stays in (("paper", True), ("code", False)):
            model, g = small((-0.5, -0.5, 0.5, 0.5), init=0.1)
            g.next_round(reset=reset)
            model(torch.ones(1, 4)).sum().backward()
            assert (g.parameters()[0].grad.abs()[0, :2] < 1e-30).all() == stays

    def test_momentum_of_the_round_before_goes(self):
        model, g = small()
        optimizer = torch.optim.SGD([*g.parameters(), *model.parameters()], lr=0.1, momentum=0.9)
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        g.next_round(optimizer=optimizer)
        assert g.parameters()[0] not in optimizer.state
        assert model.weight in optimizer.state

    @pytest.mark.parametrize("kind", ["hard-concrete", "binary-concrete"])
    def test_kinds_without_rounds(self, kind):
        with pytest.raises(UsageError, match="no rule"):
            small(kind=kind)[1].next_round()

    @pytest.mark.slow  # tests/search/gating/test_rounds.py searches in rounds too
    def test_a_search_of_three_rounds(self):
        """On a regression it keeps the inputs that matter, and density never rises from round to round (papers 1e)."""
        torch.manual_seed(0)
        model, inputs = nn.Linear(20, 1), torch.randn(256, 20)
        targets = inputs[:, :3] @ torch.tensor([[2.0], [-3.0], [1.5]])
        g = tk.gates.attach(model, init=0.1, kind=tk.gates.Continuous(final=50))
        masks = []
        for _ in range(3):
            optimizer = torch.optim.SGD([*model.parameters(), *g.parameters()], lr=0.02, momentum=0.9)
            for step in range(600):
                g.anneal(tk.gates.by_step(step, 600))
                optimizer.zero_grad()
                ((model(inputs) - targets).square().mean() + g.penalty(0.01)).backward()
                optimizer.step()
            with g.hardened():
                hard = (model(inputs) - targets).square().mean()
            assert float(hard.detach()) < 0.1  # the targets vary by 15
            masks.append(g.harden())
            g.next_round()
        assert masks[2] <= masks[1] <= masks[0]
        assert masks[2]["weight"].nonzero()[:, 1].tolist() == [0, 1, 2]


class TestNumbers:
    @pytest.mark.parametrize("act", [lambda g: g.harden(), lambda g: g.anneal(0.5), lambda g: g.next_round()])
    def test_nan_is_named(self, act):
        _, g = small((1.0, float("nan"), 1.0, 1.0))
        with pytest.raises(TrainingError, match=r"gates of 'weight' are not numbers"):
            act(g)

    def test_nan_is_found_at_the_next_percent(self):
        _, g = small((1.0, 1.0, 1.0, 1.0))
        g.anneal(0.501)
        set_logits(g, (1.0, float("nan"), 1.0, 1.0))
        g.anneal(0.502)
        with pytest.raises(TrainingError):
            g.anneal(0.51)

    @pytest.mark.parametrize("progress", [-0.1, 1.5, float("nan")])
    @pytest.mark.parametrize("kind", list(tk.gates.KINDS))
    def test_progress_outside(self, kind, progress):
        with pytest.raises(UsageError, match="from 0 to 1"):
            small(kind=kind)[1].anneal(progress)

    def test_soft_density_and_histogram(self):
        _, g = small((-1e3, 0.0, 0.5, 1e3))
        g.anneal(1.0)
        assert g.soft_density() == pytest.approx((0 + 0.5 + 1 + 1) / 4)
        histogram = g.histogram(4)
        assert histogram.edges == (0, 0.25, 0.5, 0.75, 1)
        assert histogram.counts == {"weight": (1, 0, 1, 2)}
        assert histogram.total == (1, 0, 1, 2)


class TestState:
    def test_round_trip_through_a_file(self, build):
        case = build("lstm")
        g = tk.gates.attach(case.model, init=0.2, kind="stochastic", seed=5)
        with torch.no_grad():
            for s in g.parameters():
                s.normal_()
        g.next_round()
        g.anneal(0.3)
        g.set_step(11)
        g.hard()
        buffer = io.BytesIO()
        torch.save(g.state_dict(), buffer)
        buffer.seek(0)
        other = tk.gates.attach(build("lstm").model, kind="stochastic")
        objects = other.parameters()
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert all(one is two for one, two in zip(other.parameters(), objects, strict=True))
        for (name, one), (again, two) in zip(g.named_parameters(), other.named_parameters(), strict=True):
            assert name == again
            assert torch.equal(one, two)
        plain, expected = other.state_dict(), g.state_dict()
        assert {k: v for k, v in plain.items() if k != "gates"} == {k: v for k, v in expected.items() if k != "gates"}
        assert (other.init, other.seed, other.round, other.step, other.progress) == (0.2, 5, 1, 11, 0.3)

    def test_training_resumes_bit_for_bit(self, build):
        def fresh():
            case = build("resnet")
            g = tk.gates.attach(case.model, init=0.1)
            parts = [case.model.parameters(), g.parameters()]
            return case, g, [torch.optim.SGD(part, lr=0.1, momentum=0.9) for part in parts]

        def run(case, g, optimizers, steps):
            for step in steps:
                g.anneal(step / 6)
                loss = case.loss(case.model, case.batches[step]) + g.penalty(1e-3)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()

        whole, first, second = fresh(), fresh(), fresh()
        run(*whole, range(6))
        run(*first, range(3))
        saved = copy.deepcopy([first[0].model.state_dict(), first[1].state_dict(), *[o.state_dict() for o in first[2]]])
        run(*first, range(3, 6))  # the state is a copy, not a view of what goes on training
        for part, state in zip([second[0].model, second[1], *second[2]], saved, strict=True):
            part.load_state_dict(state)
        run(*second, range(3, 6))
        for one, other in zip(whole[0].model.state_dict().values(), second[0].model.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        for one, other in zip(whole[1].parameters(), second[1].parameters(), strict=True):
            assert torch.equal(one, other)

    def test_states_of_others(self, build):
        _, g = small()
        with pytest.raises(MaskError, match="other weights"):
            g.load_state_dict(tk.gates.attach(nn.Linear(3, 1)).state_dict())
        with pytest.raises(MaskError, match="stochastic"):
            g.load_state_dict(small(kind="stochastic")[1].state_dict())
        with pytest.raises(MaskError, match="lacks gates, hard"):
            g.load_state_dict({k: v for k, v in g.state_dict().items() if k not in ("gates", "hard")})
        other = small(kind=tk.gates.Continuous(final=500.0))[1]
        other.anneal(0.5)
        with pytest.raises(MaskError, match=r"inverse temperature 22\.3607 at progress 0\.5, where .* have 14\.1421"):
            g.load_state_dict(other.state_dict())

    def test_gates_are_not_copied(self):
        with pytest.raises(UsageError, match="attach gates to the copy"):
            copy.deepcopy(small()[1])


class TestAttach:
    def test_unknown_words(self):
        with pytest.raises(UsageError, match="continuous, stochastic, hard-concrete, binary-concrete"):
            small(kind="nonsense")
        with pytest.raises(UsageError, match="collapse is raise or keep"):
            small()[1].harden(collapse="no")
        with pytest.raises(UsageError, match="reset is paper or code"):
            small()[1].next_round(reset="no")
        with pytest.raises(UsageError, match="step"):
            small()[1].set_step(-1)

    def test_masks_and_scopes_that_do_not_fit(self, build):
        model = build("resnet").model
        with pytest.raises(MaskError, match="not of the parameters in scope"):
            tk.gates.attach(model, scope=tk.scope(model), within=tk.Mask({"fc.weight": torch.ones(5, 8)}))
        with pytest.raises(MaskError, match="does not fit"):
            tk.gates.attach(model, within=tk.Mask({"fc.weight": torch.ones(5, 9)}))
        with pytest.raises(ScopeError, match="has no parameter"):
            tk.gates.attach(model, scope=tk.scope(nn.Linear(2, 2)))

    def test_a_parameter_that_goes(self):
        model, _ = small()
        del model.weight
        with pytest.raises(UsageError, match="has lost its parameter 'weight'"):
            model(torch.ones(1, 4))


def test_gates_may_be_collected_during_an_optimizers_step(build):
    """torch goes through the hooks of all optimisers then, and none may be taken out meanwhile."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    case = build("resnet")
    gone = [tk.gates.attach(build("resnet").model)]
    first = register_optimizer_step_post_hook(lambda *_: (gone.clear(), gc.collect()))
    g = tk.gates.attach(case.model)
    optimizer = torch.optim.SGD(g.parameters(), lr=0.1, fused=True)
    before = g._logit_versions
    sum(s.sum() for s in g.parameters()).backward()
    optimizer.step()
    first.remove()
    assert not gone
    assert g._logit_versions != before
