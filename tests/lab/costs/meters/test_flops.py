"""FLOPs of training steps against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.errors import MaskError
from ticketry.lab.costs.meters import step_flops
from ticketry.tasks.models.image_models import LeNet300100

BATCH = 6


def counted(model: nn.Module, inputs: Tensor, mask: Mask | None = None) -> tuple[int, float]:
    found = step_flops(model, lambda: model(inputs).square().mean(), mask)
    return found.dense, found.sparse


def densities(mask: Mask) -> list[float]:
    return [row.kept / row.total for row in mask.table()]


def by_layer(forward: list[int], shares: list[float]) -> float:
    """Forward, the weight's gradient, and the input's but for the first layer, each in proportion to what is kept."""
    return sum(
        (2 if not index else 3) * flops * share
        for index, (flops, share) in enumerate(zip(forward, shares, strict=True))
    )


def test_lenet() -> None:
    model = LeNet300100((1, 28, 28), 10, scale=lambda units: units)
    forward = [2 * BATCH * size for size in (784 * 300, 300 * 100, 100 * 10)]
    mask = prune(model, 0.05)
    dense, sparse = counted(model, torch.randn(BATCH, 1, 28, 28), mask)
    assert dense == by_layer(forward, [1, 1, 1])
    assert sparse == pytest.approx(by_layer(forward, densities(mask)))


class Net(nn.Module):
    """Stride, groups, padding, norms and a shortcut on 3 x 12 x 12."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.short = nn.Conv2d(8, 8, 1, stride=2)
        self.out = nn.Linear(8 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        out: Tensor = self.out((self.grouped(x) + self.short(x)).flatten(1))
        return out


@pytest.mark.parametrize(("channels_last", "bf16"), [(False, False), (True, True)])
def test_a_convolutional_network(channels_last: bool, bf16: bool) -> None:
    """Autocast makes copies of the weights; they count as the weights do."""
    model, inputs = Net(), torch.randn(BATCH, 3, 12, 12)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    forward = [2 * BATCH * size for size in (144 * 3 * 8 * 9, 36 * 8 * 2 * 9, 36 * 8 * 8, 288 * 5)]
    mask = prune(model, 0.25, score="random", distribution="uniform")

    def loss() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return model(inputs).float().square().mean()

    found = step_flops(model, loss, mask)
    assert found.dense == by_layer(forward, [1] * 4)
    assert found.sparse == pytest.approx(by_layer(forward, densities(mask)))
    part = step_flops(model, loss, Mask({"out.weight": mask["out.weight"]}))
    assert part.sparse == pytest.approx(by_layer(forward, [1, 1, 1, densities(mask)[3]]))


def test_shared_frozen_and_unmasked_weights() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.frozen = nn.Linear(10, 10), nn.Linear(10, 10)
            self.frozen.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.frozen(self.both(torch.relu(self.both(x))))
            return out

    model, one = Twice(), 2 * BATCH * 100
    mask = prune(model, 0.5, score="random", distribution="uniform")
    dense, sparse = counted(model, torch.randn(BATCH, 10), mask)
    # twice forward, twice the weight's gradient, once the input's; frozen: forward and the input's
    assert dense == 5 * one + 2 * one
    assert sparse == pytest.approx(0.5 * dense)
    assert counted(model, torch.randn(BATCH, 10)) == (dense, dense)
    with pytest.raises(MaskError):
        counted(model, torch.randn(BATCH, 10), Mask({"other": torch.ones(3, dtype=torch.bool)}))


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize(("kind", "fused"), [(nn.LSTM, True), (nn.GRU, False)])
def test_recurrent_layers(kind: type[nn.RNNBase], fused: bool) -> None:
    """As one operation or as products: a product with each matrix at every step, twice as many backward."""
    model, time = kind(6, 5, num_layers=2), 7
    inputs = torch.randn(time, BATCH, 6, requires_grad=True)
    matrices = {name: p for name, p in model.named_parameters() if p.dim() == 2}
    mask = Mask({name: torch.arange(p.numel()).view(p.shape) % 4 == 0 for name, p in matrices.items()})
    with torch.backends.mkldnn.flags(enabled=fused):
        found = step_flops(model, lambda: model(inputs)[0].square().sum(), mask)
        alone = step_flops(model, lambda: model(inputs)[0].square().sum(), Mask({"weight_hh_l1": mask["weight_hh_l1"]}))
    # where they are products, the gradient of the first state, which nobody asks for, is not computed
    first = 0 if fused and kind is nn.LSTM else 1
    work = {n: 2 * BATCH * p.numel() * (3 * time - first * ("hh" in n)) for n, p in matrices.items()}
    kept = {name: float(mask[name].double().mean()) for name in matrices}
    assert found.dense == sum(work.values())
    assert found.sparse == pytest.approx(sum(kept[name] * work[name] for name in work))
    assert alone.sparse == pytest.approx(found.dense - (1 - kept["weight_hh_l1"]) * work["weight_hh_l1"])


def test_weights_that_lie_in_one_piece_of_memory() -> None:
    """As a GPU keeps those of a recurrent layer."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    flat = torch.randn(32)
    for number, layer in enumerate(model):
        layer.weight = nn.Parameter(flat[16 * number : 16 * number + 16].view(4, 4))
    model[0].weight, model[1].weight = (nn.Parameter(flat[i : i + 16].view(4, 4)) for i in (0, 16))
    assert model[0].weight.untyped_storage().data_ptr() == model[1].weight.untyped_storage().data_ptr()
    mask = Mask({"1.weight": torch.zeros(4, 4, dtype=torch.bool)})
    dense, sparse = counted(model, torch.randn(BATCH, 4), mask)
    assert sparse == pytest.approx(dense - 3 * 2 * BATCH * 16)


def test_a_transposed_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2))
    forward = [2 * BATCH * size for size in (25 * 2 * 4, 25 * 4 * 3 * 9)]
    mask = prune(model, 0.5, score="random", distribution="uniform")
    dense, sparse = counted(model, torch.randn(BATCH, 2, 5, 5), mask)
    assert dense == by_layer(forward, [1, 1])
    assert sparse == pytest.approx(by_layer(forward, densities(mask)))
