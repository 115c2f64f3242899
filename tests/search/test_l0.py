"""L0 regularisation as a search: the paper's equations in bare PyTorch, what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import ticketry as tk
from norms_task import NormsTask
from search.bare import BATCH, SEED, Training
from ticketry.errors import LayerCollapseError
from ticketry.lab.search_result import search_cost, trained_steps
from ticketry.search.gating.gating import Gating
from ticketry.search.l0 import Settings
from ticketry_engine.support.seeds import generator, mix_seeds

METHOD = tk.search.l0
TOTAL, CUT = 30, 12
SGD = tk.Recipe(length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9)
WEIGHTS = ("fc1.weight", "fc2.weight", "fc3.weight")


def found_by(lab: tk.Lab, task: tk.Task | None = None, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{"until": f"{CUT}it", "density": (0.3,), **settings})
    return METHOD(lab, task or tk.task("digits"), chosen, recipe=SGD, seeds=tk.search.Seeds.of(SEED))[0]


def test_the_papers_equations_in_a_bare_loop(tmp_path: Path) -> None:
    """Draws, stretch, clip and penalty written out (equations 10 to 13); the best log alpha stay, times their gates."""
    task = tk.task("digits")
    with tk.Lab(tmp_path) as lab:
        _, ticket = found_by(lab, penalty=0.5)
        rewound, mask = lab.state(ticket.rewound), lab.store.get_mask(ticket.mask)
    training = Training(task, SGD)
    weights = {name: training.parameters[name] for name in WEIGHTS}
    alphas = {name: torch.zeros_like(w).requires_grad_() for name, w in weights.items()}
    gates = torch.optim.Adam(alphas.values(), lr=0.1)
    for step in range(CUT):
        images, targets = training.batch(step)
        seen, opened = {}, torch.zeros(())
        for number, (name, alpha) in enumerate(alphas.items()):
            u = torch.rand(alpha.shape, generator=generator(mix_seeds(SEED, "l0"), "gates", step, number))
            u = u.clamp(min=torch.finfo(u.dtype).eps)
            s = torch.sigmoid((u.log() - (1 - u).log() + alpha) / (2 / 3))
            seen[name] = weights[name] * (s * 1.2 - 0.1).clamp(0, 1)
            opened = opened + torch.sigmoid(alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))).sum()
        outputs = torch.func.functional_call(training.model, seen, (images,))
        gates.zero_grad()
        training.step(step, cross_entropy(outputs, targets) + 0.5 / len(training.data) * opened)
        gates.step()
    logits = torch.cat([alpha.detach().flatten() for alpha in alphas.values()])
    least = logits.sort(descending=True).values[round(0.3 * len(logits)) - 1]
    for name, alpha in alphas.items():
        clear = (alpha.detach() - least).abs() > 1e-3  # sums of floats in another order
        assert torch.equal(mask[name][clear], (alpha.detach() > least)[clear])
        wanted = weights[name].detach() * (torch.sigmoid(alpha.detach()) * 1.2 - 0.1).clamp(0, 1)
        assert torch.allclose(rewound[name], wanted, rtol=1e-2, atol=1e-4)


def test_gates_on_channels_in_a_bare_loop(tmp_path: Path) -> None:
    """Activations are multiplied by one gate a channel, which costs as many times as it multiplies weights."""
    task = NormsTask()
    with tk.Lab(tmp_path, precision="fp32") as lab:
        _, ticket = found_by(lab, task, penalty=0.5, structure="channels")
        rewound, mask = lab.state(ticket.rewound), lab.store.get_mask(ticket.mask)
        assert lab.ledger.steps_trained == TOTAL + TOTAL
        assert (trained_steps(ticket), search_cost(ticket), ticket.behind) == (TOTAL, TOTAL, CUT)
        assert ticket.result.segment.whole_channels
        assert ticket.result.segment.start.optimizer == ticket.searched[0].training
    training = Training(task, SGD)
    model = training.model
    alphas = [torch.zeros(8, requires_grad=True), torch.zeros(12, requires_grad=True)]
    gates = torch.optim.Adam(alphas, lr=0.1)
    for step in range(CUT):
        (value, targets), opened = training.batch(step), torch.zeros(())
        for number, (alpha, weights) in enumerate(zip(alphas, (12 * 9, 10), strict=True)):
            u = torch.rand(alpha.shape, generator=generator(mix_seeds(SEED, "l0"), "gates", step, number))
            s = torch.sigmoid((u.log() - (1 - u).log() + alpha) / (2 / 3))
            value = model[3 * number : 3 * number + 3](value) * (s * 1.2 - 0.1).clamp(0, 1).view(1, -1, 1, 1)
            opened = opened + weights * torch.sigmoid(alpha - 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))).sum()
        gates.zero_grad()
        training.step(step, cross_entropy(model[6:](value), targets) + 0.5 / len(training.data) * opened)
        gates.step()
    kept = [mask["0.weight"].flatten(1).any(1), mask["3.weight"].flatten(1).any(1)]
    logits, stays = torch.cat([alpha.detach() for alpha in alphas]), torch.cat(kept)
    assert float(logits[stays].min()) > float(logits[~stays].max())
    assert mask.density == pytest.approx(0.3, abs=0.06)
    for reader, alpha in (("3.weight", alphas[0].view(1, 8, 1, 1)), ("8.weight", alphas[1])):
        wanted = model.state_dict()[reader] * (torch.sigmoid(alpha.detach()) * 1.2 - 0.1).clamp(0, 1)
        assert torch.allclose(rewound[reader], wanted, rtol=1e-2, atol=1e-4)
    assert torch.allclose(rewound["0.weight"], model.state_dict()["0.weight"], rtol=1e-2, atol=1e-4)


def test_what_it_costs(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        dense, *tickets = found_by(lab, density=(0.3, 0.1))
        assert dense.result.segment.variant(Gating) is None
        assert tickets[0].searched == tickets[1].searched
        assert lab.ledger.steps_trained == TOTAL + CUT + 2 * (TOTAL - CUT)
        for ticket in tickets:
            assert (trained_steps(ticket), search_cost(ticket), ticket.behind) == (TOTAL, TOTAL, CUT)
            assert ticket.result.segment.start.optimizer == ticket.searched[0].training


def test_a_layer_without_gates_among_the_best(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        with pytest.raises(LayerCollapseError, match="layer collapse"):
            found_by(lab, density=(0.00001,))
        assert found_by(lab, density=(0.0001,), collapse="keep")[1].mask
