"""What processor kernels are made for: its triple, its features, the width and the number of its vector registers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ticketry.errors import EngineError, MissingExtraError

_NAMED = {
    # name: (LLVM's name of the processor, features beside it)
    "avx512": ("x86-64-v4", ""),
    "avx2": ("x86-64-v3", ""),
}


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


def target(name: str = "host") -> Target:
    """The target of a name: ``"host"``, ``"avx512"`` or ``"avx2"`` (the host's features cut to that level).

    Raises:
        EngineError: no such name, or the host lacks what the name asks for.
    """
    host = _host()
    if name == "host" or name == host.name:
        return host
    if name not in _NAMED:
        raise EngineError(f"no target {name!r} for kernels: choose from host, {', '.join(_NAMED)}")
    if name == "avx512" or host.lanes < 8:
        raise EngineError(f"kernels for {name} do not run on this processor ({host.cpu}, {host.name})")
    cpu, features = _NAMED[name]
    return Target(name, host.triple, cpu, features, lanes=8, registers=16)


@functools.cache
def _host() -> Target:
    llvm = binding()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    flags = {name for name, there in features.items() if there}
    triple = llvm.get_process_triple()
    common = {"triple": triple, "cpu": llvm.get_host_cpu_name(), "features": features.flatten()}
    if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        return Target("avx512", **common, lanes=16, registers=32, bf16="avx512bf16" in flags)
    if {"avx2", "fma"} <= flags:
        return Target("avx2", **common, lanes=8, registers=16)
    return Target("generic", **common, lanes=4, registers=32 if "neon" in flags else 16)


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
