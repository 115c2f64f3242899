"""Refill where layers keep their channels: the ends of the network, layers out of the mask, spared ones; bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from refilled import (
    CHAIN,
    CHAIN_INPUTS,
    CHAIN_STRUCTURE,
    RESIDUAL,
    chain,
    kept_channels,
    kept_in,
    paid,
    random_mask,
    refill,
    residual,
    without,
)
from small_networks import Chain, Mlp, settled
from ticketry.core.structure.apply import check_structure_score
from ticketry.core.structure.pattern import Structuring
from ticketry.errors import LayerCollapseError, MaskError, ScopeError, StructureError, UsageError


def test_the_first_convolution_goes_as_the_mask_says() -> None:
    mask = random_mask(CHAIN, 0.4)
    named, unnamed = chain(mask), chain(without(mask, "a.weight"))
    assert len(kept_channels(named, "a.weight")) < 4
    assert "a.weight" not in unnamed
    assert "n.weight" not in unnamed
    assert unnamed["b.weight"][kept_channels(unnamed, "b.weight")].all()
    assert kept_channels(unnamed, "b.weight") == kept_channels(named, "b.weight")
    spared = chain(mask, first=False)
    assert spared["a.weight"].all()
    assert kept_in(spared, "b.weight") == kept_in(unnamed, "b.weight")
    # asked for though the mask does not have it: all its weights count as kept
    asked = residual(without(random_mask(RESIDUAL, 0.3), "stem.weight"), first=True)
    layers = [(RESIDUAL.get_submodule(n).weight, random_mask(RESIDUAL, 0.3)[f"{n}.weight"]) for n in ("two", "four")]
    layers.append((RESIDUAL.stem.weight, torch.ones_like(RESIDUAL.stem.weight, dtype=torch.bool)))
    assert len(kept_channels(asked, "stem.weight")) == paid(layers)


def test_a_stream_stays_whole_with_a_layer_out_of_the_mask() -> None:
    found = residual(without(random_mask(RESIDUAL, 0.3), "stem.weight"))
    assert len(kept_channels(found, "two.weight")) == 8
    assert "stem.weight" not in found
    assert len(kept_channels(found, "one.weight")) < 5


def test_the_classifier_loses_inputs_only() -> None:
    mask = random_mask(CHAIN, 0.4)
    named, unnamed = chain(mask), chain(without(mask, "d.weight"))
    assert named == unnamed  # its columns go with the channels of the layer before
    assert kept_in(named, "d.weight") == 3 * len(kept_channels(named, "c.weight"))
    assert chain(mask, output=False) == named
    model, inputs = settled(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()), torch.randn(3, 4)
    with pytest.raises(StructureError, match=r"no channels that can be removed.*it is spared"):
        refill(model, random_mask(model, 0.5), inputs, spare="0")


def test_spared_layers_keep_their_channels() -> None:
    mask = random_mask(CHAIN, 0.3)
    found = chain(mask, spare=("b", "c"))
    assert len(kept_channels(found, "b.weight")) == 6
    assert found["c.weight"].all()
    assert len(kept_channels(found, "a.weight")) < 4
    with pytest.raises(ScopeError, match="spare='x' matches no parameter"):
        chain(mask, spare="x")


def test_masks_that_do_not_fit() -> None:
    with pytest.raises(MaskError, match=r"the mask does not fit.*no parameter 'z'"):
        chain(tk.Mask({"z": torch.ones(2)}))
    with pytest.raises(MaskError, match=r"the mask does not fit.*'a.weight' has the shape"):
        chain(tk.Mask({"a.weight": torch.ones(3, 1, 3, 3)}))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_group_that_would_vanish() -> None:
    mask = {name: kept.clone() for name, kept in random_mask(CHAIN, 0.5).items()}
    mask["b.weight"][:] = False
    with pytest.raises(LayerCollapseError, match=r"keeps nothing of 'b\.weight'.*spare='b'"):
        chain(tk.Mask(mask))
    assert chain(tk.Mask(mask), spare="b")["b.weight"][:, 0].any()
    mask["b.weight"][3, 1, 1, 1] = True  # less than one channel: one is filled, the one that has it
    assert kept_channels(chain(tk.Mask(mask)), "b.weight") == [3]
    stream = {name: kept.clone() for name, kept in random_mask(RESIDUAL, 0.5).items()}
    stream["two.weight"][:] = False  # the other layers of the stream have some
    assert kept_channels(residual(tk.Mask(stream)), "two.weight")


def test_layers_without_channels_to_remove() -> None:
    with pytest.raises(StructureError, match=r"no channels that can be removed; .*d: it is an output of the model"):
        chain(tk.Mask({"d.weight": torch.ones(3, 5)}))
    with pytest.raises(StructureError, match="residual stream, which coupled='inner' leaves whole"):
        residual(tk.Mask({"stem.weight": torch.ones(8, 3, 3, 3)}), coupled="inner")


def test_weights_that_are_no_numbers() -> None:
    model = Chain().double()
    with torch.no_grad():
        model.b.weight[0] = math.nan
    with pytest.raises(MaskError, match="scores of the channels of b are not all numbers"):
        refill(model, tk.Mask.ones(tk.scope(model)), CHAIN_INPUTS, structure=CHAIN_STRUCTURE)


def test_a_structure_of_another_model() -> None:
    model = Mlp().double()
    with pytest.raises(StructureError, match="another model's"):
        refill(model, tk.Mask.ones(tk.scope(model)), torch.randn(3, 5), structure=CHAIN_STRUCTURE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "l3"}, "score 'l3' is not known.*remaining"),
        ({"score": "random:remaining"}, "'random' is no control"),
        ({"plus": 1.5}, "plus is the share"),
        ({"plus": math.nan}, "plus is the share"),
        ({"plus": 0.5, "density": 0.5}, "give one of them"),
        ({"density": 0.0}, "a density is the fraction of weights kept"),
        ({"coupled": "union"}, "coupled is agree or inner"),
        ({"keep_at_least": 0}, "keep_at_least"),
        ({"multiple": 0}, "multiple"),
        ({"score": "taylor"}, "batches"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chain(random_mask(CHAIN, 0.5), **options)


def test_a_structure_after_a_search_takes_the_same_scores() -> None:
    for score in ("remaining", "activation_l2", "shuffled:l1", "snip"):
        check_structure_score(Structuring(kind="refill", score=score))
    with pytest.raises(UsageError, match="'l3' is not known"):
        check_structure_score(Structuring(kind="refill", score="l3"))
    with pytest.raises(UsageError, match="'remaining' is not known"):
        check_structure_score(Structuring(kind="channels", score="remaining"))
