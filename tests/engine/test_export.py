"""What is exported equals its source, in another runtime, at any batch size."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import ticketry as tk
from engine.models import Of
from samples import sample
from ticketry.engine.export import FORMATS, export, format_of
from ticketry.errors import CaptureError, EngineError, MaskError, StructureError, UsageError
from ticketry.tasks import models
from ticketry.tasks.models import language

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'ticketry[onnx]'")
ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ticketry[onnx]'")

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = models.build("resnet-20-8", shape=(3, 16, 16), classes=10).train()
    with torch.no_grad():
        made(torch.randn(64, 3, 16, 16))
    return made.eval()


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_masked_model(tmp_path: Path, format: str) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    model = nn.Sequential(*layers).eval()
    mask = tk.prune(model, density=0.2, score="magnitude")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / f"deep/model.{format}"
    made = export(model, mask, X, file, format=format, facts={"ticket": "mine"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (made.shrunk, made.batch, made.bytes) == (False, None, file.stat().st_size)
    assert "not channel-wise" in made.why_not_shrunk
    assert made.parameters == made.dense_parameters == sum(value.numel() for value in model.parameters())
    assert [check.batch for check in made.checks] == [1, 2, 5]
    assert max(check.error for check in made.checks) <= 1e-5
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    masked, x = mask.apply_(copy.deepcopy(model)), torch.cat([X, X, X])[:9]
    torch.testing.assert_close(ran(file, x)[0], masked(x), rtol=1e-4, atol=1e-5)
    assert made.nonzero == sum(int(value.count_nonzero()) for value in masked.parameters())
    if format == "onnx":
        facts = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
    else:
        extra = {"ticketry.json": ""}
        torch.export.load(str(file), extra_files=extra)
        facts = json.loads(extra["ticketry.json"])
    assert (facts["ticket"], facts["ticketry"]) == ("mine", tk.__version__)


def ran(file: Path, *inputs: Tensor) -> list[Tensor]:
    """The file in its runtime, without the code under test."""
    if file.suffix == ".pt2":
        found = torch.export.load(str(file)).module()(*inputs)
        return list(found) if isinstance(found, tuple) else [found]
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(array) for array in session.run(None, feed)]


@pytest.mark.slow
@pytest.mark.parametrize("format", sample(["onnx", "pt2"], 1))
def test_a_channel_wise_mask_makes_a_smaller_file(model: nn.Module, tmp_path: Path, format: str) -> None:
    mask = tk.structure.channels(model, X, density=0.5)
    small = export(model, mask, X, tmp_path / f"small.{format}", format=format)
    whole = export(model, mask, X, tmp_path / f"whole.{format}", format=format, shrink=False)
    assert (small.shrunk, whole.shrunk, small.why_not_shrunk) == (True, False, "")
    assert small.parameters < whole.parameters == whole.dense_parameters
    assert small.bytes < whole.bytes
    torch.testing.assert_close(
        ran(tmp_path / f"small.{format}", X), ran(tmp_path / f"whole.{format}", X), rtol=1e-4, atol=1e-5
    )


class Masked(nn.Linear):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x) + mask


class Named(nn.Module):
    """Its arguments have names, of which one holds two tensors and one a number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, *, pair: tuple[Tensor, Tensor], scale: float, shift: Any = None) -> tuple[Tensor, ...]:
        hidden = torch.relu(scale * self.one(x) + pair[0] - 2 * pair[1] + shift)
        return self.other(hidden), hidden


@pytest.mark.parametrize("format", sample(["pt2", "onnx"], 1))
def test_several_outputs_of_keyword_arguments_in_an_order_of_their_own(tmp_path: Path, format: str) -> None:
    torch.manual_seed(0)
    named, file = Named().eval(), tmp_path / f"named.{format}"
    pair = (torch.randn(3, 8), torch.randn(3, 8))
    given = {"pair": pair, "shift": torch.randn(8), "scale": 0.5, "x": torch.randn(3, 6)}
    mask = tk.prune(named, density=0.5, score="magnitude")
    made = export(named, mask, given, file)
    assert [check.batch for check in made.checks] == [1, 2, 5]
    x, shift, one, two = torch.randn(7, 6), torch.randn(8), torch.randn(7, 8), torch.randn(7, 8)
    with torch.no_grad():
        expected = mask.apply_(named)(x, pair=(one, two), scale=0.5, shift=shift)
    if format == "pt2":
        found = torch.export.load(str(file)).module()(x=x, pair=(one, two), scale=0.5, shift=shift)
    else:
        session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        feed = {"x": x, "pair_0": one, "pair_1": two, "shift": shift}
        made = session.run(None, {name: value.numpy() for name, value in feed.items()})
        found = tuple(torch.from_numpy(array) for array in made)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_model_of_keyword_arguments_is_shrunk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, given = layers().eval(), {"input": torch.randn(2, 6)}
    made = export(model, tk.structure.channels(model, given, density=0.5), given, tmp_path / "small.pt2")
    assert made.shrunk, made.why_not_shrunk


def test_infinities_in_inputs_and_outputs(tmp_path: Path) -> None:
    mask = torch.zeros(3, 4).masked_fill(torch.ones(3, 4).triu(1).bool(), float("-inf"))
    assert len(export(Masked(6, 4), None, (torch.randn(3, 6), mask), tmp_path / "m.pt2").checks) == 3
    broken = Masked(6, 4)
    nn.init.constant_(broken.bias, float("nan"))
    with pytest.raises(EngineError, match="the model itself gives NaN"):
        export(broken, None, (torch.randn(3, 6), mask), tmp_path / "n.pt2")
    assert not (tmp_path / "n.pt2").exists()


@pytest.mark.slow
def test_a_file_that_takes_one_batch_size(model: nn.Module, tmp_path: Path) -> None:
    made = export(model, None, X, tmp_path / "m.onnx", batch=3)
    assert (made.batch, [check.batch for check in made.checks]) == (3, [3])
    assert ran(tmp_path / "m.onnx", X[:3])[0].shape == (3, 10)
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        ran(tmp_path / "m.onnx", X)


@pytest.mark.parametrize("format", sample(["pt2", "onnx"], 1))
def test_a_model_that_counts_its_examples_is_refused(tmp_path: Path, format: str) -> None:
    fixed = Of(lambda m, x: x.view(2, 3, 16, 16).mean((2, 3)) if len(x) == 2 else x.new_zeros(x.shape[0], 3))
    with pytest.raises(EngineError, match="for that alone"):
        export(fixed, None, X, tmp_path / f"m.{format}", format=format)
    assert not list(tmp_path.iterdir())
    assert export(fixed, None, X, tmp_path / f"m.{format}", format=format, batch=2).checks


@pytest.mark.parametrize("examples", sample([2, 3], 1))
def test_a_model_that_takes_no_other_batch_of_its_first_axis_is_told(tmp_path: Path, examples: int) -> None:
    """The second input has the batch in its second axis."""
    model, inputs = nn.GRU(6, 4, batch_first=True), (torch.randn(examples, 5, 6), torch.zeros(1, examples, 4))
    mask = tk.prune(model, 0.5)
    with pytest.raises(EngineError, match="for that alone"):
        export(model, mask, inputs, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())
    assert export(model, mask, inputs, tmp_path / "m.pt2", batch=examples).checks


@pytest.mark.slow
def test_what_differs_from_its_source_is_not_written(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ticketry_engine import export as module

    real = module.write_onnx

    def wrong(other: nn.Module, *arguments: object, **named: object) -> None:
        changed = copy.deepcopy(other)
        with torch.no_grad():
            next(iter(changed.parameters()))[0] += 0.01
        real(changed, *arguments, **named)

    monkeypatch.setattr(module, "write_onnx", wrong)
    with pytest.raises(EngineError, match="not equal to its source: at a batch of 1"):
        export(model, None, X, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_errors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 14 * 14, 5)).eval()
    for given in ([X], X.numpy()):
        with pytest.raises(UsageError, match=r"them by name, not a (list|ndarray)"):
            export(model, None, given, tmp_path / "m.onnx")  # type: ignore[arg-type]
    mask = tk.prune(model, density=0.2, score="magnitude")
    (tmp_path / "file").write_text("")
    for used, path, options, error, message in (
        (mask, tmp_path / "m", {"format": "tflite"}, UsageError, "onnx, pt2, not 'tflite'"),
        (mask, tmp_path / "m.onnx", {"batch": 0}, UsageError, "at least one example, not 0"),
        (mask, tmp_path / "m.onnx", {"shrink": True}, MaskError, "not channel-wise"),
        (None, tmp_path / "m.onnx", {"shrink": True}, UsageError, "no mask"),
        (None, tmp_path, {}, UsageError, "is a folder"),
        (None, tmp_path / "file" / "m.pt2", {"format": "pt2"}, EngineError, "cannot be written"),
    ):
        with pytest.raises(error, match=message):
            export(model, used, X, path, **options)


class Around(nn.Module):
    """Around a network: with arguments that have no names, or a decision by values."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.net, self.way = layers(), way

    def forward(self, *xs: Tensor) -> Tensor:
        made = self.net(*xs)
        if self.way == "item":
            return made / made.abs().max().item()
        return made[: len(xs[0])] if self.way == "len" else made


@pytest.mark.parametrize(
    ("way", "format"),
    sample([("len", "onnx"), ("names", "pt2"), ("names", "onnx"), ("len", "pt2")], [("names", "pt2")]),
)
def test_any_batch_of_arguments_without_names_and_of_a_model_that_asks_for_their_length(
    tmp_path: Path, way: str, format: str
) -> None:
    torch.manual_seed(0)
    model, x = Around(way).eval(), torch.randn(5, 6)
    made = export(model, None, x, tmp_path / f"m.{format}", format=format)
    assert [one.batch for one in made.checks] == [1, 2, 5]
    torch.testing.assert_close(ran(tmp_path / f"m.{format}", x)[0], model(x), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_shrunk_is_exported_as_it_is_unless_that_was_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Around("item").eval(), torch.randn(2, 6)
    mask = tk.prune(model, 0.5)
    made = export(model, mask, x, tmp_path / "m.pt2", format="pt2", batch=2)
    assert (made.shrunk, "looks at its activations" in made.why_not_shrunk) == (False, True)
    with pytest.raises(StructureError, match="looks at its activations"):
        export(model, mask, x, tmp_path / "n.pt2", format="pt2", batch=2, shrink=True)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrappers_are_left_behind(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    net, x = layers().eval(), torch.randn(5, 6)
    export(wrap(net), tk.prune(net, 0.5), x, tmp_path / "m.pt2", format="pt2")
    masked = tk.prune(net, 0.5).apply_(net)
    torch.testing.assert_close(ran(tmp_path / "m.pt2", x)[0], masked(x), rtol=1e-5, atol=1e-6)


def test_half_precision_is_compared_as_such_and_what_no_runtime_takes_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval(), torch.randn(4, 64)
    made = export(net.half(), None, x.half(), tmp_path / "half.onnx")
    assert max(one.error for one in made.checks) < 8 * torch.finfo(torch.float16).eps
    with pytest.raises(EngineError, match=r"ONNX Runtime does not take what was exported: .*NOT_IMPLEMENTED"):
        export(net.bfloat16(), None, x.bfloat16(), tmp_path / "b.onnx")
    with pytest.raises(UsageError, match="no example: their batch has the size 0"):
        export(net.float(), None, x[:0], tmp_path / "none.onnx")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize(
    "put",
    sample([partial(prune.l1_unstructured, name="weight", amount=0.5), nn.utils.weight_norm], 1, ["prune", "norm"]),
)
def test_weights_that_hooks_compute(tmp_path: Path, put: Callable[[nn.Module], nn.Module]) -> None:
    """Before the first call, when the layer holds a tensor that is no leaf, and deepcopy refuses it."""
    torch.manual_seed(0)
    net, x = layers(), torch.randn(5, 6)
    put(net[0])
    export(net, None, x, tmp_path / "m.pt2", format="pt2")
    expected = net.eval()(x)
    torch.testing.assert_close(ran(tmp_path / "m.pt2", x)[0], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tk.compile(net, None, x)(x), expected.detach(), rtol=1e-5, atol=1e-6)
    fresh = layers()
    put(fresh[0])
    with pytest.raises(CaptureError, match=r"cannot be copied .*parametrisation"):
        tk.sparse_training(fresh, None, x)


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(["pointer-lstm@0.25", "gpt@0.25", "lstm@0.25"], 1))
def test_language_models_take_any_batch(tmp_path: Path, name: str) -> None:
    model = language.build(name, vocabulary=20, context=8, dropout=0.0).eval()
    tokens = torch.randint(20, (3, 8))
    made = export(model, None, tokens, tmp_path / "m.pt2", format="pt2")
    assert [one.batch for one in made.checks] == [1, 2, 5]


class Cache:
    """What is for the model's next call, as Transformers' causal language models return it."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Remembers(nn.Linear):
    def forward(self, x: Tensor, use_cache: bool = True) -> tuple[Tensor, Cache | None]:
        return super().forward(x), Cache(x) if use_cache else None


def test_a_model_that_returns_an_object_is_told_what_to_do(tmp_path: Path) -> None:
    model, x = Remembers(6, 3).eval(), torch.randn(2, 6)
    mask = tk.prune(model, 0.5)
    given = {"x": x, "use_cache": False}
    told = "returns a Cache, which torch cannot look into: .* use_cache=False"
    for format in FORMATS:
        with pytest.raises(EngineError, match=told):
            export(model, mask, x, tmp_path / f"model.{format}")
    assert export(model, mask, given, tmp_path / "model.pt2").checks
    with pytest.raises(CaptureError, match=told):
        tk.compile(model, mask, x)
    torch.testing.assert_close(tk.compile(model, mask, given)(**given)[0], mask.apply_(copy.deepcopy(model))(x)[0])


def test_the_ending_says_the_format(tmp_path: Path) -> None:
    net, x = nn.Linear(6, 3), torch.randn(2, 6)
    made = export(net, None, x, tmp_path / "m.PT2")
    assert made.format == "pt2"
    with torch.no_grad():
        torch.testing.assert_close(torch.export.load(made.path).module()(x), net(x))
    for name, wanted in (("m.onnx", "onnx"), ("m", "onnx"), ("m.pt2", "pt2")):
        assert format_of(Path(name), None) == format_of(Path(name), wanted) == wanted
    assert format_of(Path("m.bin"), "pt2") == "pt2"
    with pytest.raises(UsageError, match="named as pt2, and onnx was asked for"):
        export(net, None, x, tmp_path / "other.pt2", format="onnx")
    assert not (tmp_path / "other.pt2").exists()
