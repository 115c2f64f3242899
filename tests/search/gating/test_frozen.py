"""Gates trained over frozen weights: against a loop that writes them out, and stopped and gone on with."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence
from torch.func import functional_call

from search.bare import Training
from search.gating.test_gating import stop_at
from ticketry.core.allocate import allocate
from ticketry.core.scope import scope
from ticketry.core.structure.pattern import count_retained
from ticketry.errors import InterruptedTrainingError, LayerCollapseError
from ticketry.lab.lab import Lab
from ticketry.lab.training import job as job_module
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.variant import variant_from_description
from ticketry.search.gating.gating import Gating, mask_of_largest_gates
from ticketry.tasks.recipe import Recipe
from ticketry_engine.support.seeds import generator

TOTAL, DENSITY = 40, 0.3
RECIPE = Recipe(length=f"{TOTAL}it", batch=32, optimizer="adam", lr=0.1, schedule="multistep", milestones=("75%",))


def gating(task, **changes) -> Gating:
    fixed = {"kind": "binary-concrete", "init": -0.8, "penalty": 0, "optimizer": "adam", "lr": 0.1, "seed": 11}
    frozen = {"frozen": True, "objective": "reverse_kl", "density": DENSITY}
    return Gating(scope=tuple(scope(task.build())), **{**fixed, **frozen, **changes})


def early(lab, task):
    """A network that has trained a little: its batch norm knows something."""
    return lab.train(lab.segment(task, start=3))


def frozen_segment(lab, task, **changes):
    return lab.segment(
        task, start=Start(state=early(lab, task).model), order_seed=6, recipe=RECIPE, variants=[gating(task, **changes)]
    )


def written_out(task, state, settings: Gating) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Logits at the end and the loss of each step: eval mode, batch statistics, Adam and the balance by hand."""
    model = task.build().eval()
    model.load_state_dict(state)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm1d):
            norm.train()
    weights = {name: dict(model.named_parameters())[name].detach() for name in settings.scope}
    s = {name: torch.full_like(weight, settings.init).requires_grad_() for name, weight in weights.items()}
    adam = torch.optim.Adam(s.values(), lr=settings.lr)
    count = sum(value.numel() for value in s.values())
    data, losses, smooth = Training(task, RECIPE, order_seed=6), [], None
    for step in range(TOTAL):
        (inputs, targets), products = data.batch(step), {}
        for number, (name, weight) in enumerate(weights.items()):
            u = torch.rand(weight.shape, generator=generator(settings.seed, "gates", step, number)).clamp(min=1.2e-7)
            noise = torch.log(u) - torch.log1p(-u)
            products[name] = weight * torch.sigmoid((noise + s[name]) / settings.temperature)
        p = Categorical(logits=functional_call(model, products, (inputs,)))
        q = Categorical(logits=model(inputs).detach())
        if settings.objective == "loss":
            loss = nn.functional.cross_entropy(p.logits, targets)
        else:
            loss = (kl_divergence(p, q) if settings.objective == "reverse_kl" else kl_divergence(q, p)).mean()
        adam.zero_grad()
        loss.backward()
        if settings.density is not None:
            kept = {name: torch.sigmoid(value.detach()) for name, value in s.items()}
            closing = {name: value * (1 - value) for name, value in kept.items()}
            expected = float(sum(value.double().sum() for value in kept.values()))
            norms = [
                float(torch.cat([each.flatten() for each in part]).double().norm())
                for part in ([value.grad for value in s.values()], closing.values())
            ]
            target = norms[0] / norms[1] if expected >= 1.1 * settings.density * count else 0.0
            smooth = target if smooth is None else 0.99 * smooth + 0.01 * target
            for name, value in s.items():
                value.grad += smooth * closing[name]
        else:
            sum(settings.penalty * torch.sigmoid(value).sum() for value in s.values()).backward()
            loss = loss + settings.penalty * sum(torch.sigmoid(value).sum() for value in s.values())
        adam.param_groups[0]["lr"] = settings.lr * (0.1 if step >= 0.75 * TOTAL else 1.0)
        adam.step()
        losses.append(float(loss.detach()))
    return {name: value.detach() for name, value in s.items()}, losses


@pytest.mark.parametrize(
    "changes",
    [{}, {"objective": "forward_kl", "temperature": 0.4}, {"objective": "loss"}, {"density": None, "penalty": 1e-2}],
    ids=["reverse KL", "forward KL, colder", "the task's loss", "a penalty"],
)
def test_as_written_out(lab, points, changes):
    segment = frozen_segment(lab, points, **changes)
    wanted, losses = written_out(points, lab.store.get_tensors(segment.start.state), segment.variant(Gating))
    result = lab.train(segment)
    found = {n[2:]: t for n, t in lab.store.get_tensors(result.variants["gates"]).items() if n.startswith("s/")}
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-3)
    assert [loss for _, loss in result.record["loss"]] == pytest.approx(losses, rel=1e-3, abs=1e-5)


def test_nothing_but_the_gates_changes(lab, points, equal_bits):
    segment = frozen_segment(lab, points)
    result = lab.train(segment, keep=(10,))
    before = lab.store.get_tensors(segment.start.state)
    assert any("running_var" in name for name in before)
    for each in (result, lab.at(result, 10)):
        assert equal_bits(lab.state(each), before)
    gates = lab.store.get_tensors(result.variants["gates"])
    assert all(
        bool((gates[f"s/{name}"] != segment.variant(Gating).init).any()) for name in segment.variant(Gating).scope
    )


def test_a_mask_of_exactly_the_density(lab, points):
    result = lab.train(frozen_segment(lab, points))
    logits = {n[2:]: t for n, t in lab.store.get_tensors(result.variants["gates"]).items() if n.startswith("s/")}
    for density in (0.5, DENSITY, 0.2345):
        mask = lab.store.get_mask(mask_of_largest_gates(lab, result, density))
        assert mask == allocate({name: logits[name] for name in result.segment.variant(Gating).scope}, density)
        assert mask.kept == count_retained(density, mask.total)
        kept = torch.cat([logits[name][mask[name]] for name in mask])
        left = torch.cat([logits[name][~mask[name]] for name in mask])
        assert float(kept.min()) >= float(left.max())
    with pytest.raises(LayerCollapseError, match=r"layer collapse\) after 40 steps of mask training"):
        mask_of_largest_gates(lab, result, 0.005)
    kept = lab.store.get_mask(mask_of_largest_gates(lab, result, 0.0125, "keep"))
    assert (kept.kept, all(row.kept for row in kept.table())) == (count_retained(0.0125, kept.total), True)


def test_going_on_gives_the_same_bits(tmp_path, points, monkeypatch):
    """Stopped before, at and after the first steps of the balance, with a state on the way."""
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)
    found = []
    for name, stops in (("undisturbed", ()), ("stopped", (1, 2, 9, 10, 33))):
        with Lab(tmp_path / name) as lab:
            segment = frozen_segment(lab, points)
            for stop in stops:
                with pytest.raises(InterruptedTrainingError, match=f"at step {stop}"):
                    execute(lab.store, None, segment, (10,), stop_at(stop))
            work = execute(lab.store, None, segment, (10,), Watch())
            assert work.steps == TOTAL - (stops[-1] if stops else 0)
            names = ("model", "training", "gates", "metrics", "soft_metrics", "loss", "gating")
            records = [lab.store.load_result(segment.trajectory, step) for step in (10, TOTAL)]
            found.append([{name: record.get(name) for name in names} for record in records])
    assert found[0] == found[1]


def test_metrics_are_of_gates_that_are_not_drawn(lab, points):
    """Though they are drawn in training, which is in eval mode too."""
    segment = frozen_segment(lab, points)
    result = lab.train(segment)
    model = points.build().eval()
    state, gates = lab.state(result), lab.store.get_tensors(result.variants["gates"])
    model.load_state_dict(
        {
            name: value * torch.sigmoid(gates[f"s/{name}"]) if f"s/{name}" in gates else value
            for name, value in state.items()
        }
    )
    test = points.load().test
    right = (model(points.prepare(test.inputs)).argmax(1) == test.targets).double().mean()
    assert result.record["soft_metrics"]["test"]["accuracy"] == pytest.approx(100 * float(right), abs=1e-6)


def test_a_description_comes_back(lab, points):
    segment = frozen_segment(lab, points)
    described = segment.describe()
    assert Segment.from_description(described, points) == segment
    assert variant_from_description(described["variants"][0]) == segment.variant(Gating)
    plain = gating(points, frozen=False, objective="loss", density=None)
    assert {"frozen", "objective", "density", "temperature"}.isdisjoint(plain.describe())
