"""Stored results of ``--kernels sparse`` depend on the bits of these kernels, and their keys name `VERSION`."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.training.regions import act, layer, layer_norm, region
from engine.training.test_region_step import Residual, library
from ticketry.errors import EngineError
from ticketry_engine.kernels.target import target
from ticketry_engine.training.plan import LAYERS, TrainingRegion, layer_name
from ticketry_engine.training.region_step import RegionStep
from ticketry_engine.training.sparse_training import VERSION

DIGESTS = {
    (6, "avx512", "images"): "fb2e9119796d5a599d4a6e39328a734c8f7e23a27eb69f9a3c9fd12f86c4455d",
    (6, "avx512", "tokens"): "704c1963dcddd71db298be123545ca4896f0b724284b27772fc4e82dc2de3725",
    (6, "avx2", "images"): "0b94c02c9735b3e039a604381bf060d94562b806378be68d4a7cd80d4d021912",
    (6, "avx2", "tokens"): "902daaa5166999e07a983700a0b6f5ba42fe2ecfbe4430dd632273b8d64277f5",
    (6, "avx512", "groups of rows"): "c8104930679b18ebfb0fd95bf2f22a0bbde9d46627cbd44937152839e0e0874a",
    (6, "avx512 bf16", "images"): "01d69e55b7632fc6cb5f8993902431b6d6b83187970e32f1a2362e605eee71d4",
    (6, "avx512 bf16", "groups of rows"): "b50d2f85d4af64100c3ce8665dc4ce9d690e7a2601ad17e8b25c9ed1121663c8",
    (6, "avx2", "groups of rows"): "633e2c9b460f7315a2934f578e893ee8018667709d7bf08ac24dd067260c3e6f",
    (6, "avx512", "few weights"): "18045000dc5e9f743c39b2c77885d50f8234fd41325188eb013cf152fc5fa880",
    (6, "avx512 bf16", "sixteen rows by tiles"): "8aeb9cc028c4c9367ce1ecddaa2b25cdb8fafa5e617a55176e2eff3ed38a24d2",
    (6, "avx2", "few weights"): "cad01c5eb94182babd970e36d92a83c7a896343de99f1838e65b71727be9d1b5",
}
"""Of outputs, gradients and buffers, by the version of the kernels' numbers and the kind of processor.

A processor with AVX-512 runs what is made for AVX2 too, to the same bits. Of others than those here nothing is pinned
yet: run this there, and add what it finds.
"""


class Tokens(nn.Module):
    """A block of a transformer without its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(24), nn.Linear(24, 70), nn.Linear(70, 24)

    @property
    def region(self) -> TrainingRegion:
        return region(
            self,
            layer_norm("x", "1", "norm", self.norm),
            layer("1", "2", "up", self.up),
            act("2", "3", "gelu"),
            layer("3", "out", "down", self.down),
            tokens=True,
        )


class Sparse(nn.Module):
    """Many channels, of which a row keeps few: segments range over more inputs than a cache keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(96, 64, 3, padding=1, bias=False)

    @property
    def region(self) -> TrainingRegion:
        return region(self, layer("x", "out", "conv", self.conv))


@pytest.mark.parametrize(("version", "where", "what"), DIGESTS)
def test_a_change_of_bits_is_a_new_version(version: int, where: str, what: str) -> None:
    """Where this fails for good reason, raise `VERSION` and pin the new digests under it."""
    assert version == VERSION
    kind, _, half = where.partition(" ")
    try:
        here = target(kind)
    except EngineError:
        pytest.skip(f"kernels for {where} do not run here")
    if half and not here.bf16:
        pytest.skip("the processor does not multiply bfloat16")
    if what == "sixteen rows by tiles" and not here.tiles:
        pytest.skip("the processor has no tiles")
    models = {"tokens": Tokens, "few weights": Sparse, "sixteen rows by tiles": functools.partial(Residual, 32)}
    model: Residual | Tokens | Sparse = models.get(what, Residual)()  # type: ignore[operator]
    rng = np.random.default_rng(7)

    def drawn(like: Tensor) -> Tensor:
        return torch.from_numpy(rng.uniform(-1, 1, tuple(like.shape)).astype(np.float32))

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(drawn(parameter))
    modules = dict(model.named_modules())
    layers = [layer_name(node) for node in model.region.nodes if node.op in LAYERS]
    share = 0.02 if what == "few weights" else 0.3
    kept = {name: rng.random(modules[name].weight.shape) < share for name in layers}
    if what == "groups of rows":  # a layer of all weights is one group
        kept = {name: np.repeat(kept[name][::4], 4, axis=0) for name in layers[1:]}
    if what == "sixteen rows by tiles":
        kept = {name: np.repeat(mask[::16], 16, axis=0) for name, mask in kept.items()}
    shape = {"tokens": (3, 50, 24), "few weights": (16, 96, 10, 8)}.get(what, (40, 3, 10, 8))
    x = drawn(torch.empty(shape)).requires_grad_()
    (y,) = RegionStep(model.region, modules, kept, library(kind), half=bool(half))([x])
    y.backward(drawn(y).to(y.dtype))
    digest = hashlib.sha256()
    found = [("output", y), ("input", x.grad), *model.named_buffers()]
    found += [(name, parameter.grad) for name, parameter in model.named_parameters()]
    for name, tensor in found:
        assert tensor is not None, name
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        tensor = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    assert digest.hexdigest() == DIGESTS[version, where, what]
