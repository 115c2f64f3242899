"""What compiled models read: every kind of tensor, arguments that share memory, and torch's modes and defaults.

As a script it gives all kinds to one model, and prints what came of each: one that reads wild memory ends it.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import ticketry as tk
from engine.models import Of, assert_exact, in_layout
from ticketry.errors import EngineError, UsageError
from ticketry_engine.kernels.target import target
from ticketry_engine.support.process_state import default_dtype

SHAPE = (3, 4, 6, 6)


class Images(nn.Module):
    """One region, from the call's input to its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(self.second(x).mean((2, 3)))


class Mixed(Images):
    """Torch before, between and after regions, with views one of them negated."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(nn.functional.softshrink(x, 0.1)).relu()
        x = torch.imag(torch.complex(x, x).conj())
        return self.head(self.second(x).mean((2, 3))).sin()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "images": Images,
    "mixed": Mixed,
    "torch": lambda: Of(lambda m, x: nn.functional.softshrink(x, 0.1).sin()),
}
"""The last has nothing that the engine knows."""


class Own(torch.Tensor):
    """A subclass that holds its numbers and does as Tensor does."""


class Wrapper(torch.Tensor):
    """A subclass that holds another tensor."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inner = [arg.inner if isinstance(arg, Wrapper) else arg for arg in args]
        return cls(function(*inner, **(kwargs or {})))


class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in ("is_contiguous", "__get__", "data_ptr"):
            return SHAPE
        return super().__torch_function__(function, types, args, kwargs or {})


def _freed(x: Tensor, left: int) -> Tensor:
    x.untyped_storage().resize_(left)
    return x


def _wide(x: Tensor) -> Tensor:
    made = torch.full((*x.shape[:-1], 2 * x.shape[-1]), float("nan"))
    made[..., 1::2] = x
    return made[..., 1::2]


def _view_at_byte(x: Tensor, byte: int) -> Tensor:
    data = bytearray(byte) + bytearray(x.numpy().tobytes())
    return torch.frombuffer(data, dtype=torch.float32, offset=byte).view(x.shape)


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


READ: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda x: x,
    "negated view": lambda x: torch._neg_view(x),
    "imaginary part of a conjugate": lambda x: torch.imag(torch.complex(x, x).conj()),
    "real part of a conjugate": lambda x: torch.real(torch.complex(x, x).conj()),
    "negated and strided": lambda x: torch._neg_view(_wide(x)),
    "of no examples": lambda x: x[:0],
    "of no examples, strided": lambda x: _wide(x)[:0],
    "stride 0": lambda x: x[:1].expand(SHAPE),
    "stride 0 throughout": lambda x: x[0, 0, 0, 0].expand(SHAPE),
    "flipped": lambda x: x.flip(-1),
    "transposed": lambda x: x.transpose(2, 3),
    "behind an offset": lambda x: torch.cat([torch.full((1, 4, 6, 6), float("nan")), x])[1:],
    "behind one number": lambda x: torch.cat([torch.zeros(1), x.flatten()])[1:].view(SHAPE),
    "every second": _wide,
    "channels_last": lambda x: x.to(memory_format=torch.channels_last),
    "channels_last, offset": lambda x: torch.cat([x, x]).to(memory_format=torch.channels_last)[3:],
    "channels_last, every second": lambda x: torch.cat([x, x]).to(memory_format=torch.channels_last)[::2],
    "overlapping": lambda x: torch.randn(500).as_strided(SHAPE, (9, 5, 2, 1)),
    "subclass": lambda x: x.as_subclass(Own),
    "liar": lambda x: x.as_subclass(Liar),
    "parameter": nn.Parameter,
    "buffer": lambda x: nn.Buffer(x),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "has a history": lambda x: x.clone().requires_grad_() * 2,
    "inference tensor": _inference,
    "of numpy": lambda x: torch.from_numpy(np.array(x)),
    "beside whole numbers": lambda x: _view_at_byte(x, 1),
    "beside whole numbers, strided": lambda x: _view_at_byte(x, 3).transpose(2, 3),
    "shared": lambda x: x.clone().share_memory_(),
    "storage larger than needed": lambda x: torch.cat([x, x])[:3],
}
"""Tensors that eager reads, and the engine too."""

REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda x: x.to("meta"),
    "fake": lambda x: FakeTensorMode().from_tensor(x),
    "sparse": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "zero tensor": lambda x: torch._efficientzerotensor(SHAPE),
    "functional": lambda x: torch._to_functional_tensor(x),
    "wrapper": Wrapper,
    "masked": lambda x: torch.masked.masked_tensor(x, x > 0),
    "freed": lambda x: _freed(x, 0),
    "freed in part": lambda x: _freed(x, x.nbytes - 4),
    "freed and negated": lambda x: torch._neg_view(_freed(x, 0)),
    "freed and strided": lambda x: _freed(x.clone().transpose(2, 3), 8),
    "freed and expanded": lambda x: _freed(x[:1].clone().expand(SHAPE), 0),
    **{
        f"of {dtype}": lambda x, dtype=dtype: (x * 3).to(dtype)
        for dtype in (
            *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
            *(torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn),
        )
    },
    "complex, conjugated": lambda x: torch.complex(x, x).conj(),
    "other height": lambda x: x[:, :, :5],
    "other channels": lambda x: torch.cat([x, x], 1),
    "no batch": lambda x: x[0],
    "one axis more": lambda x: x[None],
    "a number": lambda x: x.sum(),
    "no numbers": lambda x: x[:, :0],
    "array": lambda x: x.numpy(),
    "list": lambda x: x.tolist(),
    "none": lambda x: None,
    "text": lambda x: "x",
}
"""Tensors that the engine refuses."""


def compiled(name: str, layout: str, precision: str, threads: int) -> tuple[nn.Module, Any]:
    """A model, and what it is compiled to, all of its regions in one layout."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    mask = tk.prune(model, density=0.4) if name != "torch" else None
    if mask is not None:
        mask.apply_(model)
    fast = tk.compile(model, mask, torch.randn(SHAPE), threads=threads, precision=precision)
    return model, in_layout(fast, layout)


def judged(model: nn.Module, fast: Any, kind: str, make: Callable[[Tensor], Any], bound: float) -> str:
    """Return the outcome for a kind of tensor: "equal", "refused: ...", or what is wrong."""
    x = make(torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)))
    try:
        found = fast(x)
    except EngineError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"raises {type(error).__name__}: {error}"
    if kind in REFUSED:
        return "computed"
    with torch.no_grad():
        wanted = model(x.detach()).as_subclass(Tensor)
    if found.shape != wanted.shape or type(found) is not Tensor or found.requires_grad:
        return f"{type(found)} {found.shape} for {wanted.shape}"
    error = float((found - wanted).abs().max() / (wanted.abs().max() or 1)) if wanted.numel() else 0.0
    return "equal" if error <= bound else f"{error} apart"


def main(name: str, layout: str, precision: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for threads in (1, 2):
        model, fast = compiled(name, layout, precision, threads)
        for kind, make in {**READ, **REFUSED}.items():
            print(f"{threads} threads, {kind}", end=": ", flush=True)
            print(judged(model, fast, kind, make, 1e-5 if precision == "fp32" else 5e-2), flush=True)


PROGRAMS = [
    *(("images", "planes", "fp32"), ("images", "pixels", "fp32"), ("images", "pixels", "bf16")),
    *(("mixed", "planes", "fp32"), ("mixed", "pixels", "bf16"), ("torch", "planes", "fp32")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "layout", "precision"), PROGRAMS)
def test_every_kind_of_tensor_is_read_or_refused(model: str, layout: str, precision: str) -> None:
    if precision == "bf16" and not target("host").bf16:
        pytest.skip("this processor multiplies no bfloat16")
    command = [sys.executable, "-m", "engine.test_inputs", model, layout, precision]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert done.returncode == 0, f"it ended with {done.returncode} at {done.stdout[-300:]} {done.stderr[-2000:]}"
    for threads in (1, 2):
        for kind in (*READ, *REFUSED):
            said = found[f"{threads} threads, {kind}"]
            assert said == "equal" if kind in READ else said.startswith("refused: the input 'x' "), f"{kind}: {said}"


@pytest.fixture(scope="module")
def images() -> tuple[nn.Module, nn.Module]:
    return compiled("images", "planes", "fp32", 1)


def close(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("default", [default_dtype(torch.float64), torch.device("meta")], ids=["float64", "meta"])
def test_defaults_of_torch_do_not_change_what_is_made(images, default):
    model, fast = images
    x = torch.randn(SHAPE)
    with torch.no_grad():
        wanted = model(x)
    with default:
        found = fast(x)
    assert found.dtype == torch.float32
    assert close(found, wanted)


def test_modes_without_memory_are_refused(images):
    _, fast = images
    x = torch.randn(SHAPE)
    with FakeTensorMode(), pytest.raises(EngineError, match="mode of torch"):
        fast(x)
    with pytest.raises(EngineError, match=r"torch\.vmap"):
        torch.vmap(fast)(x[:, None])
    with pytest.raises(EngineError, match=r"torch\.func"):
        torch.func.grad(lambda given: fast(given).sum())(x)
    with pytest.raises(EngineError, match=r"mode of torch|torch\.func"):
        torch.func.grad(lambda other: fast(x).sum() * other)(torch.ones(()))
    with pytest.raises(EngineError, match="trace the model itself"):
        torch.jit.trace(fast, x)


class Two(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x) + super().forward(y).relu(), y


def test_one_tensor_in_several_places_and_views_of_one_memory():
    model = Two(8, 16).eval()
    fast = tk.compile(model, None, (torch.randn(3, 8), torch.randn(3, 8)), threads=1)
    wide = torch.randn(4, 8)
    for x, y in ((wide, wide), (wide[1:], wide[:-1]), (wide[:2].flip(0), wide[:1].expand(2, 8)), (wide[:0], wide[:0])):
        assert_exact(fast, model, (x, y))
    with pytest.raises(EngineError, match="examples"):
        fast(wide, wide[1:])


@pytest.mark.parametrize("kind", ["meta", "sparse", "freed", "fake", "wrapper", "zero tensor"])
def test_examples_are_checked_too(kind):
    with pytest.raises(EngineError, match="an example input"):
        tk.compile(Images().eval(), None, REFUSED[kind](torch.randn(SHAPE)))


def test_weights_without_memory_are_refused():
    with pytest.raises(UsageError, match="meta device"):
        tk.compile(nn.Linear(4, 4, device="meta"), None, torch.randn(2, 4))
    model = nn.Linear(4, 4)
    model.weight.untyped_storage().resize_(0)
    with pytest.raises(EngineError):
        tk.compile(model, None, torch.randn(2, 4))


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_pools_pass_on_what_is_no_number(layout):
    def pools(m: Of, x: Tensor) -> tuple[Tensor, ...]:
        x, max_pool, avg_pool = m.first(x), nn.functional.max_pool2d, nn.functional.avg_pool2d
        return max_pool(x, 2), max_pool(x, 3, 2, 1), max_pool(x, 3, 1, 1), avg_pool(x, 2), avg_pool(x, 3, 2, 1)

    model = Of(pools, first=nn.Conv2d(4, 4, 1, groups=4)).eval()
    fast = in_layout(tk.compile(model, None, torch.randn(SHAPE), threads=1), layout)
    for batch in (1, 16):
        for number in (torch.nan, torch.inf, -torch.inf):
            x = torch.randn(batch, *SHAPE[1:])
            x.view(batch, -1)[:, ::11] = number
            with torch.no_grad():
                wanted = model(x)
            torch.testing.assert_close(fast(x), wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
def test_numbers_of_one_call_are_gone_in_the_next(layout):
    """Working memory is used again: what is multiplied by the zeros at its edges has to be finite."""
    model, fast = compiled("mixed", layout, "fp32", 1)
    for number in (float("nan"), float("inf"), -float("inf"), 3e38):
        for batch in (3, 1, 5):
            fast(torch.full((8, *SHAPE[1:]), number))
            fast(torch.full((batch, *SHAPE[1:]), number))
            x = torch.randn(batch, *SHAPE[1:])
            with torch.no_grad():
                assert close(fast(x), model(x))


def test_inputs_that_another_thread_writes_to_end_nothing(images):
    _, fast = images
    x, stop = torch.randn(SHAPE), threading.Event()

    def write() -> None:
        while not stop.is_set():
            x.uniform_()

    with ThreadPoolExecutor(1) as writer:
        writer.submit(write)
        try:
            made = torch.stack([fast(x) for _ in range(200)])
        finally:
            stop.set()
    assert made.isfinite().all()


if __name__ == "__main__":
    main(*sys.argv[1:])
