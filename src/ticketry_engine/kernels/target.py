"""The processor that kernels are compiled for: instruction set, vector registers and cache sizes."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from ticketry_engine import processor
from ticketry_engine.errors import EngineError, MissingExtraError
from ticketry_engine.processor import cache_bytes

_X86 = {"avx512": 16, "avx2": 8, "generic": 4}
"""By x86-64 level: float32 values per vector register. A processor of one level also runs code of the later levels."""

_LINUX = "x86_64-unknown-linux-gnu"

NEAR = 32_000
"""Bytes of an L1 cache of 32 KB that are used for inputs; the rest is left to weights and outputs."""

WIDE_NEAR, WIDE_NEAR_OF_FEW = 40_000, 44_000
"""Bytes of an L1 cache of 48 KB that are used for inputs; the second number is for layers with a density below `FEW`.

Rows of such layers need less of the cache for their weights. Both numbers were chosen by measurement on ResNet-18,
VGG-16 and ResNet-20."""

FEW = 0.15
"""Share of retained weights in a layer below which `Target.near_of_few` replaces `Target.near`."""


@dataclass(frozen=True)
class Target:
    """The properties of a processor on which generated code depends; equal targets share compiled kernels."""

    name: str
    triple: str
    cpu: str
    features: str
    lanes: int
    """float32 values per vector register."""
    registers: int
    bf16: bool = False
    """Whether the processor multiplies pairs of bfloat16 (``vdpbf16ps``)."""
    tiles: bool = False
    """Whether the processor multiplies tiles of bfloat16 (AMX), and the system lets this process use them."""
    fused: bool = True
    """Whether the processor has a fused multiply-add instruction; without it, LLVM's ``fma`` would call libm."""
    near: int = NEAR
    """Bytes of inputs that a planar kernel reads for one part of a weight row, so that they stay in the L1 cache."""
    near_of_few: int = NEAR
    """The value of `near` for layers with a density below `FEW`."""
    second: int = 2 << 20
    """Size of the L2 cache in bytes."""

    @property
    def has_masked_memory_access(self) -> bool:
        """Whether the processor has mask registers (AVX-512); without them, masked loads and stores are far slower."""
        return self.lanes == _X86["avx512"]

    @property
    def has_gather(self) -> bool:
        """Whether one instruction can load the lanes of a vector from arbitrary addresses (AVX2, AVX-512)."""
        return self.lanes >= _X86["avx2"] and self.triple.startswith("x86_64")


_FOREIGN = {
    "avx512": Target("avx512", _LINUX, "x86-64-v4", "", lanes=_X86["avx512"], registers=32),
    "avx2": Target("avx2", _LINUX, "x86-64-v3", "", lanes=_X86["avx2"], registers=16),
    "generic": Target("generic", _LINUX, "x86-64-v2", "", lanes=_X86["generic"], registers=16, fused=False),
    "aarch64": Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "+neon", lanes=4, registers=32),
}


def target(name: str = "host") -> Target:
    """Return the target called `name`: this machine (``"host"``), or a target whose code this machine can run.

    ``"avx512"``, ``"avx2"`` and ``"generic"`` (four lanes, SSE4.2) are levels of x86-64; ``"aarch64"`` is 64-bit Arm
    with NEON. Raise `EngineError` if this machine cannot run code of this target.
    """
    host = _host()
    if name in ("host", host.name):
        return host
    if name not in _FOREIGN:
        raise EngineError(f"no target {name!r} for kernels: choose from host, {', '.join(_FOREIGN)}")
    if name not in _X86 or _X86[name] > _X86.get(host.name, 0):
        raise EngineError(f"kernels for {name} do not run on this processor ({host.cpu}, {host.name})")
    return replace(cross_compile_target(name), triple=host.triple, second=host.second)


def cross_compile_target(name: str) -> Target:
    """Return the target called `name` for cross-compilation, even if this machine cannot run its code."""
    if name not in _FOREIGN:
        raise EngineError(f"no target {name!r} for kernels: choose from {', '.join(_FOREIGN)}")
    return _FOREIGN[name]


def near_input_bytes(first: int) -> tuple[int, int]:
    """Return (`Target.near`, `Target.near_of_few`) for an AVX-512 processor with an L1 cache of `first` bytes."""
    return (WIDE_NEAR, WIDE_NEAR_OF_FEW) if first >= 48 << 10 else (NEAR, NEAR)


@functools.cache
def _host() -> Target:
    if why := processor.why_kernels_do_not_run():
        raise EngineError(why)
    llvm = llvmlite_binding()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    flags = {name for name, there in features.items() if there}
    triple = llvm.get_process_triple()
    first, second, _ = cache_bytes()
    common = {"triple": triple, "cpu": llvm.get_host_cpu_name(), "features": features.flatten(), "second": second}
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        half = "avx512bf16" in flags
        tiles = half and {"amx-tile", "amx-bf16"} <= flags and processor.request_amx_tiles()
        near, of_few = near_input_bytes(first)
        return Target("avx512", **common, lanes=16, registers=32, bf16=half, tiles=tiles, near=near, near_of_few=of_few)
    if {"avx2", "fma"} <= flags:
        return Target("avx2", **common, lanes=8, registers=16)
    if triple.split("-")[0] in ("aarch64", "arm64"):
        return Target("aarch64", **common, lanes=4, registers=32)
    return Target("generic", **common, lanes=4, registers=16, fused="fma" in flags)


def llvmlite_binding() -> Any:
    """Import and return the module ``llvmlite.binding``; raise `MissingExtraError` if llvmlite is not installed."""
    try:
        import llvmlite.binding
    except ImportError as error:
        raise MissingExtraError("llvmlite", "engine", "making kernels for this processor") from error
    return llvmlite.binding
