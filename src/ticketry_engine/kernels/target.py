"""What processor kernels are made for: its triple, its features, the width and the number of its vector registers."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from ticketry_engine import platforms
from ticketry_engine.errors import EngineError, MissingExtraError
from ticketry_engine.processor import cache_sizes

_X86 = {"avx512": 16, "avx2": 8, "generic": 4}
"""Levels of x86-64, each of which runs what those behind it do: float32 values in a vector register."""

_LINUX = "x86_64-unknown-linux-gnu"

NEAR = 32_000
"""Bytes of inputs that the nearest cache keeps beside weights and outputs."""

WIDE_NEAR, WIDE_NEAR_OF_FEW = 40_000, 44_000
"""The same where it has 48 KB; and of rows that keep less than `FEW` of their inputs, whose weights need less of it.

With single weights ResNet-18, VGG-16 and ResNet-20 took 0.97 to 1.01 of the time with 20 %, 0.93 to 1.0 with 10 % and
0.87 to 0.99 with 5 % (batch 64 and 1; a Zen 5), on a Granite Rapids 0.97 to 0.99, 0.98, and 0.95 to 0.99 with the first
number (batch 64)."""

FEW = 0.15


@dataclass(frozen=True)
class Target:
    """A processor as the generators see it. Two targets that are equal share their compiled kernels."""

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    """float32 values in a vector register."""
    registers: int
    """Vector registers there are."""
    bf16: bool = False
    """Whether it multiplies pairs of bfloat16 (``vdpbf16ps``)."""
    tiles: bool = False
    """Whether it multiplies tiles of them (AMX), and this process may."""
    fused: bool = True
    """Whether it multiplies and adds in one instruction. Where it does not, LLVM would call a function of libm."""
    near: int = NEAR
    """Bytes of inputs that single rows of weights range over before the next row's turn comes."""
    near_of_few: int = NEAR
    """The same of rows that keep less than `FEW` of their inputs."""
    second: int = 2 << 20
    """Bytes of its second cache."""

    @property
    def masks(self) -> bool:
        """Whether it has registers for masks (AVX-512): elsewhere what is read or written by one takes far longer."""
        return self.lanes == _X86["avx512"]

    @property
    def gathers(self) -> bool:
        """Whether it reads a vector's lanes from anywhere in one instruction (AVX2, AVX-512)."""
        return self.lanes >= _X86["avx2"] and self.triple.startswith("x86_64")


_FOREIGN = {
    "avx512": Target("avx512", _LINUX, "x86-64-v4", "", lanes=_X86["avx512"], registers=32),
    "avx2": Target("avx2", _LINUX, "x86-64-v3", "", lanes=_X86["avx2"], registers=16),
    "generic": Target("generic", _LINUX, "x86-64-v2", "", lanes=_X86["generic"], registers=16, fused=False),
    "aarch64": Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", lanes=4, registers=32),
}


def target(name: str = "host") -> Target:
    """The target of a name: ``"host"``, or one whose kernels the host runs too.

    ``"avx512"``, ``"avx2"`` and ``"generic"`` (four lanes, nothing beyond SSE4.2) are levels of x86-64, ``"aarch64"``
    is Arm's 64-bit processors with NEON.

    Raises:
        EngineError: no such name, the host lacks what the name asks for, or no kernels run on this system.
    """
    host = _host()
    if name in ("host", host.name):
        return host
    if name not in _FOREIGN:
        raise EngineError(f"no target {name!r} for kernels: choose from host, {', '.join(_FOREIGN)}")
    if name not in _X86 or _X86[name] > _X86.get(host.name, 0):
        raise EngineError(f"kernels for {name} do not run on this processor ({host.cpu}, {host.name})")
    return replace(foreign(name), triple=host.triple, second=host.second)


def foreign(name: str) -> Target:
    """The target of a name as any host can make code for it, whether it runs that or not.

    Raises:
        EngineError: no such name.
    """
    if name not in _FOREIGN:
        raise EngineError(f"no target {name!r} for kernels: choose from {', '.join(_FOREIGN)}")
    return _FOREIGN[name]


def near_inputs(first: int) -> tuple[int, int]:
    """`Target.near` and `near_of_few` of a processor with AVX-512, by the bytes of its first cache."""
    return (WIDE_NEAR, WIDE_NEAR_OF_FEW) if first >= 48 << 10 else (NEAR, NEAR)


@functools.cache
def _host() -> Target:
    if why := platforms.no_kernels():
        raise EngineError(why)
    llvm = binding()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    flags = {name for name, there in features.items() if there}
    triple = llvm.get_process_triple()
    first, second, _ = cache_sizes()
    common = {"triple": triple, "cpu": llvm.get_host_cpu_name(), "features": features.flatten(), "second": second}
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        half = "avx512bf16" in flags
        tiles = half and {"amx-tile", "amx-bf16"} <= flags and platforms.may_use_tiles()
        near, of_few = near_inputs(first)
        return Target("avx512", **common, lanes=16, registers=32, bf16=half, tiles=tiles, near=near, near_of_few=of_few)
    if {"avx2", "fma"} <= flags:
        return Target("avx2", **common, lanes=8, registers=16)
    if triple.split("-")[0] in ("aarch64", "arm64"):
        return Target("aarch64", **common, lanes=4, registers=32)
    return Target("generic", **common, lanes=4, registers=16, fused="fma" in flags)


def binding() -> Any:
    """llvmlite's binding, imported when it is first needed.

    Raises:
        MissingExtraError: llvmlite is not installed.
    """
    try:
        import llvmlite.binding
    except ImportError as error:
        raise MissingExtraError("llvmlite", "engine", "making kernels for this processor") from error
    return llvmlite.binding
