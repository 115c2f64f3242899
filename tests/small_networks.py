"""Small networks with what couples channels: one idea each. Inputs come with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dense(nn.Module):
    """Every layer reads the concatenation of all before it (DenseNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 3, padding=1, bias=False)) for c in (6, 10, 14)
        )
        self.norm = nn.BatchNorm2d(18)
        self.fc = nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.fc(F.relu(self.norm(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, 4, 1)
        self.up = nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions with squeeze and excite, a depthwise one with a multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(True))
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.squeeze = SqueezeExcite(8)
        self.point = nn.Sequential(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.SiLU())
        self.twofold = nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, groups=12), nn.ReLU(), nn.Dropout2d(0.0))
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.twofold(self.point(self.squeeze(self.depth(self.stem(x))))).mean((2, 3)))


class Grouped(nn.Module):
    """A convolution in few wide or many narrow groups."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.g = nn.Conv2d(16, 24, 3, padding=1, groups=groups)
        self.n = nn.BatchNorm2d(24)
        self.b = nn.Conv2d(24, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.n(self.g(F.relu(self.a(x))))))).mean((2, 3)))


class Shuffle(nn.Module):
    """Halves by chunk, one of them changed, joined and shuffled (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 12, 1, groups=2)
        self.c = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x))))
        batch, channels, height, width = x.shape
        first, second = x.chunk(2, 1)
        x = torch.cat([first, F.relu(self.c(second))], 1)
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.fc(x.mean((2, 3)))


class Encoder(nn.Module):
    """A transformer encoder: the hidden width of its MLPs is free, that of the stream and of the heads is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.place = nn.Parameter(torch.randn(1, 6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(tokens) + self.place[:, : tokens.shape[1]]))


class Attention(nn.Module):
    """Attention written by hand. The width of a head is free if the code does not say it, nor scales by it."""

    def __init__(self, *, written_out: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)
        self.width = 4 if written_out else -1

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 2, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return self.head(self.norm(x + self.out(y.transpose(1, 2).reshape(batch, length, -1))).mean(1))


class Heads(nn.Module):
    """Attention whose code says the width of a head and not their number; keys and values may have fewer heads."""

    def __init__(self, *, keys: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 4 * keys), nn.Linear(12, 4 * keys)
        self.out, self.norm, self.head = nn.Linear(12, 12), nn.LayerNorm(12), nn.Linear(12, 3)
        self.mlp = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, length, _ = x.shape
        q, k, v = (layer(x).view(batch, length, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] < q.shape[1])
        x = self.norm(x + self.out(y.transpose(1, 2).reshape(batch, length, -1)))
        return self.head((x + self.mlp(x)).mean(1))


class Language(nn.Module):
    """A recurrent language model with an MLP behind it; its decoder may share the embedding's matrix."""

    def __init__(self, kind: type[nn.RNNBase], *, tied: bool = False, **options: object) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.rnn = kind(8, 10, 2, batch_first=True, **options)
        hidden = int(options.get("proj_size", 10)) * (2 if options.get("bidirectional") else 1)
        self.mlp = nn.Linear(hidden, 8)
        self.decode = nn.Linear(8, 11)
        if tied:
            self.decode.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decode(F.relu(self.mlp(self.rnn(self.embed(tokens))[0])))


class UNet(nn.Module):
    """Down, up by a transposed convolution, joined; pixel shuffle, resizing, padding, cropping."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.c = nn.Conv2d(12, 6, 3, padding=1)
        self.r = nn.Conv2d(6, 16, 1)
        self.out = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.a(x))
        y = self.c(torch.cat([self.up(F.elu(self.b(a))), a], 1))
        z = F.pixel_shuffle(F.relu(self.r(y)), 2)
        z = F.max_pool2d(F.interpolate(z, scale_factor=2, mode="bilinear"), 4)
        return self.out(torch.cat([F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1], z], 1))


class Norms(nn.Module):
    """Group norm, instance norm and a rectifier with a slope for each channel."""

    def __init__(self, *, affine: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.group = nn.GroupNorm(6, 12, affine=affine)
        self.b = nn.Conv2d(12, 6, 1)
        self.instance = nn.InstanceNorm2d(6, affine=affine, track_running_stats=affine)
        self.slope = nn.PReLU(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.slope(self.instance(self.b(F.relu(self.group(self.a(x)))))).square().mean((2, 3)))


class Mlp(nn.Module):
    """Batch norm of features, activations that are not 0 at 0, a gated linear unit."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)),
            *(nn.Sigmoid(), nn.Linear(8, 12), nn.GLU(), nn.Linear(6, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class PaddedShortcut(nn.Module):
    """A shortcut padded with zeros in its channels (option A of He et al.): the wider layer's added ones stay."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(self.b(x) + F.pad(x, (0, 0, 0, 0, 2, 2)))
        return self.fc(F.relu(self.c(x)).mean((2, 3)))


class Twice(nn.Module):
    """One layer used twice, a transposed convolution by depth, a scale for each channel, a flattening of 1d."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv1d(3, 6, 3, padding=1)
        self.same = nn.Conv1d(6, 6, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(6, 1))
        self.depth = nn.ConvTranspose1d(6, 6, 2, groups=6)
        self.fc = nn.Linear(6 * 9, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = x + self.scale * F.relu(self.same(x))
        x = self.depth(F.relu(self.same(x)))
        return self.out(torch.softmax(self.fc(x.flatten(1)), 0))


class Chain(nn.Module):
    """Two convolutions, a norm, two linear layers: four pixels of each channel of `b` are inputs of `c`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.b, self.c, self.d = nn.Conv2d(4, 6, 3), nn.Linear(24, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.n(self.a(x)))))
        return self.d(torch.tanh(self.c(x.flatten(1))))


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def tokens() -> Tensor:
    return torch.randint(11, (3, 5), generator=torch.Generator().manual_seed(7))


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]

NETWORKS: dict[str, Case] = {
    "dense": (Dense, images),
    "separable": (Separable, images),
    "grouped-2": (lambda: Grouped(2), images),
    "grouped-8": (lambda: Grouped(8), images),
    "shuffle": (Shuffle, images),
    "encoder": (Encoder, tokens),
    "attention": (lambda: Attention(written_out=False), lambda: vectors(3, 4, 5)),
    "heads": (Heads, lambda: vectors(3, 4, 5)),
    "shared-keys": (lambda: Heads(keys=1), lambda: vectors(3, 4, 5)),
    "lstm": (lambda: Language(nn.LSTM), tokens),
    "lstm-tied": (lambda: Language(nn.LSTM, tied=True), tokens),
    "lstm-projected": (lambda: Language(nn.LSTM, proj_size=4), tokens),
    "gru-both-ways": (lambda: Language(nn.GRU, bidirectional=True), tokens),
    "rnn": (lambda: Language(nn.RNN), tokens),
    "u-net": (UNet, images),
    "norms": (lambda: Norms(affine=True), images),
    "norms-plain": (lambda: Norms(affine=False), images),
    "mlp": (Mlp, lambda: vectors(6, 5)),
    "padded": (PaddedShortcut, images),
    "twice": (Twice, lambda: vectors(4, 3, 8)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in float64 with norms that have seen data and parameters that are nowhere 0, and inputs for it."""
    torch.manual_seed(seed)
    make, inputs = NETWORKS[name]
    return settled(make().double()), inputs()


def settled(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return model
