"""Early pruning as a search: bare PyTorch, the moment, what it costs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import ticketry as tk
from ticketry.lab.costs.ledger import Sample
from ticketry.search.early import Settings
from ticketry.tasks.task import Split, Splits
from ticketry_engine.support.seeds import mix_seeds

METHOD = tk.search.early
TOTAL, SEED = 60, 3
SGD = tk.Recipe(length=f"{TOTAL}it", batch=64, optimizer="sgd", lr=0.1, momentum=0.9)


def found_by(lab: tk.Lab, task: tk.Task | None = None, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{"iterations": 1, "score": "snip", "density": (0.1,), **settings})
    return METHOD(lab, task or tk.task("digits"), chosen, recipe=SGD, seeds=tk.search.Seeds.of(SEED))[0]


@pytest.mark.parametrize("when", ["0", "20it"])
def test_the_mask_is_that_of_plain_pytorch(shared_store: Path, when: str) -> None:
    """SNIP by hand: |w dL/dw| of the mean loss over two batches of the training split, the highest tenth."""
    task = tk.task("digits")
    train = task.load().train
    order = torch.randperm(
        len(train), generator=torch.Generator().manual_seed(mix_seeds(mix_seeds(SEED, "score"), "order", 0))
    )
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, when=when, batches=2, batch=50)[1]
        model = lab.model(task, ticket.rewound)
        weights = {name: one for name, one in model.named_parameters() if name.endswith("weight")}
        for rows in order[:100].split(50):
            (cross_entropy(model(task.prepare(train.inputs[rows])), train.targets[rows]) / 2).backward()
        scores = torch.cat([(one * one.grad).abs().flatten() for one in weights.values()]).detach()
        least = scores.sort(descending=True).values[int(0.1 * len(scores) + 0.5) - 1]
        mask = lab.store.get_mask(ticket.mask)
        mine = torch.cat([mask[name].flatten() for name in weights])
        assert ticket.rewound.segment.last == ticket.behind == (0 if when == "0" else 20)
        # Sums of floats in another order: only those at the border may differ.
        border = (scores / least - 1).abs() < 1e-4
        assert torch.equal(mine[~border], (scores >= least)[~border])
        assert border.sum() < 10


def test_the_moment_is_the_first_slow_look(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, every="4it", latest="48it", threshold=0.5)
        whole = found[0].result.segment
        states = {step: lab.state(lab.train(whole.shortened_to(step), measure=False)) for step in range(0, 52, 4)}
    names = [name for name in states[0] if name.endswith("weight")]

    def far(step: int) -> float:
        return float(torch.cat([(states[step][name] - states[0][name]).flatten() for name in names]).norm())

    first = far(4)
    slow = [step for step in range(8, 52, 4) if abs(far(step) - far(step - 4)) < 0.5 * first]
    assert found[1].behind == slow[0] < 48


@pytest.mark.parametrize(
    "chosen",
    [
        {"density": 0.0005, "keep_at_least": 1},
        {"density": 0.1, "half_rate": ("fc3.weight",)},
        {"flops": 0.004, "keep_at_least": 30},
    ],
    ids=lambda chosen: next(reversed(chosen)),
)
def test_the_masks_that_are_compared_are_chosen_as_the_tickets(shared_store: Path, chosen: dict[str, Any]) -> None:
    """By hand: the weights of each step, pruned by magnitude with the same words; the share in which two differ."""
    amounts = {name: (value,) if name in ("density", "flops") else value for name, value in chosen.items()}
    task = tk.task("digits")
    with tk.Lab(shared_store) as lab:
        ticket = found_by(lab, **{"density": (), **amounts}, every="1it", latest="4it", detector="masks")[1]
        whole = ticket.dense.segment
        models = [lab.model(task, lab.train(whole.shortened_to(step), measure=False)) for step in range(1, 5)]
        more = {"example_inputs": lab.course(task).inputs(1)} if "flops" in chosen else {}
    masks = [tk.prune(model, score="magnitude", **chosen, **more) for model in models]
    differing = [(one ^ other).kept / one.total for one, other in pairwise(masks)]
    assert ticket.moment is not None
    assert [share for _, share in ticket.moment.measurements] == differing[: len(ticket.moment.measurements)]
    assert any(differing)


def test_masks_that_are_alike_tell_the_moment_too(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        assert found_by(lab, every="1it", latest="50it", detector="masks", score="magnitude")[1].behind < 50


class WatchedDigits(tk.Task):
    """digits whose validation and test examples are poison: a score that saw one would not be a number."""

    def __init__(self) -> None:
        self._real = tk.task("digits")
        self.name, self.metric, self.recipe = "watched", self._real.metric, self._real.recipe
        for part in ("build", "prepare", "augment", "loss", "measure", "summary"):
            setattr(self, part, getattr(self._real, part))

    def key(self):
        return {"name": "watched"}

    def load(self, data: Path | None = None) -> Splits:
        real = self._real.load(data)
        poison = Split(torch.full_like(real.train.inputs[:10].float(), float("nan")), real.train.targets[:10])
        return Splits(real.train, poison, poison)


def test_scores_see_training_examples_only(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        task = WatchedDigits()
        ticket = found_by(lab, task, when="0", score="crop", batches=2)[1]
        plain = found_by(lab, when="0", score="crop", batches=2)[1]
        assert lab.store.get_mask(ticket.mask) == lab.store.get_mask(plain.mask)


def test_synflow_sees_one_example(tmp_path, monkeypatch):
    """It looks at shapes alone: more examples would make a score cost more, for the same ranking."""
    drawn: list[int] = []
    sample = Sample.draw

    def counted(self, *args, **words):
        batches = sample(self, *args, **words)
        drawn.append(sum(len(targets) for _, targets in batches))
        return batches

    monkeypatch.setattr(Sample, "draw", counted)
    with tk.Lab(tmp_path) as lab:
        digits = tk.task("digits")
        words = {"when": "0", "score": "synflow", "iterations": 3, "density": (0.3,)}
        tk.search.early(lab, digits, tk.search.early.Settings(**words), recipe=digits.recipe.changed(length="1it"))
    assert set(drawn) == {1}
