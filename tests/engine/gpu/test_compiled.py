"""Models compiled for a GPU against the models they were made of, in double precision."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from group_wise import grouped

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ticketry[gpu]'")

import ticketry as tk
from interpreter import run
from ticketry.errors import EngineError, UsageError
from ticketry_engine.gpu import compile_gpu
from ticketry_engine.gpu.compiled import MOST_SHAPES, compile_gpu_in_own_precision, precision_of
from ticketry_engine.gpu.plan import LayerChoice
from ticketry_engine.gpu.program import GpuProgram
from ticketry_engine.ir import model_file

BOUNDS = {"tf32": 2e-3 if torch.cuda.is_available() else 1e-5, "fp16": 5e-3, "bf16": 3e-2}
"""TF32 multiplies 11 bits of fraction; the interpreter multiplies all 24."""


class Block(nn.Module):
    """A small ResNet: residuals, a stride, pools, norms, concatenation, a gate, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.shortened = nn.Conv2d(16, 16, 1, stride=2)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.last = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.one(x)).relu()
        x = (self.shortened(x) + self.down(x)).relu()
        x = x * x.mean((2, 3), keepdim=True).sigmoid()
        x = torch.cat([x, nn.functional.silu(x)], 1)
        x = self.last(self.pool(x)[:, :32])
        return self.head(x.mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).view(x.shape[0], x.shape[1], 3, 2, 16).permute(2, 0, 3, 1, 4)
        made = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(made)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def with_groups(model: nn.Module, rows: int = 16, density: float = 0.4) -> tuple[nn.Module, tk.Mask]:
    """The model, and a mask whose sets of rows share their columns."""
    model = model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    kept = {}
    for number, (name, weight) in enumerate(model.named_parameters()):
        if weight.dim() > 1:
            kept[name] = grouped(len(weight), weight[0].numel(), rows, density, number).view_as(weight) != 0
    return model, tk.Mask(kept)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return with_groups(Block())


def expected(model: nn.Module, mask: tk.Mask, x: torch.Tensor) -> torch.Tensor:
    exact = copy.deepcopy(model).cpu()
    mask.apply_(exact)
    with torch.no_grad():
        return exact.double()(x.cpu().double())


def error(made: torch.Tensor, wanted: torch.Tensor) -> float:
    assert made.shape == wanted.shape
    assert made.dtype == torch.float32
    return float((made.cpu().double() - wanted).abs().max() / wanted.abs().max())


def compiled(network, x, device, **options):
    model, mask = network
    return compile_gpu(copy.deepcopy(model).to(device), mask, x, device=device, **options)


@pytest.mark.parametrize("precision", list(BOUNDS))
@pytest.mark.parametrize("force", [False, True])
def test_a_residual_network(device, network, precision, force):
    x = torch.randn(8, 3, 4, 4, device=device)
    fast = compiled(network, x, device, precision=precision, force=force)
    assert error(fast(x), expected(*network, x)) < BOUNDS[precision]
    kernels = {choice.kernel for choice in fast.choices(x).values()}
    assert kernels == ({"group"} if force else kernels)


def test_other_numbers_of_examples(device, network):
    fast = compiled(network, torch.randn(2, 3, 4, 4), device, precision="tf32", force=True)
    for count in (1, 3, 1, 9, 0, *range(MOST_SHAPES)):
        x = torch.randn(count, 3, 4, 4, device=device)
        made = fast(x)
        assert made.shape == (count, 5)
        assert count == 0 or error(made, expected(*network, x)) < BOUNDS["tf32"]
    assert len(fast._runs) <= MOST_SHAPES


@pytest.mark.parametrize(("precision", "tokens"), [("tf32", 5), ("bf16", 8)])
def test_a_transformer(device, precision, tokens):
    torch.manual_seed(1)
    network = with_groups(Transformer())
    x = torch.randn(2, tokens, 32, device=device)
    fast = compiled(network, x, device, precision=precision, force=True)
    assert error(fast(x), expected(*network, x)) < BOUNDS[precision]


def test_linear_layers_of_any_rank(device):
    """As in ConvNeXt, a permuted image is no image to a linear layer."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear, self.back = nn.Conv2d(4, 16, 1), nn.Linear(16, 16), nn.Conv2d(16, 16, 1)

        def forward(self, x):
            return self.back(self.linear(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    model, mask = with_groups(Model())
    flat = with_groups(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 7)))
    shapes = [(3, 12), (2, 3, 12), (2, 3, 2, 12), (2, 1, 2, 2, 12)]
    for network, shape in [((model, mask), (3, 4, 2, 3)), *((flat, shape) for shape in shapes)]:
        x = torch.randn(shape, device=device)
        fast = compiled(network, x, device, precision="tf32", force=True)
        assert error(fast(x), expected(*network, x)) < BOUNDS["tf32"]


def test_several_outputs_of_any_kind(device):
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 1)

        def forward(self, x):
            y = self.conv(x)
            return {"image": y, "best": y.mean((2, 3)).argmax(1)}, x.shape[1]

    model, mask = with_groups(Model())
    x = torch.randn(2, 3, 4, 4, device=device)
    made, three = compiled((model, mask), x, device, precision="tf32", force=True)(x)
    assert three == 3
    assert made["best"].dtype == torch.int64
    wanted = expected(model, mask, x)[0]
    assert error(made["image"], wanted["image"]) < BOUNDS["tf32"]
    assert torch.equal(made["best"].cpu(), wanted["best"])


def test_a_model_in_bfloat16_stays_in_it(device, network):
    model, mask = network
    x = torch.randn(2, 3, 4, 4, device=device, dtype=torch.bfloat16)
    fast = compile_gpu(copy.deepcopy(model).to(device, torch.bfloat16), mask, x, force=True)
    made = fast(x)
    assert made.dtype == torch.bfloat16
    assert error(made.float(), expected(model, mask, x)) < 2 * BOUNDS["bf16"]


def test_what_it_says_of_its_layers(device, network):
    x = torch.randn(8, 3, 4, 4, device=device)
    fast = compiled(network, x, device, force=True)
    assert "chosen at the first call" in str(fast)
    fast(x)
    rows = {layer.name: layer for layer in fast.layers()}
    assert rows["one"].where == "engine"
    assert rows["one"].kernel == "group, tiles of 16 rows"
    assert rows["one"].rows == "16"
    assert rows["one"].density == pytest.approx(float(network[1]["one.weight"].float().mean()))
    assert "bf16" in str(fast)
    assert sum(layer.share for layer in fast.profile(x, rounds=1)) == pytest.approx(1)
    assert fast.weight_bytes > 0


def test_the_model_and_the_settings_of_torch_are_left_as_they_were(device, network):
    model = network[0]
    before = copy.deepcopy(model.state_dict())
    settings = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    x = torch.randn(2, 3, 4, 4, device=device)
    kept = x.clone()
    compiled(network, x, device, force=True)(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, kept)
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == settings


def test_it_is_for_inference_on_its_device(device, network):
    x = torch.randn(2, 3, 4, 4, device=device)
    fast = compiled(network, x, device)
    plain = fast(x)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(fast(x), plain)
    assert not fast.training
    with pytest.raises(EngineError, match="inference"):
        fast.train()
    with pytest.raises(EngineError, match="stays in bf16"):
        fast.half()
    with pytest.raises(EngineError, match="not pickled"):
        pickle.dumps(fast)
    assert fast.state_dict() == {}
    assert torch.equal(copy.deepcopy(fast)(x), fast(x))
    with pytest.raises(EngineError, match="meta"):
        fast(x.to("meta"))


def test_a_model_file_of_it_holds_the_network(device, network, tmp_path):
    x = torch.randn(2, 3, 4, 4, device=device)
    path = compiled(network, x, device).save(tmp_path / "model.tk")
    assert error(run(model_file.load(path)[0], x.cpu()), expected(*network, x)) < 1e-5


def test_refusals(device, network, monkeypatch):
    model, mask = network
    with pytest.raises(UsageError, match="int8"):
        compile_gpu(model, mask, torch.randn(2, 3, 4, 4), precision="int8")
    with pytest.raises(EngineError, match="example"):
        compile_gpu(model, mask)
    with pytest.raises(EngineError, match="no sparse kernels for meta"):
        compile_gpu(model, mask, torch.randn(2, 3, 4, 4), device="meta")
    both = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    with pytest.raises(UsageError, match="on the meta device"):
        compile_gpu(both, None, torch.randn(1, 2))
    monkeypatch.setattr("triton.knobs.runtime.interpret", False)
    with pytest.raises(EngineError, match="interpreter alone"):
        compile_gpu(model, mask, torch.randn(2, 3, 4, 4), device="cpu")


def test_tk_compile_asks_for_the_precision_of_the_weights(device, network):
    model, mask = network
    assert precision_of(model) == "tf32"
    assert precision_of(copy.deepcopy(model).bfloat16()) == "bf16"
    assert precision_of(copy.deepcopy(model).half()) == "fp16"
    with pytest.raises(EngineError, match="float64"):
        precision_of(copy.deepcopy(model).double())
    x = torch.randn(2, 3, 4, 4, device=device)
    fast = compile_gpu_in_own_precision(copy.deepcopy(model).to(device), mask, x, threads=None, target="host")
    assert fast.precision == "tf32"
    assert error(fast(x), expected(model, mask, x)) < BOUNDS["tf32"]
    with pytest.raises(EngineError, match="apply to a CPU only"):
        compile_gpu_in_own_precision(model, mask, x, threads=2, target="host")
    with pytest.raises(EngineError, match="the model's weights are tf32"):
        compile_gpu_in_own_precision(model, mask, x, threads=None, target="host", precision="bf16")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_graphs_are_the_same_as_calls(device, network):
    x = torch.randn(16, 3, 4, 4, device=device)
    recorded, called = (compiled(network, x, device, graph=graph, force=True) for graph in (True, False))
    for _ in range(3):
        x = torch.randn_like(x)
        assert torch.equal(recorded(x), called(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_two_in_four(device):
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU()).eval()
    kept = torch.zeros(256, 64, 4, dtype=torch.bool)
    kept[..., ::2] = True
    mask = tk.Mask({"0.weight": kept.view(256, 256)})
    x = torch.randn(8192, 256, device=device)
    fast = compile_gpu(copy.deepcopy(model).to(device), mask, x)
    program = GpuProgram(fast.graph, dict.fromkeys(fast.choices(x), LayerChoice("2:4", "")), fast._weights)
    (made,) = program([x]).values()
    assert error(made, expected(model, mask, x)) < BOUNDS["bf16"]
