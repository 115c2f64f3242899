"""`tk.sparse_training` in a user's loop: the same training as of the masked model, in the model's own parameters."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from ticketry.errors import CaptureError, EngineError, MaskError
from ticketry.tasks.models.image_models import VGG, Block, LeNet5, LeNet300100, ResNet
from ticketry.tasks.models.language import GPT
from ticketry_engine.training.sparse_training import SparseTraining


def same_width(width: int) -> int:
    return width


def resnet(width: int = 16, stages: int = 3) -> nn.Module:
    return ResNet((3, 16, 16), 10, repeats=(1,) * stages, width=width, scale=same_width, block=Block)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "resnet": (resnet, (3, 16, 16)),
    "vgg": (lambda: VGG((3, 32, 32), 10, depth=11, scale=lambda width: width // 8), (3, 32, 32)),
    "lenet-5": (lambda: LeNet5((1, 28, 28), 10, scale=same_width), (1, 28, 28)),
    "lenet-300-100": (lambda: LeNet300100((1, 28, 28), 10, scale=same_width), (1, 28, 28)),
}


def data(shape: tuple[int, int, int], images: int = 32) -> tuple[Tensor, Tensor]:
    """Images of ten classes that can be told apart."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 10, (images,), generator=generator)
    means = torch.randn(10, *shape, generator=generator)
    return means[labels] + torch.randn(images, *shape, generator=generator), labels


def losses(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float = 0.01) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=1e-3)
    found = []
    for step in range(steps):
        mine = slice(step % 2 * (len(x) // 2), None)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[mine]), y[mine])
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("name", sample(MODELS, ["resnet"]))
def test_a_training_is_that_of_the_masked_model(name: str) -> None:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    model = build().train()
    twin = copy.deepcopy(model)
    mask = tk.prune(model, density=0.2)
    x, y = data(shape)
    fast = tk.sparse_training(model, mask, x)
    found = losses(fast, x, y, 20)
    with tk.hold(twin, mask):
        expected = losses(twin, x, y, 20)
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 2e-3
    assert found[-1] < 0.7 * found[0]
    for parameter, kept in zip(mask.parameters(model).values(), mask.values(), strict=True):
        assert not parameter[~kept].any()
    assert torch.equal(fast.eval()(x), model(x))
    assert {layer.where for layer in fast.layers()} == {"engine"} or "faster dense" in repr(fast)


def gradients_agree(model: nn.Module, twin: nn.Module, mask: tk.Mask) -> None:
    """Those of a model against those of its twin in torch, which was not held. What should be 0 is noise in both."""
    largest = max(float(parameter.grad.abs().max()) for parameter in twin.parameters() if parameter.grad is not None)
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if theirs.grad is None:
            assert mine.grad is None, name
            continue
        expected = theirs.grad * mask[name] if name in mask else theirs.grad
        noise = 1e-4 * float(expected.abs().max()) + 1e-7 * largest
        assert torch.allclose(mine.grad, expected, rtol=1e-3, atol=noise), name


def test_small_linear_layers_alone_run_in_torch() -> None:
    wide, narrow = LeNet300100((1, 28, 28), 10, scale=same_width), LeNet300100((1, 28, 28), 10, scale=lambda n: n // 3)
    why = "small linear layers without a convolution: faster dense"
    for model, found in ((wide, ("engine", "")), (narrow, ("torch", why))):
        mask = tk.prune(model.train(), density=0.1, distribution="layerwise")
        fast = tk.sparse_training(model, mask, data((1, 28, 28))[0])
        assert {(layer.where, layer.why) for layer in fast.layers()} == {found}
    assert repr(fast).endswith("Nothing runs in kernels.")


def test_large_linear_layers_and_gradients_that_are_kept() -> None:
    """Gradients of large layers lie in memory that is used again, unless somebody has them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 1100), nn.ReLU(), nn.Linear(1100, 1000)).train()
    mask = tk.prune(model, density=0.1, distribution="layerwise")
    fast = tk.sparse_training(model, mask, torch.randn(4, 40))
    assert {layer.where for layer in fast.layers()} == {"engine"}
    weight, kept = model[2].weight, mask["2.weight"]
    twin = copy.deepcopy(model).double()

    def step() -> Tensor:
        """The gradient that a step adds."""
        x = torch.randn(20, 40)
        twin.zero_grad()
        twin(x.double()).square().sum().backward()
        fast(x).square().sum().backward()
        assert twin[2].weight.grad is not None
        return (twin[2].weight.grad * kept).float()

    def near(found: Any, expected: Tensor) -> None:
        torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-3)

    first = step()
    shared = weight.grad.numpy()
    model.zero_grad()
    second = step()
    near(weight.grad, second)
    near(shared, first)
    weight.grad.fill_(torch.nan)
    del shared
    for _ in range(2):
        model.zero_grad()
        expected = step()
        near(weight.grad, expected)
        weight.grad.fill_(torch.nan)
    model.zero_grad()
    both = step() + step()
    near(weight.grad, both)


@pytest.mark.parametrize("images", sample([40, 10], 1))
def test_bit_for_bit_the_same_twice_and_nearly_in_several_threads(images: int) -> None:
    """Each takes blocks of images, or shares operations where there are fewer blocks."""
    found: list[dict[str, Tensor]] = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 1, 3, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            model = resnet(stages=2)
            x, y = data((3, 16, 16), images)
            losses(tk.sparse_training(model, tk.prune(model, density=0.1), x), x, y, 2)
            found.append(model.state_dict())
    finally:
        torch.set_num_threads(before)
    for name, one in found[0].items():
        assert torch.equal(one, found[1][name])
        assert torch.equal(found[2][name], found[3][name])
        torch.testing.assert_close(found[2][name], one, rtol=1e-4, atol=1e-4)


def test_it_has_the_models_own_parameters() -> None:
    model = resnet(stages=2)
    x, _ = data((3, 16, 16))
    fast = tk.sparse_training(model, tk.prune(model, density=0.1), x)
    assert list(fast.state_dict()) == list(model.state_dict())
    assert all(one is other for one, other in zip(fast.parameters(), model.parameters(), strict=True))
    assert fast.train().training
    assert model.blocks[0].training
    assert not fast.eval().training
    assert not model.training
    fast.train().load_state_dict(resnet(stages=2).state_dict())
    with pytest.raises(EngineError, match="copy the model"):
        copy.deepcopy(fast)


def test_masks_that_move_and_batches_of_any_size() -> None:
    torch.manual_seed(0)
    model = resnet(stages=2).train()
    x, y = data((3, 16, 16), 64)
    fast = tk.sparse_training(model, tk.prune(model, density=0.2, distribution="layerwise"), x[:8])
    losses(fast, x, y, 2)
    kernels = len(fast._context.library._addresses)
    smaller = tk.prune(model, density=0.1, distribution="layerwise")
    fast.update(smaller)
    losses(fast, x, y, 2)
    assert len(fast._context.library._addresses) <= kernels + 2
    twin = copy.deepcopy(model)
    for images in (37, 3):
        for one in (fast, twin):
            one.zero_grad()
            F.cross_entropy(one(x[:images]), y[:images]).backward()
        gradients_agree(model, twin, smaller)
    with pytest.raises(MaskError):
        fast.update(tk.Mask({"nothing": torch.ones(1)}))


@pytest.mark.parametrize("kind", ["convolutions", "linear", "lstm"])
def test_a_batch_of_no_examples(kind: str) -> None:
    """As a loader's last one may be, or a rank's part of it: as in torch, and the next batch is as ever."""
    torch.manual_seed(0)
    model, x = {
        "convolutions": lambda: (
            nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            torch.randn(8, 3, 12, 12),
        ),
        "linear": lambda: (nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(32, 64)),
        "lstm": lambda: (nn.LSTM(64, 96, batch_first=True), torch.randn(8, 5, 64)),
    }[kind]()
    mask = tk.prune(model, 0.2, distribution="uniform")
    fast = tk.sparse_training(model, mask, x)

    def outputs(batch: torch.Tensor) -> torch.Tensor:
        made = fast(batch)
        return made if isinstance(made, torch.Tensor) else made[0]

    before = outputs(x)
    empty = outputs(x[:0])
    assert empty.shape == (0, *before.shape[1:])
    empty.sum().backward()
    assert all(value.grad is None or not value.grad.any() for value in model.parameters())
    assert torch.equal(outputs(x), before)
    assert fast.untraced() == {}


def test_gradients_from_elsewhere_are_masked_too() -> None:
    """Kernels give gradients that need no mask, unless something is added to them on their way to the parameter."""
    torch.manual_seed(0)
    model = resnet(stages=2).train()
    mask = tk.prune(model, density=0.2)
    weights = list(mask.parameters(model).values())
    weights[0].register_hook(lambda gradient: gradient.add_(1))
    x, y = data((3, 16, 16))
    fast = tk.sparse_training(model, mask, x)
    F.cross_entropy(fast(x), y).backward()
    alone = [weight.grad for weight in weights]
    (F.cross_entropy(fast(x), y) + sum(weight.sum() for weight in weights)).backward()
    for weight, before, kept in zip(weights, alone, mask.values(), strict=True):
        assert before is weight.grad
        assert weight.grad is not None
        assert not weight.grad[~kept].any()
    fast.zero_grad()
    loss = F.cross_entropy(fast(x), y)
    fast.update(tk.prune(model, density=0.1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):  # weights were set to 0
        loss.backward()


def test_the_way_of_a_model_in_training_mode_is_taken_whenever_it_was_captured() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(F.relu(self.conv(x)), 0.5, self.training)

    model, x = Dropping().eval(), torch.randn(8, 4, 9, 9)
    fast = tk.sparse_training(model, tk.prune(model, density=0.3), x)
    assert torch.equal(fast(x), model(x))
    fast.train()
    torch.manual_seed(0)
    found = fast(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, fast(x)), "other numbers are dropped"


class Stem(nn.Module):
    """Can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor, *, twice: bool = False, scale: Tensor | None = None) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = 2 * x if twice else x
        return x if scale is None else x * scale


class Deciding(nn.Module):
    """Its way depends on its data; what it calls can be traced, but for one module, whose layers can."""

    def __init__(self, inner: bool = True) -> None:
        super().__init__()
        self.stem = Stem()
        self.inner = Deciding(False) if inner else None
        self.beside = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x, twice=bool(x.sum() > 0), scale=x.new_tensor(0.5) if len(x) % 2 else None)
        x = self.beside(x)
        return x if self.inner is None else self.inner(x)


def test_parts_of_a_model_that_cannot_be_traced_run_by_themselves() -> None:
    torch.manual_seed(0)
    model = Deciding().train()
    twin = copy.deepcopy(model)
    mask = tk.prune(model, density=0.3, distribution="layerwise")
    x = torch.randn(20, 8, 9, 9)
    fast = tk.sparse_training(model, mask, x)
    assert {layer.where for layer in fast.layers()} == {"engine"}
    assert "its control flow depends on its data" in fast.untraced()["inner"]
    assert "The model is not traced: its control flow depends on its data" in repr(fast)
    mask.apply_(twin)
    for sign, images in ((1, 20), (-1, 20), (1, 7), (-1, 20)):
        for one in (fast, twin):
            one.zero_grad()
            one(sign * x[:images]).square().sum().backward()
        gradients_agree(model, twin, mask)
    assert len(fast._units[1]._forms) == 3
    with fast.running():
        found = model.stem(x)
    torch.testing.assert_close(found, twin.stem(x), rtol=1e-4, atol=1e-5)
    assert "forward" not in model.stem.__dict__


def test_a_graph_that_is_not_its_code_is_not_taken() -> None:
    class Counting(Stem):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            self.calls += 1
            return super().forward(x) * self.calls

    class Asking(Stem):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) if isinstance(x, Tensor) else super().forward(x, twice=True)

    class Drawing(Stem):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) * torch.rand(())

    class Changing(Stem):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            made = self.conv(x)
            return made + F.relu(made, inplace=True)

    x = torch.randn(8, 8, 9, 9)
    for kind, why in ((Counting, "changes it"), (Asking, "something else"), (Drawing, "draws"), (Changing, "in place")):
        torch.manual_seed(0)
        model = kind().train()
        twin = copy.deepcopy(model)
        mask = tk.prune(model, density=0.3)
        fast = tk.sparse_training(model, mask, x)
        assert why in fast.untraced()[""], kind
        assert fast.layers()[0].where == "engine"
        mask.apply_(twin)
        for _ in range(2):
            for one in (fast, twin):
                torch.manual_seed(3)
                one.zero_grad()
                one(x).square().sum().backward()
            gradients_agree(model, twin, mask)


class Mixed(nn.Module):
    """Layers that kernels know between others, a layer that is called twice, one that runs beside, and dropouts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Conv2d(8, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.beside, self.last = nn.Conv2d(32, 32, 1), nn.Linear(32, 10)
        self.norm, self.frozen = nn.GroupNorm(4, 32), nn.BatchNorm2d(32)
        self.one, self.two = nn.Dropout(0.5), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.frozen(self.first(x)))
        side, one, two = self.beside(x), self.one(x), self.two(x)
        x = F.gelu(self.norm(self.twice(F.gelu(self.twice(x)) + side))) + two
        return self.last((x + side + one).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "x"),
    [
        (Mixed, torch.randn(20, 8, 9, 9)),
        (
            lambda: GPT(50, context=40, dropout=0.1, scale=same_width, width=32, blocks=1),
            torch.arange(360).view(9, 40) % 50,
        ),
    ],
    ids=["mixed", "transformer"],
)
def test_what_kernels_do_not_know_runs_in_torch_at_its_place(build: Callable[[], nn.Module], x: Tensor) -> None:
    """With random numbers in the order of the code, and norms that are frozen later."""
    torch.manual_seed(0)
    model = build().train()
    twin = copy.deepcopy(model)
    mask = tk.prune(model, density=0.2, distribution="layerwise")
    fast = tk.sparse_training(model, mask, x)
    mask.apply_(twin)
    for frozen in (False, True):
        for one in (fast, twin):
            torch.manual_seed(3)
            one.zero_grad()
            if frozen and isinstance(model, Mixed):
                (model if one is fast else twin).frozen.eval()
            one(x).square().mean().backward()
        gradients_agree(model, twin, mask)
    for buffer, other in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, other)
    inner = ("first", "twice", "beside") if isinstance(model, Mixed) else ("blocks",)
    assert {layer.where for layer in fast.layers() if layer.name.startswith(inner)} == {"engine"}


def test_profile_tells_seconds_and_leaves_all_as_it_was() -> None:
    torch.manual_seed(0)
    model = resnet(stages=2).train()
    x, y = data((3, 16, 16), 16)
    fast = tk.sparse_training(model, tk.prune(model, density=0.2, distribution="layerwise"), x)
    F.cross_entropy(fast(x), y).backward()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    layers = fast.profile(x, rounds=1)
    assert all(layer.seconds and layer.share for layer in layers if layer.where == "engine")
    assert sum(layer.share or 0 for layer in layers) == pytest.approx(1)
    names = {layer.name for layer in layers}
    assert {"batch norms", "load and store", "pools", "outside of kernels"} <= names
    assert "batch norms" in repr(fast)
    assert repr(fast).startswith("Sparse training for ")
    assert all(torch.equal(one, other) for one, other in zip(before.values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(one, two.grad) for one, two in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(numbers, torch.get_rng_state())


def test_hooks_of_modules_and_of_all_modules_run() -> None:
    model = LeNet300100((1, 28, 28), 10, scale=same_width).train()
    x, _ = data((1, 28, 28))
    fast, seen = tk.sparse_training(model, tk.prune(model, density=0.1, distribution="layerwise"), x), []
    expected = fast(x)  # with no hook at all, which takes a shorter way
    handles = [
        model.register_forward_hook(lambda module, args, output: output + 1),
        torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module))),
    ]
    try:
        assert torch.equal(fast(x), expected + 1)
    finally:
        for handle in handles:
            handle.remove()
    assert type(model) in seen
    assert torch.equal(fast(x), expected)
    model, order = nn.Sequential(nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU()), nn.Conv2d(16, 16, 3)).train(), []
    fast = tk.sparse_training(model, tk.prune(model, density=0.3), torch.randn(8, 8, 9, 9))
    for module in (model, model[0], model[0][0]):
        module.register_forward_hook(lambda module, args, output: order.append(type(module)))
    fast(torch.randn(8, 8, 9, 9))
    assert order == [nn.Conv2d, nn.Sequential, nn.Sequential], "each once"


def test_clear_errors(capfd: pytest.CaptureFixture[str]) -> None:
    double = nn.Sequential(nn.Linear(4, 4)).double()
    with pytest.raises(EngineError, match="float64"):
        tk.sparse_training(double, tk.prune(double, density=0.5), torch.ones(2, 4))
    model = nn.Sequential(nn.Linear(4, 40))
    mask = tk.prune(model, density=0.2)
    with pytest.raises(CaptureError, match="example inputs do not run"):
        tk.sparse_training(model, mask, torch.ones(2, 5))
    fast = tk.sparse_training(model, mask, torch.ones(2, 4))
    assert isinstance(fast, SparseTraining)
    with pytest.raises(TypeError, match="takes 2 positional arguments"):
        fast(torch.ones(2, 4), torch.ones(2, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).train()
    fast = tk.sparse_training(model, tk.prune(model, density=0.3), torch.randn(2, 3, 16, 16))
    with pytest.raises(RuntimeError, match=r"(D|d)ouble"):  # the model's own error
        fast(torch.randn(2, 3, 16, 16).double())
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("error")
def test_a_training_that_diverges_is_told_by_its_loss_alone() -> None:
    x, y = data((3, 16, 16))
    model = resnet(stages=2)
    found = losses(tk.sparse_training(model, tk.prune(model, density=0.2, score="random"), x), x, y, 6, rate=1e9)
    assert not all(map(math.isfinite, found))


def test_a_model_with_gates_of_its_own() -> None:
    """What stands in for a parameter is of one step: such a model runs in torch, with the same gradients as before."""
    x, y = data((1, 28, 28))
    torch.manual_seed(0)
    model = LeNet300100((1, 28, 28), 10, scale=same_width)
    mask = tk.prune(model, density=0.2)
    tk.hold(model, mask).release()
    other = copy.deepcopy(model)
    found = []
    for one in (model, other):
        gates = tk.gates.attach(one, init=0.1)
        trained = tk.sparse_training(one, mask, x) if one is model else one
        F.cross_entropy(trained(x), y).backward()
        found.append([s.grad.clone() for s in gates.parameters()])
        if one is model:
            assert not [layer for layer in trained.layers() if layer.where == "engine"]
            trained.release()
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
