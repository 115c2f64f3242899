from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from ticketry.core import score
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import UsageError


def test_inverted_keeps_what_the_score_removes(build):
    case = build("resnet")
    given = {"batches": case.batches, "loss": case.loss}
    best = prune(case.model, 0.3, score="snip", **given)
    assert prune(case.model, 0.7, score="inverted:snip", **given) == ~best
    assert prune(case.model, 0.7, score=score.inverted("snip"), **given) == ~best
    assert prune(case.model, 0.7, score=score.inverted(score.snip), **given) == ~best
    assert prune(case.model, 0.3, score="inverted:inverted:snip", **given) == best


def test_inverted_takes_scores_of_any_type():
    model = nn.Linear(2, 2)

    def of_bits(model, scope, *, batches=None, loss=None, seed=0):
        return {"weight": torch.tensor([[True, False], [False, True]])}

    assert prune(model, 0.5, score=score.inverted(of_bits))["weight"].tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("distribution", ["global", "erk"])
def test_shuffled_keeps_each_layers_count_and_no_more(distribution):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60), nn.Linear(60, 20))
    given = {"distribution": distribution, "collapse": "keep"}
    mask, control = (prune(model, 0.2, score=name, **given) for name in ("magnitude", "shuffled:magnitude"))
    assert [row.kept for row in mask.table()] == [row.kept for row in control.table()]
    for name in mask:  # by chance alone: kept * density, within five standard deviations of a hypergeometric number
        kept, size = int(mask[name].sum()), mask[name].numel()
        share = kept / size
        deviation = (size * share**2 * (1 - share) ** 2) ** 0.5
        assert abs(int((mask[name] & control[name]).sum()) - size * share**2) < 5 * deviation
    assert not torch.equal(control["0.weight"], control["1.weight"])
    assert prune(model, 0.2, score="shuffled:magnitude", seed=1, **given) != control
    assert prune(model, 0.2, score="shuffled:magnitude", **given) == control


def test_a_control_hands_its_seed_on_and_keeps_the_names_of_its_score():
    model = nn.Linear(30, 20)
    for seed in (0, 3):
        plain = score.random(model, scope(model), seed=seed)["weight"].flatten().sort().values
        found = score.get("shuffled:random")(model, scope(model), seed=seed)["weight"]
        assert torch.equal(found.flatten().sort().values, plain)
        again = score.get("shuffled:random")(model, scope(model), **({"seed": seed} if seed else {}))["weight"]
        assert torch.equal(found, again)
    assert score.shuffled("snip").__name__ == "shuffled:snip"
    assert score.shuffled("snip").__doc__ == score.inverted("snip").__doc__ == score.snip.__doc__


def test_a_control_takes_the_options_of_its_score(build):
    case = build("resnet")
    known = scope(case.model)
    given = {"batches": case.batches, "loss": case.loss}
    running = score.snip(case.model, known, norms="running", **given)
    for control in (score.inverted("snip"), score.inverted(partial(score.snip, norms="running"))):
        options = given if "partial" in control.__name__ else given | {"norms": "running"}
        found = control(case.model, known, **options)
        assert all(torch.equal(found[key], -running[key]) for key in running)


@pytest.mark.parametrize(
    "name", ["inverted:", "inverted:snap", "upside-down:snip", "inverted", "_gradients", "inverted:_measure"]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UsageError, match=r"is not known: .*snip.*; or a control of one, such as inverted:magnitude"):
        score.get(name)
