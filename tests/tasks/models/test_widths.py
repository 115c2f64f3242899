"""NAME@W: every hidden layer W times as wide; parameter counts, and the widest network within a budget."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from itertools import pairwise

import pytest
import torch
from torch import nn

from samples import sample
from ticketry.errors import TaskError
from ticketry.tasks import models

GREY, COLOUR = (1, 28, 28), (3, 32, 32)
QUICK = ["lenet-300-100", "lenet-5", "conv-4-16", "resnet-20-8", "vgg-11", "wrn-40-2"]


def unallocated(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.build(name, shape=COLOUR, classes=10)


def layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return name -> (inputs, outputs) of every layer that has a width."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name] = (module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d):
            found[name] = (module.in_channels, module.out_channels)
        elif isinstance(module, nn.BatchNorm2d):
            found[name] = (module.num_features, module.num_features)
    return found


@pytest.mark.parametrize("name", sample(models.names(), QUICK))
def test_every_hidden_width_is_scaled_and_rounded(name: str) -> None:
    model = unallocated(name)
    plain = layers(model)
    plain_linear = [key for key, module in model.named_modules() if isinstance(module, nn.Linear)]
    first, last = next(iter(plain)), plain_linear[-1]
    flat = plain_linear[0] if name.startswith(("lenet", "conv")) else ""  # its inputs are pixels of each channel
    for width in ("0.21", "1.5", "0.015625"):

        def scaled(units: int, width: str = width) -> int:
            return max(1, int((Decimal(width) * units).quantize(Decimal(1), ROUND_HALF_EVEN)))

        other = layers(unallocated(f"{name}@{width}"))
        keys = list(plain)
        if set(other) != set(plain):  # a narrow stem may be as wide as its stage, which then needs no projection
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


@pytest.mark.parametrize("name", ["lenet-5", "conv-4", "resnet-20", "vgg-16", "wrn-40-2"])
def test_a_narrow_network_gives_logits(name: str) -> None:
    model = models.build(f"{name}@0.015625", shape=GREY, classes=7).eval()
    assert model(torch.randn(2, *GREY)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "same"), [("resnet-20@1", "resnet-20"), ("resnet-20@0.50", "resnet-20-8"), ("resnet-20-8@2", "resnet-20")]
)
def test_names_of_one_network_give_the_same_initial_bits(name: str, same: str) -> None:
    def bits(name: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(models.build(name, shape=COLOUR, classes=10).state_dict().values())

    for one, other in zip(bits(name), bits(same), strict=True):
        assert torch.equal(one, other)


def test_identity_is_the_canonical_name() -> None:
    for name, identity in (("resnet-20@1.0", "resnet-20"), ("resnet-20@0.50", "resnet-20@0.5")):
        assert models.network_key(name) == {"model": identity}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet-21@0.5", r"no network 'resnet-21': did you mean .*resnet-20.*\? choose one of .*resnet-20@0\.5"),
        ("VGG16", "did you mean vgg-16"),
        ("alexnet", "no network 'alexnet': choose one of lenet-300-100, .*timm:resnet18"),
        ("resnet-20@", "resnet-20@: a width is a number above 0 and up to 4"),
        ("resnet-20@8", "not '8'"),
        ("timm:resnet18@0.5", "only this package's own networks have a width"),
    ],
)
def test_wrong_names(name: str, reason: str) -> None:
    with pytest.raises(TaskError, match=reason):
        models.check(name, shape=COLOUR)
    for call in (models.build, models.parameters):
        with pytest.raises(TaskError, match=reason):
            call(name, shape=COLOUR, classes=10)


def test_too_small_images_are_refused_at_any_width() -> None:
    with pytest.raises(TaskError, match=r"vgg-16@0\.5 takes images of at least 16x16 pixels, not 8x8"):
        models.check("vgg-16@0.5", shape=(1, 8, 8))


# -- budgets of parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet-300-100@0.3", "conv-4-16", "resnet-20@0.5", "vgg-11@0.1", "wrn-16-8@0.1"])
def test_parameters_are_those_of_the_allocated_network(name: str) -> None:
    model = models.build(name, shape=COLOUR, classes=17)
    assert models.parameters(name, shape=COLOUR, classes=17) == sum(one.numel() for one in model.parameters())


def test_counting_allocates_nothing_and_draws_nothing() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    # Sixteen times WRN-28-10's 36 million would take 2.3 GB.
    assert models.parameters("wrn-28-10@4", shape=COLOUR, classes=10) > 500_000_000
    assert models.narrower("resnet-20", shape=COLOUR, classes=10, parameters=50_000) is not None
    assert torch.equal(torch.get_rng_state(), before)


@lru_cache
def counts(name: str, last: int = 64) -> dict[str, int]:
    """Return NAME@W -> number of parameters, for every multiple of 1/64 up to `last` / 64."""
    found = {}
    for count in range(1, last + 1):
        width = f"{count / 64:.6f}".rstrip("0").rstrip(".")
        model = unallocated(f"{name}@{width}")
        found[name if width == "1" else f"{name}@{width}"] = sum(one.numel() for one in model.parameters())
    return found


@pytest.mark.parametrize("name", sample(models.names(), ["lenet-300-100"]))
def test_the_widest_that_fits_is_that_of_brute_force(name: str) -> None:
    table = counts(name)
    some = list(table.values())
    assert all(few <= many for few, many in pairwise(some)), "which lets `narrower` bisect"
    budgets = {0, some[0] - 1, some[0], some[1], some[20], some[40] - 1, some[40], some[-1] - 1, some[-1], 10**12}
    for budget in budgets:
        fitting = [name for name, count in table.items() if count <= budget]
        found = models.narrower(name, shape=COLOUR, classes=10, parameters=budget)
        assert found == (fitting[-1] if fitting else None)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1, 3_000, 60_000, 1_000_000, 10**9])
def test_a_wide_network_may_stay_wider_than_its_plain_form(budget: int) -> None:
    fitting = [name for name, count in counts("resnet-20", 128).items() if count <= budget]
    found = models.narrower("resnet-20@2", shape=COLOUR, classes=10, parameters=budget)
    assert found == (fitting[-1] if fitting else None)


def test_a_width_between_the_steps() -> None:
    own = models.parameters("lenet-300-100@0.21", shape=GREY, classes=10)
    for budget, found in ((own, "lenet-300-100@0.21"), (own - 1, "lenet-300-100@0.203125")):  # 13/64
        assert models.narrower("lenet-300-100@0.210", shape=GREY, classes=10, parameters=budget) == found
    assert models.narrower("conv-4@0.01", shape=COLOUR, classes=10, parameters=1) is None
    assert models.narrower("timm:resnet18", shape=COLOUR, classes=10, parameters=10**9) is None
    for name, shape, reason in (
        ("nothing", COLOUR, "no network 'nothing'"),
        ("vgg-16", (1, 8, 8), "at least 16x16 pixels"),
    ):
        with pytest.raises(TaskError, match=reason):
            models.narrower(name, shape=shape, classes=10, parameters=10)
