"""Masks that are given a structure after they were found: what is trained, from where, and how often."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.core.structure import groups, shrink_plan
from ticketry.errors import UsageError
from ticketry.lab.costs.ledger import training_phases_of
from ticketry.lab.search_result import Found, Seeds, search_cost, trained_steps
from ticketry.search import method as method_called

DENSITIES = (0.6, 0.4, 0.25)
RECIPE = tk.task("digits").recipe.changed(length="10it")


def found_by(lab: tk.Lab, method: str = "iterative", **settings: Any) -> list[Found]:
    search = getattr(tk.search, method)
    defaults = {"densities": DENSITIES} if method == "iterative" else {"density": DENSITIES}
    chosen = search.Settings(**{"rewind": "10%", "retrain": "continue", **defaults, **settings})
    found: list[Found] = search(lab, tk.task("digits"), chosen, recipe=RECIPE)[0]
    return found


def mask_of(lab: tk.Lab, found: Found) -> tk.Mask:
    assert found.mask is not None
    return lab.store.get_mask(found.mask)


def test_masks_have_their_structure(shared_store: Path) -> None:
    densities = (0.4,)
    with tk.Lab(shared_store) as lab:
        for item in found_by(lab, structure="refill", densities=densities)[1:]:
            shrink_plan(lab.model(tk.task("digits")), mask_of(lab, item), torch.randn(2, 1, 8, 8))
        for item in found_by(lab, structure="regroup:4", densities=densities)[1:]:
            for name, found in groups(mask_of(lab, item)).items():
                assert all(len(group.rows) >= 2 for group in found), name
        for item in found_by(lab, structure="2:4", densities=densities)[1:]:
            for kept in mask_of(lab, item).values():
                flat = kept.flatten(1)
                whole = flat[:, : flat.shape[1] // 4 * 4].reshape(-1, 4)
                assert (whole.sum(1) <= 2).all()


def test_plus_fills_back_more_and_match_as_much_as_was_removed(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        by_plus = [
            [mask_of(lab, item).density for item in found_by(lab, structure=kind, densities=(0.4,))[1:]]
            for kind in ("refill", "refill+", "refill+:0.5")
        ]
        for few, more in pairwise(by_plus):
            assert all(one < other for one, other in zip(few, more, strict=True))
        for item in found_by(lab, structure="refill+:match", densities=(0.4,))[1:]:
            assert item.structured is not None
            before = lab.store.get_mask(item.structured.of).density
            assert mask_of(lab, item).density == pytest.approx(before, abs=0.02)


def test_the_chain_is_that_of_a_search_without_structure(tmp_path: Path) -> None:
    """Its trainings are shared: after a plain search only the structured tickets are trained."""
    with tk.Lab(tmp_path) as lab:
        plain = found_by(lab)
        before = lab.ledger.copy()
        found = found_by(lab, structure="regroup:4")
        done = lab.ledger.since(before)
        assert done.segments_trained == len(DENSITIES)
        assert done.keys.count(found[1].result.segment.key) == 1
        again = lab.ledger.copy()
        assert [item.mask for item in found_by(lab, structure="regroup:4")] == [item.mask for item in found]
        assert lab.ledger.since(again).segments_trained == 0
    for level, item in enumerate(found[1:], start=1):
        assert item.structured is not None
        assert item.structured.of == plain[level].mask
        assert item.structured.weights == plain[level - 1].result.model
        assert [each.segment.key for each in item.searched] == [each.result.segment.key for each in plain[:level]]


def test_the_last_level_alone_has_the_same_ticket_for_fewer_trainings(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        alone = found_by(lab, structure="regroup:4", structured_levels=1)
        assert lab.ledger.segments_trained == 1 + len(DENSITIES), "as many as without a structure"
        every = found_by(lab, structure="regroup:4")
        assert lab.ledger.segments_trained == 1 + len(DENSITIES) + len(DENSITIES) - 1
        two = found_by(lab, structure="regroup:4", structured_levels=2)
    assert ([item.level for item in alone], [item.level for item in two]) == ([0, 3], [0, 2, 3])
    (_, ticket), last = alone, every[-1]
    assert ticket.result.segment.key == last.result.segment.key
    assert (ticket.mask, ticket.structured, ticket.behind) == (last.mask, last.structured, last.behind)
    assert [each.segment.key for each in ticket.searched] == [each.segment.key for each in last.searched]


def test_what_is_filled_back_starts_from_the_rewind_point(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        item = found_by(lab, structure="regroup:4")[-1]
        mask, before = mask_of(lab, item), lab.store.get_mask(item.structured.of)  # type: ignore[union-attr]
        start, rewound = lab.store.get_tensors(item.result.segment.start.state), lab.state(item.rewound)  # type: ignore[arg-type]
        filled = {name: kept & ~before[name] for name, kept in mask.items()}
        assert sum(int(each.sum()) for each in filled.values()) > 0
        begun = lab.state(lab.train(item.result.segment.shortened_to(item.result.segment.first)))
    for name, places in filled.items():
        assert torch.equal(start[name], rewound[name])
        assert torch.equal(begun[name][places], rewound[name][places])
        assert begun[name][places].any() or not places.any()


@pytest.mark.parametrize(
    ("settings", "weights", "behind"),
    [({}, 1, 1), ({"retrain": "rewind_lr"}, 10 + 2 * 9, 10 + 2 * 9), ({"rewind": "end", "retrain": "none"}, 10, 10)],
    ids=["rewound", "final weights", "as they are"],
)
def test_the_whole_search_is_counted(shared_store: Path, settings: dict[str, Any], weights: int, behind: int) -> None:
    """Dense network and chain, that of the last level not: nothing of it was needed."""
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, structure="2:4", **settings)
    last, own = found[-1], found[-1].result.segment.steps
    chain = 10 + 2 * own
    assert [each.segment.steps for each in last.searched] == [10, own, own]
    assert last.behind == behind
    assert (search_cost(last), trained_steps(last)) == (chain + own, weights + own)
    phases = training_phases_of(last, found[:-1])
    assert phases.steps == chain + own
    assert [len(part) for part in (phases.dense, phases.search, phases.sparse)] == [1, 2, 1]
    structured = [item.structured for item in found[1:]]
    assert phases.masks == (*(how.of for how in structured if how), last.mask)


def test_one_shot(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        plain = found_by(lab, "oneshot")
        found = found_by(lab, "oneshot", structure="refill")
        assert [item.structured.of for item in found[1:] if item.structured] == [item.mask for item in plain[1:]]
        assert all(item.result.segment.whole_channels for item in found[1:])
        early = found_by(lab, "oneshot", when="0", rewind="0", retrain="finetune", structure="regroup:2")
        assert all(item.structured is not None and not item.result.segment.whole_channels for item in early[1:])
        assert [item.searched[0].segment.last for item in early[1:]] == [0, 0, 0]


def test_seeds_decide_what_is_random(shared_store: Path) -> None:
    search, task = method_called("iterative"), tk.task("digits")
    settings = search.Settings(densities=(0.5,), structure="regroup:4,method=random")
    with tk.Lab(shared_store) as lab:
        found = [list(search.search(lab, task, RECIPE, settings, Seeds(mask=seed))) for seed in (0, 0, 1)]
    assert found[0][0].result.model == found[2][0].result.model, "the dense network is the same"
    assert found[0][1].mask == found[1][1].mask != found[2][1].mask


def test_scores_that_look_at_examples(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        found = found_by(lab, densities=(0.5,), structure="refill,score=activation_l1")[1]
        plain = found_by(lab, densities=(0.5,), structure="refill")[1]
        assert found.mask is not None
        assert plain.mask is not None
        seen = lab.mask_costs[found.mask].seen
        assert seen is not None
        assert (seen.score, seen.first, seen.others) == ("activation_l1", 128, 512)
        assert lab.mask_costs[plain.mask].seen is None
        trained = lab.ledger.segments_trained
        with pytest.raises(UsageError, match="importance"):
            found_by(lab, structure="refill,score=importance")
        assert lab.ledger.segments_trained == trained
