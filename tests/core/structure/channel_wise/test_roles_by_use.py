"""Which parameters make channels is decided by what the model does with them: `channels` and `channel_groups` agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from ticketry.errors import StructureError


class Scaled(nn.Module):
    """A convolution whose channels meet a bare parameter, as factor or term."""

    def __init__(self, shape: tuple[int, ...], *, add: bool = False) -> None:
        super().__init__()
        self.conv, self.out, self.add = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1), add
        self.scale = nn.Parameter(torch.rand(shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        scale = self.scale.reshape(-1, 1, 1) if self.scale.dim() == 1 else self.scale
        return self.out(y + scale if self.add else y * scale)


class Affine(nn.Module):
    """An affine layer of the user's own, as ResMLP has it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(1, channels, 1, 1) + 0.5)
        self.bias = nn.Parameter(torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight + self.bias


class Placed(nn.Module):
    """A linear layer with position embeddings and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 16), nn.Linear(16, 3)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1)
        return self.out((y + self.places).relu())


class State(nn.Module):
    """A diagonal state space: each channel has a row of the state matrix, of which only exp(-exp(A)) is used."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(5, 16), nn.Linear(16, 3)
        self.read = nn.Parameter(torch.randn(4))
        self.a_log, self.skip = nn.Parameter(torch.rand(16, 4)), nn.Parameter(torch.ones(1, 16))

    def forward(self, x: Tensor) -> Tensor:
        u = self.inner(x)
        state, found = u[:, 0, :, None] * torch.zeros(4), []
        for step in range(x.shape[1]):
            state = state * torch.exp(-self.a_log.exp()) + u[:, step, :, None]
            found.append((state * self.read).sum(-1) + self.skip * u[:, step])
        return self.out(torch.stack(found, 1))


class Residual(nn.Module):
    """A residual stream with a layer scale."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.middle, self.out = nn.Linear(5, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.gamma = nn.Parameter(torch.full(shape, 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.out(y + self.gamma * self.middle(y))


def transposed(inputs: int, outputs: int, groups: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, inputs, 3), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 2, groups=groups), nn.ReLU()),
        nn.Conv2d(outputs, 4, 1),
    )


def grouped(groups: int) -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 2, groups=groups), nn.ReLU(), nn.Conv2d(8, 4, 1))
    return nn.Sequential(*layers)


IMAGES, ROWS = torch.randn(2, 3, 8, 8), torch.randn(2, 7, 5)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "scale [16]": (lambda: Scaled((16,)), IMAGES),
    "scale [16, 1, 1]": (lambda: Scaled((16, 1, 1)), IMAGES),
    "scale [1, 16, 1, 1]": (lambda: Scaled((1, 16, 1, 1)), IMAGES),
    "map of factors": (lambda: Scaled((16, 6, 6)), IMAGES),
    "map of terms": (lambda: Scaled((16, 6, 6), add=True), IMAGES),
    "affine layer": (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), Affine(16), nn.ReLU(), nn.Conv2d(16, 4, 1)), IMAGES),
    "places": (Placed, ROWS),
    "state matrix": (State, ROWS),
    "layer scale [16]": (lambda: Residual((16,)), ROWS),
    "layer scale [1, 1, 16]": (lambda: Residual((1, 1, 16)), ROWS),
    "transposed, 2 groups": (lambda: transposed(8, 8, 2), IMAGES),
    "transposed, 4 groups": (lambda: transposed(8, 16, 4), IMAGES),
    "transposed, depthwise": (lambda: transposed(8, 8, 8), IMAGES),
    "transposed, depthwise, several": (lambda: transposed(8, 16, 8), IMAGES),
    "2 groups": (lambda: grouped(2), IMAGES),
}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.parametrize("name", sample(MODELS, [*MODELS][::2]))
def test_channels_go_and_the_outputs_stay(name: str) -> None:
    make, x = MODELS[name]
    model = built(make)
    groups = tk.structure.channel_groups(model, x)
    mask = tk.structure.channels(model, x, density=0.5, distribution="uniform")
    assert mask.density == pytest.approx(0.5, abs=0.12)
    small = tk.shrink(model, mask, x)
    torch.testing.assert_close(small(x), mask.apply_(copy.deepcopy(model))(x), atol=1e-5, rtol=1e-5)
    gone = {name for name, kept in mask.items() if not kept.all()}
    prunable = {member.name for group in groups if group.prunable for member in group.parameters}
    assert gone == prunable
    assert all(group.reason for group in groups if not group.prunable)


@pytest.mark.parametrize("shape", [(16, 1, 1), (1, 16, 1, 1)])
def test_how_a_scale_is_written_changes_nothing(shape: tuple[int, ...]) -> None:
    counts = []
    for each in ((16,), shape):
        model = built(lambda each=each: Scaled(each))
        counts.append(int(tk.structure.channels(model, IMAGES, density=0.5)["conv.weight"].flatten(1).any(1).sum()))
    assert counts[0] == counts[1]


class Bare(nn.Module):
    """A product with a bare parameter [inputs, outputs], which no default scope has."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.out, self.how = nn.Linear(5, 16), nn.Linear(8, 3), how
        self.w = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x).relu()
        products: dict[str, Callable[[], Tensor]] = {
            "matmul": lambda: y @ self.w,
            "einsum": lambda: torch.einsum("bti,io->bto", y, self.w),
            "linear": lambda: F.linear(y, self.w.t()),
            "doubled": lambda: y @ (2.0 * self.w),
        }
        return self.out(products[self.how]().relu())


@pytest.mark.parametrize("how", ["matmul", "einsum", "linear"])
def test_a_bare_weight_makes_channels(how: str) -> None:
    model = built(lambda: Bare(how))
    made = next(group for group in tk.structure.channel_groups(model, ROWS) if group.size == 8)
    assert "made by w: to remove it, give scope=tk.scope(model, include=['w'])" in made.reason
    assert tk.structure.channels(model, ROWS, density=0.7)["out.weight"].all()
    scope = tk.scope(model, include=["w"])
    assert {group.size: group.prunable for group in tk.structure.channel_groups(model, ROWS, scope=scope)}[8]
    mask = tk.structure.channels(model, ROWS, density=0.5, distribution="uniform", scope=scope)
    assert not mask["out.weight"].any(0).all()
    small = tk.shrink(model, mask, ROWS)
    torch.testing.assert_close(small(ROWS), mask.apply_(copy.deepcopy(model))(ROWS), atol=1e-5, rtol=1e-5)


def test_what_is_computed_from_a_bare_weight_is_no_scale() -> None:
    model = built(lambda: Bare("doubled"))
    made = next(group for group in tk.structure.channel_groups(model, ROWS) if group.size == 8)
    assert "made by w" in made.reason


def test_an_embedding_out_of_scope_is_named_in_both_answers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.places, self.out = nn.Linear(5, 16), nn.Embedding(7, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out((self.inner(x) + self.places(torch.arange(x.shape[1]))).relu())

    model = built(Net)
    stays = next(group for group in tk.structure.channel_groups(model, ROWS) if group.size == 16)
    assert "made by places.weight" in stays.reason
    with pytest.raises(StructureError, match=r"made by places\.weight") as caught:
        tk.structure.channels(model, ROWS, density=0.5)
    assert stays.reason in str(caught.value)
    scope = tk.scope(model, include=["places.weight"])
    mask = tk.structure.channels(model, ROWS, density=0.5, scope=scope)
    assert not mask["places.weight"].all()
