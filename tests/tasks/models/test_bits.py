"""Stored results depend on the bits of the initial weights: they stay what they were when results were first stored."""

from __future__ import annotations

import hashlib

import pytest
import torch

from ticketry.tasks import models

DIGESTS = {
    "lenet-300-100": "2a2af5203ea27d91afc46f892fac82134022b771e76f983c31b79559afecca1e",
    "lenet-5": "d0bcbf5e8fdcca961f07841f59200b7bffc5828dfac41d6452508a54ae1ccbd6",
    "conv-4": "82ac00941cb7e2e1f11f929d5146e08519f0fea1f27ec2d52751ed7b690e33fc",
    "conv-4-16": "3cffdcc68f8ab4e0f950a6e042240201b2a4bd6ab0429e934334addf77fdaaa9",
    "resnet-20": "a9e3bc3ea4d6c6fb6a1d3ae0e3c0a96d317ec0aa2401288be9d731f0c145a94f",
    "resnet-20-8": "d260c960f155a0326f335e8deedb91e1e877f0a675e4e13c2625d04f4a6cb433",
    "vgg-16": "9375a341ae43b808578022846337395ebc52748e9f20df72e029f6d9e87811f0",
}


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"),
    reason="torch draws normal numbers with other roundings where it has no AVX2",
)
@pytest.mark.parametrize("name", DIGESTS)
def test_names_and_initial_weights_are_those_of_the_first_stored_results(name: str) -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    digest = hashlib.sha256()
    for key, tensor in models.build(name, shape=shape, classes=10).state_dict().items():
        digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest() == DIGESTS[name]
