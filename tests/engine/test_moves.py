"""Networks that move elements, in both layouts, against torch in float64: nothing of them stays in torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, assert_exact, in_layout
from samples import sample
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.kernels.target import target

C = 12


def mixer(m: Of, x: Tensor) -> Tensor:
    """Linear layers over tokens and over channels, with a gate over tokens (gMLP)."""
    x = m.patches(x).flatten(2).transpose(1, 2)
    x = x + m.tokens(m.first(x).transpose(1, 2)).transpose(1, 2)
    u, v = F.gelu(m.wide(m.second(x))).chunk(2, -1)
    return x + m.narrow(u * m.gate(v.transpose(1, 2)).transpose(1, 2))


def make_mixer() -> Of:
    tokens = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12))
    gated = {"wide": nn.Linear(C, 2 * C), "gate": nn.Linear(12, 12), "narrow": nn.Linear(C, C)}
    norms = {"first": nn.LayerNorm(C), "second": nn.LayerNorm(C)}
    return Of(mixer, patches=nn.Conv2d(3, C, 2, 2), tokens=tokens, **gated, **norms)


class Windows(nn.Module):
    """Attention in shifted windows with padding, a bias for each head and a mask for each window (Swin)."""

    def __init__(self, fused: bool = False, cosine: bool = False, shift: int = 1) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, C, 2, 2), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.bias = nn.Parameter(torch.randn(1, 2, 6, 6))
        self.scale = nn.Parameter(torch.rand(2, 1, 1) + 1)
        self.fused, self.cosine, self.shift = fused, cosine, shift
        mask = torch.zeros(4, 1, 6, 6)
        mask[1, :, :3, 3:] = mask[2, :, 1, 2] = -100.0
        self.register_buffer("mask", mask)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 6, 3, 2, C // 2).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            made = F.scaled_dot_product_attention(q, k, v, self.bias)
        elif self.cosine:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            made = (scores * self.scale + self.bias).softmax(-1) @ v
        else:
            scores = (q * 0.4) @ k.transpose(-2, -1) + self.bias
            scores = (scores.view(-1, 4, 2, 6, 6) + self.mask).view(-1, 2, 6, 6)
            made = scores.softmax(-1) @ v
        return self.out(made.transpose(1, 2).reshape(-1, 6, C))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, _ = x.shape
        y = F.pad(torch.roll(self.norm(x), (-self.shift, -self.shift), (1, 2)), (0, 0, 0, 1, 0, 1))
        y = y.view(n, 2, 2, 2, 3, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, 6, C)
        y = self.attention(y).view(n, 2, 2, 2, 3, C).permute(0, 1, 3, 2, 4, 5).reshape(n, 4, 6, C)
        return x + torch.roll(y[:, :h, :w], (self.shift, self.shift), (1, 2))


def steps(m: Of, x: Tensor) -> Tensor:
    """Every second row and column, side by side (Swin's merging, YOLO's focus), and pixels repeated."""
    x = torch.cat([x[:, :, ::2, ::2], x[:, :, 1::2, ::2], x[:, :, ::2, 1::2], x[:, :, 1::2, 1::2]], 1)
    x = F.interpolate(m.one(x).relu(), scale_factor=2, mode="nearest")
    return m.three(m.two(x)[:, :, 1::3])


def selective(m: Of, x: Tensor) -> Tensor:
    """Two branches that a softmax over them weighs, channel by channel (SKNet)."""
    x = torch.stack([m.one(x).relu(), m.other(x).relu()], 1)
    weights = m.excite(m.squeeze(x.sum(1).mean((2, 3), keepdim=True)).relu())
    return (x * weights.view(-1, 2, C, 1, 1).softmax(1)).sum(1)


def make_steps() -> Of:
    convolutions = {"one": nn.Conv2d(12, C, 3, padding=1), "two": nn.Conv2d(C, C, 3, padding=1)}
    return Of(steps, **convolutions, three=nn.Conv2d(C, 5, 1))


def make_selective() -> Of:
    branches = {"one": nn.Conv2d(3, C, 3, padding=1), "other": nn.Conv2d(3, C, 1)}
    return Of(selective, **branches, squeeze=nn.Conv2d(C, 4, 1), excite=nn.Conv2d(4, 2 * C, 1))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "mixer": (make_mixer, (6, 8)),
    "windows": (Windows, (6, 10)),
    "windows, fused": (lambda: Windows(fused=True), (6, 10)),
    "windows, cosine": (lambda: Windows(cosine=True), (6, 10)),
    "steps": (make_steps, (8, 12)),
    "selective": (make_selective, (6, 7)),
}


@pytest.mark.parametrize("density", sample([0.3, 1.0], 1))
@pytest.mark.parametrize("name", sample(CASES, [*CASES][::2]))
def test_nothing_stays_in_torch_and_all_is_as_in_float64(name: str, density: float) -> None:
    make, size = CASES[name]
    torch.manual_seed(0)
    model = make().eval()
    mask = tk.prune(model, density=density, score="random") if density < 1 else None
    graph = capture(model, mask, torch.randn(2, 3, *size))
    if mask is not None:
        mask.apply_(model)
    for layout, threads, batches in (("planes", 1, (1, 17)), ("pixels", 2, (5,))):
        fast = Compiled(graph, threads=threads)
        assert [layer.why for layer in fast.layers() if layer.where == "torch"] == []
        assert_exact(in_layout(fast, layout), model, *(torch.randn(batch, 3, *size) for batch in batches))


def test_two_threads_and_bf16() -> None:
    torch.manual_seed(0)
    model = Windows().eval()
    x = torch.randn(3, 3, 6, 10)
    graph = capture(model, None, x)
    assert_exact(Compiled(graph, threads=2), model, x[:1], x)
    with torch.no_grad():
        wanted = model(x)
    if target().bf16:
        made = Compiled(graph, threads=1, precision="bf16")(x)
        assert float((made - wanted).abs().max()) < 0.03 * float(wanted.abs().max())


def test_what_only_torch_reads_is_left_to_its_views() -> None:
    def turned(m: Of, x: Tensor) -> Tensor:
        return m.layer(x).reshape(x.shape[0], 2, 2, -1).roll(1, 3).transpose(2, 3).cumsum(1)

    model = Of(turned, layer=nn.Conv2d(3, 4, 1)).eval()
    x = torch.randn(2, 3, 4, 4)
    fast = Compiled(capture(model, None, x), threads=1)
    where = {layer.kind: layer.where for layer in fast.layers()}
    assert (where["conv2d"], where["concat"], where["transpose"]) == ("engine", "torch", "torch")
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))


OF_TWO: dict[str, Callable[[Tensor], Tensor]] = {
    "every second row": lambda x: x[:, :, ::2],
    "every third column, from the second": lambda x: x[..., 1::3],
    "squares of pixels": lambda x: F.interpolate(x, scale_factor=2),
    "rows of pixels": lambda x: F.interpolate(x, scale_factor=(1, 3)),
    "gates of branches": lambda x: x.view(2, 2, 2, 6, 6) * x.mean((2, 3)).sigmoid().view(2, 2, 2, 1, 1),
}


@pytest.mark.parametrize("name", [*OF_TWO, "attention"])
def test_a_model_of_two_examples_moves_them_as_torch_does(name: str) -> None:
    """Attention's transposes put the batch elsewhere: of a number of examples that is fixed they stay in torch."""

    def function(m: Of, x: Tensor) -> Tensor:
        if name == "attention":
            return m.attention(*3 * [m.layer(x).view(2, 12, 12)])[0]
        return OF_TWO[name](m.layer(x).view(2, 4, 6, 6))

    torch.manual_seed(0)
    layers = {"layer": nn.Conv2d(4, 4, 1), "attention": nn.MultiheadAttention(12, 4, batch_first=True)}
    model, x = Of(function, **layers).eval(), torch.randn(2, 4, 6, 6)
    assert_exact(tk.compile(model, None, x), model, x)
