from __future__ import annotations

import pytest
import torch
from torch import nn

from ticketry.core.scope import Scope, name_without_wrappers, named_parameters, scope
from ticketry.errors import ScopeError

RESNET = {
    "conv.weight": (6, 3, 3, 3),
    "blocks.0.conv1.weight": (6, 6, 3, 3),
    "blocks.0.conv2.weight": (6, 6, 3, 3),
    "blocks.1.conv1.weight": (8, 6, 3, 3),
    "blocks.1.conv2.weight": (8, 8, 3, 3),
    "blocks.1.downsample.weight": (8, 6, 1, 1),
    "fc.weight": (5, 8),
}
TRANSFORMER = {
    "block.self_attn.in_proj_weight": (24, 8),
    "block.self_attn.out_proj.weight": (8, 8),
    "block.linear1.weight": (16, 8),
    "block.linear2.weight": (8, 16),
    "head.weight": (11, 8),
}
LSTM = {  # the tied matrix has the name of its first holder
    "encoder.weight": (11, 8),
    "lstm.weight_ih_l0": (32, 8),
    "lstm.weight_hh_l0": (32, 8),
    "lstm.weight_ih_l1": (32, 8),
    "lstm.weight_hh_l1": (32, 8),
}


@pytest.mark.parametrize(("name", "expected"), [("resnet", RESNET), ("transformer", TRANSFORMER), ("lstm", LSTM)])
def test_the_default_scope_is_the_weights_of_layers(build, name, expected):
    model = build(name).model
    found = scope(model)
    assert dict(found.shapes) == expected
    assert found.names == tuple(expected)
    assert found.total == sum(torch.Size(shape).numel() for shape in expected.values())
    assert found.parameters_total == sum(parameter.numel() for parameter in model.parameters())


def test_tied_weights_count_once(build):
    model = build("lstm").model
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert {"encoder.weight", "decoder.weight"} < set(names)
    found = scope(model, embeddings=True, biases=True)
    assert "decoder.weight" not in found
    assert found.total == found.parameters_total == sum(p.numel() for p in model.parameters())


def test_biases_and_norms_by_choice(build):
    model = build("resnet").model
    assert set(scope(model, biases=True)) - set(RESNET) == {"fc.bias"}
    norms = set(scope(model, norms=True)) - set(RESNET)
    assert norms == {
        f"{layer}.{kind}"
        for layer in ("bn", "blocks.0.bn1", "blocks.0.bn2", "blocks.1.bn1", "blocks.1.bn2")
        for kind in ("weight", "bias")
    }
    everything = scope(model, biases=True, norms=True)
    assert everything.total == everything.parameters_total


def test_first_convolution_and_output_layer_by_choice(build):
    resnet = build("resnet").model
    assert set(RESNET) - set(scope(resnet, first_conv=False)) == {"conv.weight"}
    assert set(RESNET) - set(scope(resnet, output=False)) == {"fc.weight"}
    transformer = build("transformer").model
    assert set(TRANSFORMER) - set(scope(transformer, output=False)) == {"head.weight"}
    assert set(scope(transformer, first_conv=False)) == set(TRANSFORMER)  # there is none to leave out
    assert set(LSTM) - set(scope(build("lstm").model, output=False)) == {"encoder.weight"}


@pytest.mark.parametrize(
    ("spare", "gone"),
    [
        (("fc",), {"fc.weight"}),
        (("fc.weight",), {"fc.weight"}),
        (("blocks.1.",), {name for name in RESNET if name.startswith("blocks.1.")}),
        (("*.downsample.*",), {"blocks.1.downsample.weight"}),
        (("*.downsample",), {"blocks.1.downsample.weight"}),
        (("conv*", "*.conv1.*"), {"conv.weight", "blocks.0.conv1.weight", "blocks.1.conv1.weight"}),
    ],
)
def test_spare_takes_names_modules_and_patterns(build, spare, gone):
    assert set(RESNET) - set(scope(build("resnet").model, spare=spare)) == gone


def test_a_tied_weight_is_spared_by_any_of_its_names(build):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.hidden, self.decoder = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 20)
            self.decoder.weight = self.encoder.weight

    for spare in ("decoder", "decoder.weight", "dec*", "encoder"):
        assert scope(Tied(), spare=[spare]).names == ("hidden.weight",)
    assert scope(Tied(), spare=["hidden"], include=["decoder"]).names == ("encoder.weight", "decoder.bias")


def test_a_layer_that_has_no_shape_yet_is_told():
    with pytest.raises(ScopeError, match=r"'1.weight' of Sequential has no shape yet \(a lazy layer\)"):
        scope(nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(2)))


def test_include_takes_in_whatever_it_names_except_what_is_spared(build):
    model = build("resnet").model
    assert set(scope(model, include=("bn.weight", "fc.bias"))) - set(RESNET) == {"bn.weight", "fc.bias"}
    assert "fc.weight" not in scope(model, include=("fc",), spare=("fc.weight",))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))
        self.shift = nn.Parameter(torch.randn(4))


def test_own_layers_are_in_scope_by_type():
    model = nn.Sequential(Scaled(), nn.Linear(4, 2))
    assert set(scope(model)) == {"1.weight"}
    assert set(scope(model, types=(Scaled,))) == {"0.matrix", "1.weight"}


def test_a_scope_without_parameters_is_refused():
    with pytest.raises(ScopeError, match=r"no parameter of BatchNorm1d.*include="):
        scope(nn.BatchNorm1d(3))


@pytest.mark.parametrize("argument", ["spare", "include"])
def test_a_pattern_that_matches_nothing_is_refused(build, argument):
    with pytest.raises(ScopeError, match=rf"{argument}='fd\*' matches no parameter"):
        scope(build("resnet").model, **{argument: ("fd*",)})


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("fc.weight", "fc.weight"),
        ("module.fc.weight", "fc.weight"),
        ("_orig_mod.fc.weight", "fc.weight"),
        ("module._orig_mod.fc.weight", "fc.weight"),
        ("_orig_mod.module.fc.weight", "fc.weight"),
        ("blocks.0._orig_mod.fc.weight", "blocks.0.fc.weight"),
        ("_fsdp_wrapped_module.fc._fsdp_wrapped_module.weight", "fc.weight"),
        ("blocks.module.weight", "blocks.module.weight"),
        ("module", "module"),
    ],
)
def test_names_are_normalised(raw, normal):
    assert name_without_wrappers(raw) == normal
    assert name_without_wrappers(normal) == normal


@pytest.mark.parametrize("name", ["resnet", "lstm"])
@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, lambda model: torch.compile(nn.DataParallel(model))], ids=["parallel", "both"]
)
def test_wrappers_do_not_change_the_scope(build, name, wrap):
    model = build(name).model
    plain, wrapped = scope(model), scope(wrap(model))
    assert plain == wrapped
    for short, parameter in plain.parameters(wrap(model)).items():
        assert parameter is plain.parameters(model)[short]


def test_parameters_are_found_under_any_name_of_a_tied_one(build):
    model = build("lstm").model
    other = Scope({"decoder.weight": (11, 8)}, 1)
    assert other.parameters(model)["decoder.weight"] is model.encoder.weight


def test_a_scope_of_another_model_is_refused(build):
    with pytest.raises(ScopeError, match=r"LanguageModel has no parameter 'conv\.weight'"):
        scope(build("resnet").model).parameters(build("lstm").model)
    with pytest.raises(ScopeError, match=r"'weight' has the shape \(3, 2\) in Linear, not \(5, 2\)"):
        scope(nn.Linear(2, 5)).parameters(nn.Linear(2, 3))


def test_two_parameters_of_one_normal_name_are_refused():
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(ScopeError, match="two parameters of Clash are called 'weight'"):
        named_parameters(Clash())
