"""NAME@W: every hidden layer W times as wide, nothing else changed."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise

import pytest
import torch
from torch import nn

from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks import models

SMALL, COLOUR = (1, 28, 28), (3, 32, 32)


def unallocated(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, shape=COLOUR, classes=10)


def layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Name -> (inputs, outputs) of every layer that has a width."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d):
            found[name] = (module.in_channels, module.out_channels)
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = (module.num_features, module.num_features)
    return found


@pytest.mark.parametrize("width", sample(["0.21", "2", "0.015625", "0.5", "0.75", "1.5"], 2))
@pytest.mark.parametrize("name", models.names())
def test_every_hidden_width_is_scaled_and_rounded(name: str, width: str) -> None:
    def scaled(units: int) -> int:
        return max(1, int((Decimal(width) * units).quantize(Decimal(1), ROUND_HALF_EVEN)))

    plain, other = layers(unallocated(name)), layers(unallocated(f"{name}@{width}"))
    plain_linear = [key for key, module in unallocated(name).named_modules() if isinstance(module, nn.Linear)]
    first, last = next(iter(plain)), plain_linear[-1]
    flat = plain_linear[0] if name.startswith(("lenet", "conv")) else ""  # sees pixels of each of the channels
    keys = list(plain)
    if set(other) != set(plain):  # where a narrow stem is as wide as its stage, nothing need be projected
        assert (name, width) == ("wrn-40-2", "0.015625")
        assert set(plain) - set(other) == {"blocks.0.shortcut"}
        keys.remove("blocks.0.shortcut")
    for key in keys:
        (inputs, outputs), found = plain[key], other[key]
        assert found[1] == (10 if key == last else scaled(outputs)), key
        if key == first:
            assert found[0] == inputs
        elif key == flat:
            before = keys[keys.index(key) - 1]
            assert found[0] == inputs // plain[before][1] * scaled(plain[before][1])
        else:
            assert found[0] == scaled(inputs), key


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "conv-4", "resnet-20", "vgg-16", "wrn-40-2"])
@pytest.mark.parametrize("width", ["0.015625", "0.3"])
def test_a_narrow_network_gives_logits(name: str, width: str) -> None:
    model = models.build(f"{name}@{width}", shape=SMALL, classes=7).eval()
    assert model(torch.randn(2, *SMALL)).shape == (2, 7)


def test_a_narrow_resnet_50_gives_logits() -> None:
    model = models.build("resnet-50-imagenet@0.1", shape=(3, 64, 64), classes=7).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 7)


def bits(name: str) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return list(models.build(name, shape=COLOUR, classes=10).state_dict().values())


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("resnet-20@1", "resnet-20"),
        ("conv-4@1.0", "conv-4"),
        ("resnet-20@0.50", "resnet-20@0.5"),
        ("resnet-20@0.5", "resnet-20-8"),
        ("resnet-20-8@2", "resnet-20"),
    ],
)
def test_names_of_one_network_give_the_same_initial_bits(name: str, same: str) -> None:
    for one, other in zip(bits(name), bits(same), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("name", "identity"),
    [("resnet-20", "resnet-20"), ("resnet-20@1.0", "resnet-20"), ("resnet-20@0.50", "resnet-20@0.5")],
)
def test_identity_is_the_one_name(name: str, identity: str) -> None:
    assert models.identity(name) == {"model": identity}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "resnet-21@0.5",
            r"no network 'resnet-21': did you mean .*resnet-20.*\? choose one of lenet-300-100.*resnet-20@0\.5",
        ),
        ("resnet20", "did you mean resnet-20"),
        ("VGG16", "did you mean vgg-16"),
        ("alexnet", "no network 'alexnet': choose one of lenet-300-100, .*timm:resnet18"),
        ("resnet-20@", "resnet-20@: a width is a number above 0 and up to 4"),
        ("resnet-20@8", "not '8'"),
    ],
)
def test_wrong_names(name: str, reason: str) -> None:
    for act in (models.check, models.build, models.parameters):
        extra = {} if act is models.check else {"classes": 10}
        with pytest.raises(TaskError, match=reason):
            act(name, shape=COLOUR, **extra)


def test_too_small_images_are_refused_at_any_width() -> None:
    with pytest.raises(TaskError, match=r"vgg-16@0\.5 takes images of at least 16x16 pixels, not 8x8"):
        models.check("vgg-16@0.5", shape=(1, 8, 8))


def test_wider_networks_have_more_parameters() -> None:
    counts = [
        models.parameters(f"resnet-20@{width}", shape=COLOUR, classes=10) for width in ("0.25", "0.5", "1", "2", "4")
    ]
    assert all(few < many for few, many in pairwise(counts))
