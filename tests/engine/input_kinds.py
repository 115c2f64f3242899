"""Every kind of tensor that torch has, given to compiled models: those that are read, and those that are refused.

As a script it gives all of them to one model, and prints what came of each: one that reads wild memory ends it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.errors import EngineError

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


class Torch(nn.Module):
    """Nothing that the engine knows."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softshrink(x, 0.1).sin()


MODELS: dict[str, Callable[[], nn.Module]] = {"images": Images, "mixed": Mixed, "torch": Torch}


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
    """A subclass that says of itself what it is not."""

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


def _fake(x: Tensor) -> Tensor:
    from torch._subclasses import FakeTensorMode

    return FakeTensorMode().from_tensor(x)


def _inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def _overlapping(x: Tensor) -> Tensor:
    return torch.randn(500).as_strided(SHAPE, (9, 5, 2, 1))


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
    "overlapping": _overlapping,
    "subclass": lambda x: x.as_subclass(Own),
    "liar": lambda x: x.as_subclass(Liar),
    "parameter": nn.Parameter,
    "buffer": lambda x: nn.Buffer(x),
    "requires grad": lambda x: x.clone().requires_grad_(),
    "has a history": lambda x: x.clone().requires_grad_() * 2,
    "inference tensor": _inference,
    "of numpy": lambda x: torch.from_numpy(np.array(x)),
    "of numpy, backwards": lambda x: torch.from_numpy(np.array(x)[::-1].copy()),
    "beside whole numbers": lambda x: _view_at_byte(x, 1),
    "beside whole numbers, strided": lambda x: _view_at_byte(x, 3).transpose(2, 3),
    "shared": lambda x: x.clone().share_memory_(),
    "storage larger than needed": lambda x: torch.cat([x, x])[:3],
}
"""Tensors that eager reads, and the engine too."""

REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda x: x.to("meta"),
    "fake": _fake,
    "sparse": lambda x: x.to_sparse(),
    "sparse behind dense": lambda x: x.to_sparse(2),
    "csr": lambda x: x.to_sparse_csr(),
    "csr of a matrix": lambda x: x.flatten(1).to_sparse_csr(),
    "csc": lambda x: x.flatten(1).to_sparse_csc(),
    "bsr": lambda x: x.flatten(1)[:2].to_sparse_bsr((2, 2)),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "quantized by channel": lambda x: torch.quantize_per_channel(
        x, torch.ones(4), torch.zeros(4, dtype=torch.int64), 1, torch.quint8
    ),
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
    "freed, channels_last": lambda x: _freed(x.to(memory_format=torch.channels_last), 16),
    "freed subclass": lambda x: _freed(x.as_subclass(Own), 0),
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
    for native in fast._natives:
        native.layout = layout
    return model, fast


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


if __name__ == "__main__":
    main(*sys.argv[1:])
