"""Networks of many families, compiled with a random mask: equal to the masked model, for several numbers of
examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from engine.families import FAMILIES, TIMM, TORCHVISION, image, shake, torchvision_size
from engine.test_families import HEAVY, call, doubled, other_batch, random_mask, tensors
from tasks.models.zoo_support import import_or_skip
from ticketry.engine.capture import capture
from ticketry.engine.compiled import Compiled
from ticketry.engine.graph import Graph
from ticketry.tasks.models.networks import build, names


def compiled(model: nn.Module, example: Any, *, batches: tuple[int, ...] = (1, 3), bound: float = 1e-4) -> Compiled:
    """Compile the masked model and compare with it in double precision, relative to the largest value."""
    model = shake(model.eval())
    mask = random_mask(model, 0.3)
    fast = Compiled(capture(model, mask, example), threads=1)
    mask.apply_(model)
    exact = model.double()
    mha = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for batch in batches:
            inputs = other_batch(example, batch)
            wanted, found = tensors(call(exact, doubled(inputs))), tensors(call(fast, inputs))
            assert len(found) == len(wanted) > 0
            for made, right in zip(found, wanted, strict=True):
                assert made.shape == right.shape
                assert float((made.double() - right).abs().max()) <= bound * max(float(right.abs().max()), 1e-30)
    finally:
        torch.backends.mha.set_fastpath_enabled(mha)
    return fast


def in_engine(graph: Graph, fast: Compiled, *ops: str) -> bool:
    return not any(node.output in fast.reasons for node in graph.nodes if node.op in ops)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in names()])
def test_our_own_networks_run_in_the_engine_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    fast = compiled(build(name, shape=shape, classes=10), torch.randn(1, *shape))
    assert not fast.reasons


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families(name: str) -> None:
    torch.manual_seed(0)
    if name not in ("lstm tagger", "u-net", "torch transformer"):
        pytest.importorskip("transformers")
    fast = compiled(*FAMILIES[name]())
    assert in_engine(fast.graph, fast, "conv2d", "layer_norm")


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name: str) -> None:
    library = import_or_skip("torchvision")
    torch.manual_seed(0)
    more = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    model = library.models.get_model(name, weights=None, num_classes=5, **more)
    assert in_engine(*(lambda fast: (fast.graph, fast))(compiled(model, image(1, torchvision_size(name)))), "conv2d")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str) -> None:
    library = import_or_skip("timm")
    torch.manual_seed(0)
    compiled(library.create_model(name, pretrained=False, num_classes=5), image(1, 224 if "224" in name else 64))
