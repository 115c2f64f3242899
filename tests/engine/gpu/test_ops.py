"""The kernels against torch in double precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from group_wise import grouped

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ticketry[gpu]'")

from ticketry.errors import EngineError
from ticketry_engine.gpu import plan
from ticketry_engine.gpu import program as ops
from ticketry_engine.gpu.program import kernel_activation
from ticketry_engine.gpu.tables import is_batch_last, pack_group_tables
from ticketry_engine.ir.native import make_activation_function
from ticketry_engine.ir.native_shapes import ACTS

BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
"""Of the largest output: products are summed in float32 and rounded once, to 24, 11 and 8 bits."""


def bound(dtype: torch.dtype, device: torch.device) -> float:
    """TF32 multiplies 11 bits of fraction; the interpreter multiplies all 24."""
    return 2e-3 if dtype == torch.float32 and device.type == "cuda" else BOUNDS[dtype]


class Case:
    """A convolution and its inputs, in numbers of `dtype`."""

    def __init__(
        self, device, *, images=3, channels=5, size=(7, 6), outputs=20, kernel=(3, 3), stride=(1, 1), padding=(1, 1),
        dilation=(1, 1), groups=1, rows=8, density=0.4, tile=16, act=None, bias=True, residual=False,
        dtype=torch.float32, weight=None, seed=0,
    ):  # fmt: skip
        torch.manual_seed(seed)
        if weight is None:
            weight = grouped(outputs, channels // groups * kernel[0] * kernel[1], rows, density, seed)
            weight = weight.reshape(outputs, channels // groups, *kernel)
        self.weight = weight.to(dtype)
        self.x = torch.randn(images, channels, *size).to(dtype)
        self.bias = torch.randn(len(weight)).to(dtype) if bias else None
        self.window = [list(stride), list(padding), list(dilation)]
        self.kernel, self.groups, self.act, self.dtype, self.device = list(kernel), groups, act, dtype, device
        exact = torch.conv2d(self.x.double(), self.weight.double(), None, *self.window, groups)
        self.residual = torch.randn(exact.shape).to(dtype) if residual else None
        self.tables = pack_group_tables(
            self.weight, tile=tile, dtype=dtype, groups=groups, padding=padding, dilation=dilation
        ).to(device)
        if self.bias is not None:
            exact += self.bias.double()[:, None, None]
        if self.residual is not None:
            exact += self.residual.double()
        function = make_activation_function(act)
        self.exact = exact if function is None else function(exact)

    def arguments(self):
        tables, moved = self.tables, lambda one: None if one is None else one.to(self.device)
        return (
            moved(self.x), tables.weight, moved(self.bias), moved(self.residual), tables.tiles, tables.rows,
            tables.places, len(self.weight), self.kernel, *self.window, *kernel_activation(self.act),
        )  # fmt: skip

    def check(self):
        made = ops.group_conv2d(*self.arguments())
        assert made.shape == self.exact.shape
        assert made.dtype == self.dtype
        assert is_batch_last(made)
        assert torch.isfinite(made).all()
        scale = float(self.exact.abs().max()) or 1.0
        assert float((made.cpu().double() - self.exact).abs().max()) / scale < bound(self.dtype, self.device)


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize("images", [1, 8, 9])
def test_number_formats_and_images(device, dtype, images):
    Case(device, dtype=dtype, images=images, residual=True, act="relu").check()


@pytest.mark.parametrize("changes", [
    {"stride": (2, 2)},
    {"stride": (2, 3), "padding": (0, 2)},
    {"dilation": (2, 1), "padding": (2, 0)},
    {"dilation": (2, 3), "padding": (5, 4), "stride": (3, 2)},
    {"kernel": (1, 1), "padding": (0, 0)},
    {"kernel": (1, 1), "padding": (0, 0), "stride": (2, 2)},
    {"kernel": (1, 1), "padding": (2, 1)},
    {"kernel": (5, 2), "padding": (1, 3), "size": (5, 9)},
    {"kernel": (7, 6), "padding": (0, 0)},  # one output
    {"channels": 6, "outputs": 18, "groups": 3, "rows": 3},
    {"size": (1, 1)},
    {"tile": 32},
    {"bias": False},
    {"rows": 1, "outputs": 6},
    {"channels": 40, "rows": 16, "outputs": 16, "density": 0.9, "size": (3, 3), "dtype": torch.bfloat16},
], ids=str)  # fmt: skip
def test_geometries(device, changes):
    Case(device, **changes).check()


NOT_ON_GPUS = {"inverse_root"}
"""Activations that no capture for a GPU makes."""


@pytest.mark.parametrize("act", [None, *sorted(set(ACTS) - NOT_ON_GPUS), {"leaky_relu": 0.2}], ids=str)
def test_activations(device, act):
    Case(device, act=act, size=(3, 3), images=2, channels=2, outputs=16).check()
    case = Case(device, act=act, kernel=(1, 1), padding=(0, 0), size=(1, 2), rows=1, density=1.0, channels=2)
    case.x[1] = float("nan")
    made = ops.group_conv2d(*case.arguments()).cpu()
    assert made[1].isnan().all()
    assert not made[[0, 2]].isnan().any()


def test_groups_of_many_sizes_and_rows_without_weights(device):
    weight = torch.zeros(45, 8, 3, 3)
    flat = weight.view(45, 72)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(3))
    flat[order[:1], ::3] = 1.5
    flat[order[1:4], 5:70] = -2.0
    flat[order[4:30], ::2] = torch.randn(26, 36)
    flat[order[30:40]] = torch.randn(10, 72)  # dense; the last five rows keep nothing
    for tile in (16, 32):
        Case(device, weight=weight, channels=8, tile=tile, residual=True, act="relu").check()
    Case(device, weight=torch.zeros(20, 5, 3, 3), residual=True).check()


def test_infinities_stay_where_they_are(device):
    """Padding of tables and images multiplies zeros by zeros, never by what lies there."""
    case = Case(device, weight=torch.where(torch.arange(5).view(1, 5, 1, 1) == 2, 1.0, 0.0).expand(20, 5, 3, 3))
    case.x[:, [0, 1, 3, 4]] = float("inf")
    case.exact = torch.conv2d(case.x[:, 2:3].double(), case.weight[:, 2:3].double(), case.bias.double(), padding=1)
    case.check()


@pytest.mark.parametrize("layout", ["inner", "nchw", "channels_last", "strided"])
def test_inputs_of_any_strides(device, layout):
    case = Case(device, residual=True)
    for name in ("x", "residual"):
        one = getattr(case, name)
        wide = torch.zeros(*one.shape[:3], 2 * one.shape[3])
        wide[..., ::2] = one
        others = {
            "inner": ops.turn(one.to(device), True),
            "nchw": one,
            "channels_last": one.contiguous(memory_format=torch.channels_last),
            "strided": wide[..., ::2],
        }
        setattr(case, name, others[layout])
    case.check()


# -- linear ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(BOUNDS))
@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 7, 5), (13, 70, 40), (32, 64, 16), (150, 9, 33)])
def test_linear(device, dtype, tokens, inputs, outputs):
    torch.manual_seed(1)
    weight = (grouped(outputs, inputs, 8, 0.4) / 3).to(dtype)
    x, bias, residual = (torch.randn(*shape).to(dtype) for shape in [(tokens, inputs), (outputs,), (tokens, outputs)])
    tables = pack_group_tables(weight, tile=16, dtype=dtype).to(device)
    moved = [one.to(device) for one in (x, bias, residual)]
    packed = (tables.tiles, tables.rows, tables.places, outputs)
    made = ops.group_linear(moved[0], tables.weight, moved[1], moved[2], *packed, "gelu", 0.0)
    exact = F.gelu(F.linear(x.double(), weight.double(), bias.double()) + residual.double())
    assert is_batch_last(made)
    assert float((made.cpu().double() - exact).abs().max() / exact.abs().max()) < bound(dtype, device)


@pytest.mark.parametrize(("affine", "dtype"), zip([True, False, True], BOUNDS, strict=True))
@pytest.mark.parametrize("shape", [(1, 1), (40, 300), (33, 128), (9, 8200)])
def test_layer_norm(device, shape, dtype, affine):
    torch.manual_seed(4)
    x = (3 * torch.randn(shape) + 5).to(dtype)
    weight, bias = (torch.randn(shape[1]).to(dtype) if affine else None for _ in range(2))
    moved = [None if one is None else one.to(device) for one in (x, weight, bias)]
    made = ops.inner_layer_norm(*moved, 1e-3)
    doubles = [None if one is None else one.double() for one in (weight, bias)]
    exact = F.layer_norm(x.double(), shape[1:], *doubles, 1e-3)
    assert is_batch_last(made)
    scale = max(1.0, float(exact.abs().max()))
    assert float((made.cpu().double() - exact).abs().max()) / scale < BOUNDS[dtype]


# -- layouts and pooling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(3, 5, 4, 6), (8, 70, 2, 2), (1, 3, 1, 9), (70, 1, 3, 1), (2, 4, 1, 1), (9, 65), (1, 1)]
)
@pytest.mark.parametrize("dtype", list(BOUNDS))
def test_turns_are_exact(device, shape, dtype):
    x = torch.randn(shape).to(dtype)
    formats = [x.contiguous()]
    if len(shape) == 4:
        formats += [x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3)]
    for one in formats:
        inner = ops.turn(one.to(device), True)
        assert is_batch_last(inner)
        assert torch.equal(inner.cpu(), x)
        outer = ops.turn(inner, False)
        assert torch.equal(outer.cpu(), x)
        assert outer.is_contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    ((3, 3), (2, 2), (1, 1), (1, 1)), ((2, 3), (3, 1), (0, 1), (1, 1)), ((3, 2), (2, 3), (1, 0), (2, 3)),
])  # fmt: skip
def test_pooling(device, kernel, stride, padding, dilation, ceil):
    torch.manual_seed(2)
    x = torch.randn(5, 3, 9, 8)
    x[0, 0, 4, 4] = float("nan")
    window = [list(kernel), list(stride), list(padding)]
    made = ops.inner_pool2d(x.to(device), *window, list(dilation), ceil, "max").cpu()
    torch.testing.assert_close(made, F.max_pool2d(x, *window, list(dilation), ceil), rtol=0, atol=0, equal_nan=True)
    if dilation == (1, 1):
        for counted, mode in [(False, "mean"), (True, "padded_mean")]:
            made = ops.inner_pool2d(x.to(device), *window, [1, 1], ceil, mode).cpu()
            torch.testing.assert_close(made, F.avg_pool2d(x, *window, ceil, counted), equal_nan=True)


# -- as operations of torch --------------------------------------------------------------------------------------------


def test_torch_accepts_them(device):
    torch.library.opcheck(ops.group_conv2d, Case(device, size=(3, 3), residual=True).arguments())
    tables = pack_group_tables(grouped(8, 6, 4, 0.5), tile=16, dtype=torch.float32).to(device)
    packed = (tables.tiles, tables.rows, tables.places)
    x = torch.randn(5, 6, device=device)
    torch.library.opcheck(ops.group_linear, (x, tables.weight, None, None, *packed, 8, "", 0.0))
    torch.library.opcheck(ops.inner_layer_norm, (x, None, None, 1e-5))
    torch.library.opcheck(ops.turn, (x, True))
    torch.library.opcheck(ops.turn, (torch.randn(3, 2, 2, 2, device=device), False))
    image = torch.randn(3, 2, 4, 4, device=device)
    torch.library.opcheck(ops.inner_pool2d, (image, [2, 2], [2, 2], [0, 0], [1, 1], False, "max"))


def test_torch_compile_sees_one_graph(device):
    case = Case(device, size=(4, 4), act="relu")

    def network(x):
        return ops.group_conv2d(x * 2, *case.arguments()[1:]) + 1

    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    x = case.x.to(device)
    torch.testing.assert_close(compiled(x), network(x))


def test_operands_that_do_not_go_together(device):
    case = Case(device, residual=True)
    arguments = list(case.arguments())
    with pytest.raises(EngineError, match="residual has the shape"):
        ops.group_conv2d(*arguments[:3], arguments[3][:, :1], *arguments[4:])
    with pytest.raises(EngineError, match=r"weight is torch\.float32"):
        ops.group_conv2d(arguments[0].half(), *arguments[1:])


# -- every way to run --------------------------------------------------------------------------------------------------


def _configs() -> list[tuple[int, plan.Config]]:
    return [
        (tile, config)
        for tile in (16, 32, 64, 128)
        for few in (1, 10_000)
        for config in plan.candidate_configs(tile, 4096, few)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "config"), dict.fromkeys(_configs()), ids=str)
def test_every_candidate(device, tile, config, monkeypatch):
    monkeypatch.setattr(ops, "choose_config", lambda *_: config)
    Case(device, tile=tile, outputs=150, rows=70, channels=24, images=9, residual=True, dtype=torch.bfloat16).check()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_random_layers(device, seed):
    pick = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=pick))

    kernel, padding = (number(1, 4), number(1, 4)), (number(0, 3), number(0, 3))
    dilation = (number(1, 2), number(1, 2))
    groups = [1, 1, 1, 2][number(0, 3)]
    reach = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    size = tuple(max(1, number(1, 12), need - 2 * pad) for need, pad in zip(reach, padding, strict=True))
    Case(
        device, images=number(1, 20), channels=groups * number(1, 24), outputs=groups * number(1, 40), kernel=kernel,
        stride=(number(1, 3), number(1, 3)), padding=padding, dilation=dilation, groups=groups, size=size,
        rows=number(1, 40), density=number(0, 10) / 10, tile=[16, 32, 64][number(0, 2)],
        act=["relu", None, "silu"][number(0, 2)], residual=bool(number(0, 1)), bias=bool(number(0, 1)),
        dtype=list(BOUNDS)[number(0, 2)], seed=seed,
    ).check()  # fmt: skip
