"""Searches in a pattern: whole blocks near the density, pruning by hand, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from search.test_contract import check_pattern
from ticketry.core.sparse_training.penalties import BLOCK_PENALTIES
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import TicketryError
from ticketry.experiments.request import SearchRequest
from ticketry.search import method as method_called
from ticketry.search.gating.gating import Gating, load_gates
from ticketry.search.regularised import _OF_BLOCKS

SHORT = tk.task("digits").recipe.changed(length="24it")
GATES = {"rewind": "10%", "gate_lr": 10.0}


def found_by(lab: tk.Lab, method: str, length: str = "24it", **settings: Any) -> list[tk.search.Found]:
    search = method_called(method)
    return search(lab, tk.task("digits"), search.Settings(**settings), recipe=SHORT.changed(length=length))[0]


def masks_of(lab: tk.Lab, found: list[tk.search.Found]) -> list[tk.Mask]:
    return [lab.store.get_mask(item.mask) for item in found if item.mask]


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


def test_gates_on_blocks_harden_to_tickets(shared_store: Path) -> None:
    """Masks are those of the gates; the density is of weights, and falls from round to round."""
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, "continuous", rounds=2, structure="rows:4", **GATES)
        masks = masks_of(lab, found)
        for item, mask in zip(found[1:], masks, strict=True):
            last = item.searched[-1]
            gates = load_gates(lab, last)
            for name, s in gates.named_parameters():
                blocks = Pattern.parse("4x1").blocks(tuple(mask[name].shape))
                assert torch.equal(mask[name], blocks.expand_to_weights(s.detach() > 0))
            assert last.record["gating"]["density"] == mask.density
            assert last.record["gating"]["kept"][-1][1:] == [row.kept for row in mask.table()]
        assert masks[1].density < masks[0].density < 1


def test_a_group_penalty_makes_blocks_small(shared_store: Path) -> None:
    """For the same share of blocks, what is cut is a smaller part of the whole than without the penalty."""
    with tk.Lab(shared_store) as lab:
        for penalty, strength in (("group_lasso", 0.01), ("group_hoyer_square", 0.001)):
            settings = {"penalty": penalty, "strength": strength, "structure": "rows:4", "density": (0.3,)}
            dense, ticket = found_by(lab, "regularised", length="60it", **settings)
            parts = []
            for result in (dense.rewound, ticket.rewound):
                state = lab.state(result)
                blocks = {n: Pattern.parse("4x1").blocks(tuple(w.shape)) for n, w in state.items() if w.dim() > 1}
                norms = torch.cat([b.sum_by_block(state[n].square()).sqrt().flatten() for n, b in blocks.items()])
                sizes = norms.sort().values
                parts.append(float(sizes[: int(0.7 * len(sizes))].sum() / sizes.sum()))
            assert parts[1] < 0.9 * parts[0], penalty


@pytest.mark.parametrize("method", ["iterative", "continuous"])
def test_names_and_keys_are_older_than_patterns(method: str) -> None:
    search, task = method_called(method), tk.task("digits")
    assert "pattern" not in SearchRequest(search, task, search.Settings(), SHORT).identity()["settings"]
    patterned = SearchRequest(search, task, search.Settings(structure="rows:4"), SHORT)
    assert patterned.identity()["settings"]["pattern"] == "4x1"
    assert "pattern" not in Gating(scope=("a",)).describe()
    assert Gating(scope=("a",), pattern="4x1").describe()["pattern"] == "4x1"


def test_what_goes() -> None:
    early = tk.search.early.Settings
    assert early(structure="2:4", density=(0.5,), iterations=1).targets == (0.5,)
    assert early(structure="2:4", density=(0.1,)).targets == (0.1,)  # the first cut is to 0.5
    assert _OF_BLOCKS == BLOCK_PENALTIES
    with pytest.raises(TicketryError, match="gates are on coupled channels"):
        Gating(scope=("a",), structured=True, pattern="4x1")


@pytest.mark.slow
def test_a_density_asked_of_gates_on_blocks(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, "continuous", length="150it", density=0.3, rounds=2, structure="filters", **GATES)
        assert masks_of(lab, found)[-1].density == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("oneshot", {"density": (0.5, 0.1), "structure": "search:2:4"}),
        ("early", {"density": (0.3,), "every": "2it", "latest": "6it", "detector": "masks", "structure": "rows:4"}),
        ("gradual", {"density": (0.3,), "begin": "5it", "end": "16it", "frequency": "8it", "structure": "filters"}),
        ("regularised", {"density": (0.2,), "penalty": "group_hoyer_square", "structure": "rows:16"}),
    ],
)
def test_masks_are_of_the_pattern(shared_store: Path, method: str, settings: dict[str, Any]) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, method, **{"score": "magnitude", **settings})
        pattern, model = (
            method_called(method).Settings(**settings).parsed_structure.pattern,
            lab.model(tk.task("digits")),
        )
        for mask, density in zip(masks_of(lab, found), settings["density"], strict=True):
            check_pattern(mask, pattern, model)
            assert mask.density == pytest.approx(density, abs=0.01)
        assert not any(item.result.segment.whole_channels for item in found)
