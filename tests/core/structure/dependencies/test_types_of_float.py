"""Models whose code names a type of float, or leaves it to torch, are followed in another: the copy's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import ticketry as tk
from halving import check, example, groups_of, without
from ticketry.errors import UsageError


class Tagger(nn.Module):
    """The first state of a recurrent layer as every tutorial makes it: of torch's default type."""

    def __init__(self) -> None:
        super().__init__()
        self.r, self.o = nn.LSTM(8, 10, 2, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(2, len(x), self.r.hidden_size)
        return self.o(self.r(x, (state, state.clone()))[0][:, -1])


def test_a_default_type() -> None:
    torch.manual_seed(0)
    model, x = Tagger(), torch.randn(4, 5, 8)
    mask = tk.structure.channels(model, x, density=0.5)
    small = tk.shrink(model, mask, x)
    y = torch.randn(3, 7, 8)
    torch.testing.assert_close(small(y), mask.apply_(model)(y))
    assert torch.get_default_dtype() == torch.float32


class Halves(nn.Module):
    """Weights in half precision, inputs cast, scores in single precision by name."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.q, self.k, self.o = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 3)
        self.to(dtype)
        self.n, self.dtype = nn.LayerNorm(16), dtype

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.to(self.dtype)).relu()
        scores = (self.q(x) @ self.k(x).transpose(-1, -2)).float().softmax(-1, dtype=torch.float32).to(self.dtype)
        return self.o(self.n((scores @ x).float()).to(self.dtype)).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types_that_the_code_names(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Halves(dtype), torch.randn(2, 5, 6)
    groups = {group.name: group for group in tk.structure.channel_groups(model, x)}
    assert groups["q"].prunable
    assert not groups["a"].prunable, "a layer norm keeps its width"
    mask = tk.structure.channels(model, x, density=0.8)
    small, masked = tk.shrink(model, mask, x), mask.apply_(model)
    assert small.q.out_features < 8
    torch.testing.assert_close(small(x), masked(x), atol=0.02, rtol=0.02)
    assert small(x).dtype == torch.float64


@pytest.mark.parametrize(("kind", "both"), [(nn.LSTM, True), (nn.GRU, False)])
def test_packed_sequences(kind: type[nn.LSTM | nn.GRU], both: bool) -> None:
    """How long sequences are is no activation."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.r = nn.Linear(5, 12), kind(12, 10, 2, batch_first=True, bidirectional=both)
            self.o = nn.Linear(20 if both else 10, 3)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = pack_padded_sequence(self.i(x), lengths, batch_first=True, enforce_sorted=False)
            return self.o(pad_packed_sequence(self.r(packed)[0], batch_first=True)[0])

    torch.manual_seed(0)
    model, x = Packed(), (example(3, 6, 5), torch.tensor([6, 4, 3]))
    groups = groups_of(model, x)
    assert groups["i"].prunable
    assert groups["r"].prunable
    small = check(model, x, without(model, groups.values()))
    assert (small.i.out_features, small.r.hidden_size) == (6, 5)


def test_torchscript_is_told() -> None:
    with pytest.raises(UsageError, match="is a TorchScript module, whose layers cannot be seen"):
        tk.structure.channels(torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.ReLU())), torch.randn(2, 4), 0.5)
