"""Searches in a pattern: the contract, whole blocks near the density, pruning by hand, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.core.sparse_training.penalties import BLOCK_PENALTIES
from ticketry.core.structure.layout import best_of_m, layouts
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import TicketryError, UsageError
from ticketry.experiments.request import SearchRequest
from ticketry.search import method as method_called
from ticketry.search.gating.gating import Gating
from ticketry.search.gating.masks import gates_of
from ticketry.search.regularised import _OF_BLOCKS
from ticketry.testing import check_search

SHORT = tk.task("digits").recipe.changed(length="30it")
GATES = {"rewind": "10%", "gate_lr": 10.0}


def found_by(lab: tk.Lab, method: str, length: str = "30it", **settings: Any) -> list[tk.search.Found]:
    search = method_called(method)
    return search(lab, tk.task("digits"), search.Settings(**settings), recipe=SHORT.changed(length=length))[0]


def masks_of(lab: tk.Lab, found: list[tk.search.Found]) -> list[tk.Mask]:
    return [lab.store.get_mask(item.mask) for item in found if item.mask]


def check_masks(lab: tk.Lab, found: list[tk.search.Found], text: str) -> None:
    """All of the pattern, with no half block."""
    pattern, model = Pattern.parse(text), lab.model(tk.task("digits"))
    for item, mask in zip(found[1:], masks_of(lab, found), strict=True):
        known = layouts(model, mask)
        assert item.pattern == text
        for name, kept in mask.items():
            if pattern.m:
                assert bool((best_of_m(kept.int(), pattern.n, pattern.m, known[name]) | ~kept).all())
            else:
                pattern.blocks(tuple(kept.shape), known[name]).whole(kept, name)


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param("iterative", {"densities": (0.5, 0.2), "rewind": "3it", "structure": "rows:4"}, id="imp"),
        pytest.param("continuous", {"rounds": 2, "structure": "rows:4", **GATES}, id="gates", marks=pytest.mark.slow),
        *(
            pytest.param(method, settings, id=name, marks=pytest.mark.slow)
            for name, method, settings in [
                ("n-m", "oneshot", {"density": (0.5, 0.2), "retrain": "continue", "structure": "search:2:4"}),
                ("gradual", "gradual", {"density": (0.3,), "begin": "5it", "frequency": "8it", "structure": "rows:16"}),
                ("early", "early", {"density": (0.3,), "when": "5it", "batches": 1, "structure": "filters"}),
                ("snip", "oneshot", {"density": (0.3,), "when": "0", "score": "snip", "structure": "rows:4"}),
                ("rows", "continuous", {"rounds": 1, "structure": "filters", "rewind": "0", "gate_lr": 1.0}),
                ("drawn", "stochastic", {"rounds": 1, "structure": "rows:4", "rewind": "0", "gate_lr": 1.0}),
                ("lasso", "regularised", {"penalty": "group_lasso", "density": (0.3,), "structure": "rows:4"}),
            ]
        ),
    ],
)
def test_contract(tmp_path: Path, method: str, settings: dict[str, Any]) -> None:
    made = method_called(method).Settings(**settings)
    found = check_search(method, tmp_path, settings=made, recipe=SHORT)
    with tk.Lab(tmp_path / "first") as lab:  # where the found ones are stored
        check_masks(lab, found, made.shape.pattern)


# -- what is chosen ----------------------------------------------------------------------------------------------------


def test_iterative_pruning_of_blocks_is_by_hand(shared_store: Path) -> None:
    """Each level: the best of the blocks that are left, by the weights of the level before, as near as they come."""
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, "iterative", rate=0.4, levels=3, rewind="3it", structure="rows:4")
        mask = None
        for before, item in pairwise(found):
            model = lab.model(tk.task("digits"), before.result)
            density = 0.6**item.level
            mask = tk.prune(model, density, within=mask, pattern="4x1")
            assert lab.store.get_mask(item.mask) == mask
            assert abs(mask.kept - density * mask.total) <= 2.5
        check_masks(lab, found, "4x1")


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("oneshot", {"density": (0.5, 0.1), "structure": "search:2:4"}),
        ("early", {"density": (0.2,), "when": "3it", "score": "magnitude", "structure": "2:4"}),
        ("early", {"density": (0.3,), "every": "2it", "latest": "6it", "detector": "masks", "structure": "rows:4"}),
        ("gradual", {"density": (0.3,), "begin": "5it", "end": "20it", "frequency": "8it", "structure": "filters"}),
        ("regularised", {"density": (0.2,), "penalty": "group_hoyer_square", "structure": "rows:16"}),
    ],
)
def test_masks_are_of_the_pattern(shared_store: Path, method: str, settings: dict[str, Any]) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, method, **{"score": "magnitude", **settings})
        check_masks(lab, found, method_called(method).Settings(**settings).shape.pattern)
        for mask, density in zip(masks_of(lab, found), settings["density"], strict=True):
            assert mask.density == pytest.approx(density, abs=0.01)
        assert not any(item.result.segment.whole_channels for item in found)


def test_gates_on_blocks_harden_to_tickets(shared_store: Path) -> None:
    """Masks are those of the gates; the density is of weights, and falls from round to round."""
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, "continuous", rounds=2, structure="rows:4", **GATES)
        masks = masks_of(lab, found)
        for item, mask in zip(found[1:], masks, strict=True):
            last = item.searched[-1]
            gates = gates_of(lab, last)
            for name, s in gates.named_parameters():
                blocks = Pattern.parse("4x1").blocks(tuple(mask[name].shape))
                assert torch.equal(mask[name], blocks.spread(s.detach() > 0))
            assert last.record["gating"]["density"] == mask.density
            assert last.record["gating"]["kept"][-1][1:] == [row.kept for row in mask.table()]
        assert masks[1].density < masks[0].density < 1


@pytest.mark.slow
def test_a_density_asked_of_gates_on_blocks(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, "continuous", length="150it", density=0.3, rounds=2, structure="filters", **GATES)
        assert masks_of(lab, found)[-1].density == pytest.approx(0.3, rel=0.1)


def test_a_group_penalty_makes_blocks_small(shared_store: Path) -> None:
    """For the same share of blocks, what is cut is a smaller part of the whole than without the penalty."""
    with tk.Lab(shared_store) as lab:
        for penalty, strength in (("group_lasso", 0.01), ("group_hoyer_square", 0.001)):
            settings = {"penalty": penalty, "strength": strength, "structure": "rows:4", "density": (0.3,)}
            dense, ticket = found_by(lab, "regularised", length="120it", **settings)
            parts = []
            for result in (dense.rewound, ticket.rewound):
                state = lab.state(result)
                blocks = {n: Pattern.parse("4x1").blocks(tuple(w.shape)) for n, w in state.items() if w.dim() > 1}
                norms = torch.cat([b.pool(state[n].square()).sqrt().flatten() for n, b in blocks.items()])
                sizes = norms.sort().values
                parts.append(float(sizes[: int(0.7 * len(sizes))].sum() / sizes.sum()))
            assert parts[1] < 0.9 * parts[0], penalty


# -- names and keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["iterative", "oneshot", "gradual", "early", "continuous", "regularised"])
def test_names_and_keys_are_older_than_patterns(method: str) -> None:
    search, task = method_called(method), tk.task("digits")
    plain = SearchRequest(search, task, search.Settings(), SHORT)
    assert "pattern" not in plain.identity()["settings"]
    assert plain.describe()["settings"]["structure"] == "none"
    more = {"penalty": "group_lasso"} if method == "regularised" else {}
    patterned = SearchRequest(search, task, search.Settings(structure="rows:4", **more), SHORT)
    assert patterned.identity()["settings"]["pattern"] == "4x1"
    assert "pattern" not in Gating(scope=("a",)).describe()
    assert Gating(scope=("a",), pattern="4x1").describe()["pattern"] == "4x1"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("iterative", {"structure": "4by1"}, "is not offered: none, rows:4, filters"),
        ("iterative", {"structure": "rows:1"}, "a whole number from 2 on"),
        ("iterative", {"structure": "search:2:4"}, r"at most 2 of 4 weights, a density of 0.5, and 0.8 is asked for"),
        ("iterative", {"structure": "search:2:4", "densities": (0.5,), "half_rate": ("fc3.weight",)}, "no meaning"),
        ("oneshot", {"structure": "search:1:4", "density": (0.5, 0.25)}, "0.5 is asked for: ask for 0.25 or less"),
        ("gradual", {"structure": "2:4", "density": (0.2,)}, "is not offered"),
        ("early", {"structure": "2:4", "density": (0.5,)}, "0.75 is asked for"),
        ("early", {"structure": "refill", "density": (0.5,)}, "is not offered"),
        ("continuous", {"structure": "2:4"}, "is not offered"),
        ("stochastic", {"structure": "channels"}, "is not offered"),
        (
            "regularised",
            {"structure": "rows:4"},
            "with a structure, such as rows:4, the penalty is group_hoyer_square or g",
        ),
        ("regularised", {"penalty": "group_lasso"}, "without one l1_scales"),
        ("regularised", {"penalty": "group_lasso", "structure": "2:4"}, "is not offered"),
    ],
)
def test_bad_settings(method: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        method_called(method).Settings(**settings)


def test_what_goes() -> None:
    early = tk.search.early.Settings
    assert early(structure="2:4", density=(0.5,), iterations=1).targets == (0.5,)
    assert early(structure="2:4", density=(0.1,)).targets == (0.1,)  # the first cut is to 0.5
    assert _OF_BLOCKS == BLOCK_PENALTIES
    with pytest.raises(TicketryError, match="gates are on coupled channels"):
        Gating(scope=("a",), structured=True, pattern="4x1")
