"""Training with gates: against a loop that writes them out, and stopped and gone on with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from samples import sample
from search.bare import Training
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import InterruptedTrainingError, ScopeError, TrainingError
from ticketry.lab.lab import Lab
from ticketry.lab.store.maintenance import check, collect_garbage
from ticketry.lab.store.references import referenced_digests
from ticketry.lab.store.store import Store
from ticketry.lab.training import job as job_module
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Start
from ticketry.search.gating.gating import Gating
from ticketry.tasks.recipe import Recipe
from watches import StopAt

TOTAL = 50
RECIPE = Recipe(
    length=f"{TOTAL}it", batch=64, lr=0.02, momentum=0.9, weight_decay=1e-3, schedule="multistep", milestones=("30it",)
)


def gating(task, **changes) -> Gating:
    return Gating(
        **{"scope": tuple(scope(task.build())), "init": 0.05, "penalty": 1e-4, "final": 30, "lr": 1.0, **changes}
    )


class Slow(Training):
    """Two optimisers, and weight * sigmoid(beta s) / sigmoid(s0) written out."""

    def __init__(self, task, settings: Gating, *, kept=None, start=None, seed=0, order_seed=0) -> None:
        super().__init__(task, RECIPE, TOTAL, seed=seed, order_seed=order_seed)
        self.settings, self.losses = settings, []
        if start:
            self.model.load_state_dict(start)
        self.kept = {name: 1.0 if kept is None else kept[name].float() for name in settings.scope}
        for name, keep in self.kept.items():
            self.parameters[name].data *= keep
        self.s = {n: nn.Parameter(torch.full_like(self.parameters[n], settings.init)) for n in settings.scope}

    def rate(self, step: int) -> float:
        return 0.1 if step >= 30 else 1.0

    def beta(self, step: int) -> float:
        per_epoch = -(-len(self.data) // RECIPE.batch)
        epochs = -(-TOTAL // per_epoch)
        done = step / TOTAL if self.settings.anneal == "step" else (step // per_epoch) / (epochs - 1)
        return self.settings.final ** min(done, 1.0)

    def products(self, gate):
        """Weights times a function of s."""
        scale = torch.sigmoid(torch.tensor(self.settings.init))
        return {n: self.parameters[n] * gate(s) / scale * self.kept[n] for n, s in self.s.items()}

    def train(self) -> Slow:
        settings = self.settings
        gates = torch.optim.SGD(self.s.values(), lr=0, momentum=settings.momentum, weight_decay=settings.weight_decay)
        for step in range(TOTAL):
            beta, (images, targets) = self.beta(step), self.batch(step)
            outputs = functional_call(
                self.model, self.products(lambda s, beta=beta: torch.sigmoid(beta * s)), (images,)
            )
            opened = sum((torch.sigmoid(beta * s) * self.kept[n]).sum() for n, s in self.s.items())
            loss = nn.functional.cross_entropy(outputs, targets) + settings.penalty * opened
            gates.zero_grad()
            self.step(step, loss)
            gates.param_groups[0]["lr"] = settings.lr * (self.rate(step) if settings.lr_schedule == "recipe" else 1.0)
            gates.step()
            self.losses.append(float(loss.detach()))
        return self

    def accuracy(self, split) -> float:
        hard = self.products(lambda s: s > 0)
        outputs = functional_call(self.model.eval(), hard, (self.task.prepare(split.inputs),))
        return 100 * float((outputs.argmax(1) == split.targets).double().mean())

    def density(self) -> float:
        on = sum(int(((s > 0) & (torch.as_tensor(self.kept[n]) != 0)).sum()) for n, s in self.s.items())
        return on / sum(s.numel() for s in self.s.values())


def load_gates(lab, result):
    return {n[2:]: t for n, t in lab.store.get_tensors(result.variants["gates"]).items() if n.startswith("s/")}


@pytest.mark.parametrize(
    "changes",
    [{}, {"anneal": "epoch", "final": 20, "init": -0.02}, {"lr_schedule": "constant", "weight_decay": 1e-3}],
    ids=["by step", "by epoch, negative init", "constant lr, decay"],
)
@pytest.mark.parametrize("masked", sample([True, False], 1, ids=["masked", "dense"]))
def test_as_written_out(lab, digits, changes, masked):
    mask = prune(digits.build(), 0.5, score="random", seed=4) if masked else None
    settings = gating(digits, **changes)
    slow = Slow(digits, settings, kept=mask, seed=5, order_seed=6).train()
    segment = lab.segment(digits, start=5, order_seed=6, recipe=RECIPE, mask=mask, variants=[settings])
    result = lab.train(segment)
    state = lab.state(result)
    for name, parameter in slow.model.named_parameters():
        torch.testing.assert_close(state[name], parameter.detach(), rtol=2e-3, atol=2e-5)
    for name, s in load_gates(lab, result).items():
        torch.testing.assert_close(s, slow.s[name].detach(), rtol=2e-3, atol=2e-4)  # steep gates amplify rounding
    curve = [loss for _, loss in result.record["loss"]]  # fifty steps: a point each
    assert curve == pytest.approx(slow.losses, rel=1e-3, abs=1e-5)
    for name, split in (("validation", digits.load().validation), ("test", digits.load().test)):
        assert result.metrics[name]["accuracy"] == pytest.approx(slow.accuracy(split), abs=0.3)
    told = result.record["gating"]
    assert told["density"] == pytest.approx(slow.density(), abs=1e-3)
    assert 0.01 < told["density"] < 0.99
    assert [row[0] for row in told["kept"]] == list(range(1, TOTAL + 1))
    assert sum(told["kept"][-1][1:]) == pytest.approx(told["density"] * scope(digits.build()).total)
    if mask:
        assert not any(state[layer][~mask[layer]].any() for layer in mask)


def test_metrics_are_those_of_the_hard_network(lab, digits):
    settings = gating(digits)
    result = lab.train(lab.segment(digits, start=0, recipe=RECIPE, variants=[settings]))
    state, s = lab.state(result), load_gates(lab, result)
    model = digits.build().eval()
    scale = 1 / torch.sigmoid(torch.tensor(settings.init))
    model.load_state_dict({n: w * (s[n] > 0) * scale if n in s else w for n, w in state.items()})
    for name, split in (("validation", digits.load().validation), ("test", digits.load().test)):
        right = (model(digits.prepare(split.inputs)).argmax(1) == split.targets).double().mean()
        assert result.metrics[name]["accuracy"] == pytest.approx(100 * float(right), abs=1e-6)
    assert result.record["soft_metrics"].keys() == {"validation", "test"}


def test_a_further_round(lab, digits):
    """s <- min(30 s, s0), or min(s, s0); weights go on; both optimisers begin anew."""
    first = lab.train(lab.segment(digits, start=0, recipe=RECIPE, variants=[gating(digits)]))
    for reset, factor in (("paper", 30.0), ("code", 1.0)):
        start = Start(state=first.model)
        settings = gating(digits, earlier=first.variants["gates"], reset=reset)
        second = lab.train(lab.segment(digits, start=start, order_seed=9, recipe=RECIPE, variants=[settings]))
        slow = Slow(digits, settings, start=lab.state(first), order_seed=9)
        for name, s in load_gates(lab, first).items():
            slow.s[name].data.copy_((factor * s).clamp(max=settings.init))
        slow.train()
        for name, s in load_gates(lab, second).items():
            torch.testing.assert_close(s, slow.s[name].detach(), rtol=5e-3, atol=1e-4)
        assert second.record["gating"]["density"] == pytest.approx(slow.density(), abs=2e-3)
        assert (first.record["gating"]["round"], second.record["gating"]["round"]) == (1, 2)


def stop_at(step: int) -> Watch:
    return StopAt(at=step, checkpoint_seconds=1e9)


@pytest.fixture(autouse=True)
def look_after_every_step(monkeypatch):
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)


def everything(store, segment):
    record = store.load_result(segment.trajectory, segment.last)
    names = ("segment", "step", "model", "training", "variants", "metrics", "soft_metrics", "loss", "gating")
    return {name: record.get(name) for name in names}


@pytest.mark.parametrize("kind", sample(["stochastic", "hard-concrete", "continuous"], 2))
@pytest.mark.parametrize("optimizer", sample(["adam", "sgd"], 1))
def test_going_on_gives_the_same_bits(tmp_path, points, kind, optimizer):
    """A network with batch norm and dropout, in a second round, stopped at several steps, with a state on the way."""
    found = []
    for name, stops in (("undisturbed", ()), ("stopped", (1, 9, 10, 17))):
        with Lab(tmp_path / name) as lab:
            settings = gating(points, kind=kind, optimizer=optimizer, lr=0.05)
            first = lab.train(lab.segment(points, start=3, variants=[settings]))
            again = settings
            if kind != "hard-concrete":
                again = replace(settings, earlier=first.variants["gates"], reset="paper")
            segment = lab.segment(points, start=Start(state=first.model), variants=[again])
            for stop in stops:
                with pytest.raises(InterruptedTrainingError, match=f"at step {stop}"):
                    execute(lab.store, None, segment, (10,), stop_at(stop))
            work = execute(lab.store, None, segment, (10,), Watch())
            assert work.steps == 24 - (stops[-1] if stops else 0)
            found.append([everything(lab.store, part) for part in (segment.shortened_to(10), segment)])
    assert found[0] == found[1]


def test_gates_on_channels_go_on_with_the_same_bits(tmp_path, points):
    settings = gating(points, kind="hard-concrete", optimizer="adam", lr=0.05, structured=True)
    found = []
    for name, stops in (("undisturbed", ()), ("stopped", (1, 10, 17))):
        with Lab(tmp_path / name) as lab:
            segment = lab.segment(points, start=3, variants=[settings])
            for stop in stops:
                with pytest.raises(InterruptedTrainingError, match=f"at step {stop}"):
                    execute(lab.store, None, segment, (10,), stop_at(stop))
            execute(lab.store, None, segment, (10,), Watch())
            assert lab.train(segment.shortened_to(10)).metrics  # added now
            found.append([everything(lab.store, part) for part in (segment.shortened_to(10), segment)])
            result = lab.train(segment)
            s, state, model = load_gates(lab, result), lab.state(result), points.build().eval()
    assert found[0] == found[1]
    assert {name: len(values) for name, values in s.items()} == {"0": 16, "4": 16}
    for name, reader in (("0", "4.weight"), ("4", "5.weight")):
        state[reader] = state[reader] * (torch.sigmoid(s[name]) * 1.2 - 0.1).clamp(0, 1)
    model.load_state_dict(state)
    validation = points.load().validation
    right = (model(points.prepare(validation.inputs)).argmax(1) == validation.targets).double().mean()
    assert result.metrics["validation"]["accuracy"] == pytest.approx(100 * float(right), abs=1e-6)


def test_gates_are_kept_as_long_as_they_are_needed(lab, points):
    first = lab.train(lab.segment(points, start=3, variants=[gating(points)]))
    again = gating(points, earlier=first.variants["gates"], reset="paper")
    second = lab.train(lab.segment(points, start=Start(state=first.model), variants=[again]))
    assert first.variants["gates"] in referenced_digests(first.record)
    assert {first.variants["gates"], second.variants["gates"]} <= referenced_digests(second.record)
    assert collect_garbage(lab.store, grace_seconds=0)[0] == 0
    assert check(lab.store).is_undamaged
    lab.store.paths.blob(second.variants["gates"]).unlink()
    assert not check(lab.store).is_undamaged


def test_a_loss_that_is_no_number_is_told_before_gates_are(lab, points_class):
    class Breaking(points_class):
        calls = 0

        def loss(self, outputs, targets, *, label_smoothing=0.0):
            self.calls += 1
            found = super().loss(outputs, targets, label_smoothing=label_smoothing)
            return found * float("nan") if self.calls == 8 else found

    task = Breaking()
    with pytest.raises(TrainingError, match="the loss is nan at step 7 "):
        lab.train(lab.segment(task, start=0, variants=[gating(task)]))


def test_gates_on_what_is_not_there(lab, points):
    with pytest.raises(ScopeError, match=r"'9\.weight'"):
        lab.train(lab.segment(points, start=0, variants=[Gating(scope=("9.weight",))]))


def test_a_state_on_the_way_is_gone_on_from_and_measured(lab, points, tmp_path):
    segment = lab.segment(points, start=3, variants=[gating(points)])
    lab.train(segment, keep=(10,))
    assert execute(lab.store, None, segment.shortened_to(10), (), Watch()).steps == 0
    other = Store(tmp_path / "other")
    assert execute(other, None, segment.shortened_to(10), (), Watch()).steps == 10
    assert execute(other, None, segment, (), Watch()).steps == 14
    for part in (segment.shortened_to(10), segment):
        assert everything(lab.store, part) == everything(other, part)


def test_without_gates_nothing_of_them_is_stored(lab, points):
    result = lab.train(lab.segment(points, start=3), keep=(10,))
    kept = lab.at(result, 10)
    for each in (result, kept):
        assert not {"gating", "soft_metrics"} & each.record.keys()
        assert each.variants == {}
    assert not any(name.startswith("variants") for name in lab.store.get_tensors(kept.training))
