"""Random structure of the same shape."""

from __future__ import annotations

import torch
from torch import nn

import ticketry as tk
from group_wise import Bank, in_groups, linear, random_tensor

NAME = "layer.weight"
shuffled_structure = tk.structure.shuffled_structure


def shape(kept: torch.Tensor) -> list[tuple[int, int]]:
    return sorted((len(group.rows), group.width) for group in tk.structure.row_groups(kept))


def test_sizes_and_widths_of_groups_stay_and_nothing_else() -> None:
    model = linear(random_tensor(80, 200) * random_tensor(80, 1, seed=1).exp())
    mask = tk.prune(model, 0.2)
    made = tk.structure.regroup(model, mask, rows=8)
    other = shuffled_structure(made, 0)
    assert shape(other[NAME]) == shape(made[NAME])
    assert len({width for _, width in shape(made[NAME])}) > 5
    assert abs(other.overlap(made) - made.density) < 0.05
    before, after = (
        {frozenset(group.rows.tolist()) for group in tk.structure.groups(one)[NAME]} for one in (made, other)
    )
    assert not before & after


def test_layers_of_one_shape_differ_and_seeds_too() -> None:
    kept = torch.zeros(16, 30, dtype=torch.bool)
    kept[:8, :10] = kept[8:, 20:] = True
    mask = tk.Mask({"a": kept, "b": kept})
    first, again, other = (shuffled_structure(mask, seed) for seed in (0, 0, 1))
    assert first == again
    assert not torch.equal(first["a"], first["b"])
    assert first != other
    alone = shuffled_structure(tk.Mask({"b": kept}), 0)["b"]
    assert torch.equal(alone, first["b"])  # a layer's draw does not depend on the layers before it


def test_whole_rows_stay_whole() -> None:
    kept = torch.zeros(40, 6, 3, 3, dtype=torch.bool)
    kept[:10] = True
    mask = tk.Mask({"w": kept, "bias": kept[:, 0, 0, 0], "scale": torch.tensor(True)})
    other = shuffled_structure(mask, 3)
    assert shape(other["w"]) == [(10, 54), (30, 0)]
    assert int(other["bias"].sum()) == 10
    assert other["scale"]
    assert not torch.equal(other["w"], kept)


def test_with_the_model_outputs_are_where_they_are() -> None:
    model = Bank(nn.ConvTranspose2d(12, 8, 3, groups=2))
    mask = tk.structure.regroup(model, tk.prune(model, 0.3), rows=4)
    other = shuffled_structure(mask, 0, model=model)[NAME]
    for half in (other[:6], other[6:]):
        assert in_groups(half.transpose(0, 1).contiguous(), 4)
    assert int(other.sum()) == mask.kept
    assert not torch.equal(other, mask[NAME])
