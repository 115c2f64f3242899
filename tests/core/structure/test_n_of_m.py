"""N:M against loops over blocks, against torch's sparsifier, and against the format of its semi-structured matrices."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import MaskError, ScopeError, StructureError, UsageError


def random_mask(model: nn.Module, density: float, seed: int = 0) -> tk.Mask:
    draw = torch.Generator().manual_seed(seed)
    shapes = tk.scope(model).shapes
    return tk.Mask({name: torch.rand(shape, generator=draw) < density for name, shape in shapes.items()})


def by_loops(weight: list[float], kept: list[bool], n: int, m: int, fill: bool) -> list[bool]:
    """One output's inputs."""
    found = [False] * len(weight)
    for start in range(0, len(weight), m):
        block = range(start, min(start + m, len(weight)))
        for place in sorted(block, key=lambda i: (not kept[i], -abs(weight[i]), i))[:n]:
            found[place] = kept[place] or fill
    return found


def matrices(name: str, tensor: Tensor) -> Tensor:
    """A weight as [all else, inputs]."""
    return tensor.movedim(0 if name.startswith("up") else 1, -1).flatten(0, -2)


class Layers(nn.Module):
    """Each kind of layer, with inputs that fill no whole number of blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(10, 3)
        self.conv = nn.Conv2d(7, 4, 3)
        self.grouped = nn.Conv2d(12, 4, 1, groups=2)
        self.depth = nn.Conv2d(4, 4, 3, groups=4)
        self.up = nn.ConvTranspose1d(6, 2, 3)
        self.rnn = nn.LSTM(5, 6)


@given(
    n=st.integers(1, 4),
    more=st.integers(1, 5),
    density=st.floats(0.05, 0.95),
    seed=st.integers(0, 99),
    fill=st.booleans(),
    kind=st.sampled_from((torch.float64, torch.float32, torch.bfloat16)),
)
def test_by_loops(n: int, more: int, density: float, seed: int, fill: bool, kind: torch.dtype) -> None:
    torch.manual_seed(seed)
    model = Layers().to(kind)
    with torch.no_grad():
        model.conv.weight.copy_(torch.randint(-2, 3, model.conv.weight.shape))  # ties, and zeros of both signs
        model.conv.weight *= torch.where(torch.rand_like(model.conv.weight) < 0.5, -1, 1)
    mask = random_mask(model, density, seed)
    found = tk.structure.n_m(model, mask, n, n + more, fill=fill)
    assert found.shapes == mask.shapes
    for name, weight in tk.scope(model).parameters(model).items():
        rows = zip(
            *(matrices(name, t).tolist() for t in (weight.detach().double(), mask[name], found[name])), strict=True
        )
        for numbers, kept, stays in rows:
            assert stays == by_loops(numbers, kept, n, n + more, fill)


def test_weights_that_differ_in_the_last_bit() -> None:
    model = nn.Linear(4, 2, bias=False).double()
    up = torch.nextafter(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 0.0], [5e-324, 0.0, 0.0, 1e308]], dtype=up.dtype))
        model.weight[0, 2] = up
    found = tk.structure.n_m(model, tk.Mask.ones(tk.scope(model)), 1, 4)["weight"]
    assert found.tolist() == [[False, False, True, False], [False, False, False, True]]
    removed = tk.Mask({"weight": torch.tensor([[True, False, False, False], [False, True, False, False]])})
    found = tk.structure.n_m(model, removed, 2, 4)["weight"]  # what is kept first, whatever its size
    assert found.tolist() == [[True, False, True, False], [False, True, False, True]]


def test_the_rule_of_torch_semi_structured_matrices() -> None:
    """torch packs the two weights of four that are not 0; taken apart again the matrix is the same."""
    from torch.sparse import _semi_structured_conversions as conversions

    torch.manual_seed(0)
    model = nn.Linear(128, 64, bias=False).to(torch.float16)
    mask = tk.structure.n_m(model, random_mask(model, 0.2))
    mask.apply_(model)
    weight = model.weight.detach()
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert packed.shape == (64, 64)
    assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(packed, meta), weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with sparse tensor cores")
def test_torch_multiplies_by_it() -> None:
    torch.manual_seed(0)
    model = nn.Linear(256, 128, bias=False).to("cuda", torch.float16)
    tk.structure.n_m(model, random_mask(model, 0.2)).apply_(model)
    inputs = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    wanted = model(inputs)
    model.weight = nn.Parameter(torch.sparse.to_sparse_semi_structured(model.weight))
    assert torch.allclose(model(inputs), wanted, atol=1e-2)


def test_a_dense_layer_by_torch_sparsifier() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16))
    found = tk.structure.n_m(model, tk.Mask.ones(tk.scope(model)))["0.weight"]
    sparsifier: Any = WeightNormSparsifier(sparsity_level=1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    assert torch.equal(found, model[0].parametrizations.weight[0].mask.bool())


def test_what_has_no_inputs_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6))
    mask = random_mask(model, 0.4)
    biased = tk.Mask({**mask, "1.bias": torch.tensor([1, 0, 1, 1, 0, 0])})
    assert torch.equal(tk.structure.n_m(model, biased)["1.bias"], biased["1.bias"])
    with_table = tk.Mask({**mask, "0.weight": torch.ones(9, 8)})
    with pytest.raises(StructureError, match=r"'0.weight' is of no layer.*spare='0.weight'"):
        tk.structure.n_m(model, with_table)
    found = tk.structure.n_m(model, with_table, spare="0")
    assert found["0.weight"].all()
    assert found["1.weight"].float().mean() == 0.5
    assert tk.structure.n_m(model, mask, spare="1") == mask
    model[1] = nn.Linear(8, 9)
    model[1].weight = model[0].weight  # tied: a linear layer's too
    assert tk.structure.n_m(model, tk.Mask({"1.weight": torch.ones(9, 8)}))["1.weight"].float().mean() == 0.5


def test_bad_input() -> None:
    model = nn.Linear(8, 4)
    mask = tk.Mask.ones(tk.scope(model))
    for n, m in ((0, 4), (4, 4), (5, 4), (-1, 2)):
        with pytest.raises(UsageError, match=f"{n}:{m} is no structure"):
            tk.structure.n_m(model, mask, n, m)
    with pytest.raises(MaskError, match="does not fit"):
        tk.structure.n_m(nn.Linear(8, 5), mask)
    with pytest.raises(ScopeError, match="matches no parameter"):
        tk.structure.n_m(model, mask, spare="fc")
    with torch.no_grad():
        model.weight[1, 1] = float("nan")
    with pytest.raises(MaskError, match=r"'weight' has weights that are no finite numbers"):
        tk.structure.n_m(model, mask)


def test_of_a_computed_weight_it_is_what_the_layer_uses() -> None:
    torch.manual_seed(0)
    wrapped = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))
    with torch.no_grad():
        wrapped.parametrizations.weight.original1[:, :4] *= 0.1
    plain = nn.Linear(8, 4)
    plain.weight.data.copy_(wrapped.weight.detach())
    (name,) = tk.scope(wrapped)
    assert torch.equal(
        tk.structure.n_m(wrapped, tk.Mask.ones(tk.scope(wrapped)))[name],
        tk.structure.n_m(plain, tk.Mask.ones(tk.scope(plain)))["weight"],
    )


@pytest.mark.parametrize("spare", [[], ["0"]])
def test_a_layer_that_is_not_in_the_mask_says_nothing(spare: list[str]) -> None:
    """Of which no weight can be removed: others have their structure all the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 8))
    mask = tk.prune(model, 0.5, scope=tk.scope(model, spare=["0"]))
    assert tk.structure.n_m(model, mask, spare=spare).density <= 0.5
    regrouped = tk.structure.regroup(model, mask, rows=4)
    assert set(tk.structure.coverage(model, mask, regrouped)) == {"1.weight"}
