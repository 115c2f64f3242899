"""Targets by name: the host's, and what its features allow beside it."""

from __future__ import annotations

import builtins
import re
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from arm_emulator import assembly, relocatable
from probes import Constant
from ticketry.errors import EngineError, MissingExtraError
from ticketry_engine.kernels import target as module
from ticketry_engine.kernels.emitter import Emitter
from ticketry_engine.kernels.target import Target, cross_compile_target, llvmlite_binding, near_input_bytes, target

NAMES = ("avx512", "avx2", "generic", "aarch64")


@dataclass(frozen=True)
class Written:
    """A kernel whose IR is at hand."""

    text: str

    def emit(self, name: str, target: Target) -> str:
        return self.text


_AVX512 = Target("avx512", "x86_64-pc-linux-gnu", "znver5", "+avx512f", lanes=16, registers=32)
_AVX2 = Target("avx2", "x86_64-pc-linux-gnu", "haswell", "+avx2", lanes=8, registers=16)
_OLD = Target("generic", "x86_64-pc-linux-gnu", "nehalem", "+sse4.2", lanes=4, registers=16, fused=False)
_NEON = Target("aarch64", "aarch64-unknown-linux-gnu", "neoverse-n1", "+neon", lanes=4, registers=32)


def test_the_host_is_its_own_target() -> None:
    host = target()
    assert target("host") == host == target(host.name)
    assert host.lanes in (4, 8, 16)
    assert host.registers in (16, 32)


@pytest.mark.parametrize(
    ("host", "runs"),
    [
        (_AVX512, ["avx512", "avx2", "generic"]),
        (_AVX2, ["avx2", "generic"]),
        (_OLD, ["generic"]),
        (_NEON, ["aarch64"]),
    ],
)
def test_what_a_host_runs(host: Target, runs: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_host", lambda: host)
    for name in NAMES:
        if name in runs:
            assert target(name).name == name
            assert target(name).triple == host.triple
        else:
            with pytest.raises(EngineError, match=f"{name} do not run on this processor .{host.cpu}"):
                target(name)


def test_rows_range_over_more_inputs_where_the_nearest_cache_of_this_processor_is_larger() -> None:
    assert near_input_bytes(48 << 10) == (40_000, 44_000)
    assert near_input_bytes(32 << 10) == (32_000, 32_000)
    assert {(cross_compile_target(name).near, cross_compile_target(name).near_of_few) for name in NAMES} == {
        (32_000, 32_000)
    }


@pytest.mark.parametrize("name", NAMES)
def test_any_host_makes_code_for_any_target(name: str) -> None:
    made = cross_compile_target(name)
    text = assembly(Constant(5), "five", made)
    assert re.search(r"^five:", text, re.M)
    assert ("rax" in text) == (name != "aarch64")
    magic = relocatable(Constant(5), "five", made)[:20]
    assert magic[:4] == b"\x7fELF"
    assert int.from_bytes(magic[18:20], "little") == (183 if name == "aarch64" else 62)  # EM_AARCH64, EM_X86_64


def test_multiplying_and_adding_calls_no_function() -> None:
    """Where there is no instruction for both, LLVM would call ``fmaf`` lane by lane."""
    for name in NAMES:
        e = Emitter("sum", cross_compile_target(name))
        x = e.load(e.table(0))
        e.store(e.fma(x, x, x), e.table(0))
        written = Written(e.text())
        text = assembly(written, "sum", cross_compile_target(name))
        assert "fmaf" not in text
        assert bool(re.search(r"\b(v?fmadd\d*ps|fmla)\b", text)) == cross_compile_target(name).fused


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(EngineError, match=r"no target 'avx1024' .* choose from avx512"):
        cross_compile_target("avx1024")
    with pytest.raises(EngineError, match=r"no target 'avx1024' .* choose from host, avx512, avx2, generic, aarch64"):
        target("avx1024")


def test_llvmlite_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("llvmlite")]:
        monkeypatch.delitem(sys.modules, name)
    given = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("llvmlite"):
            raise ImportError(name)
        return given(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingExtraError, match=r"pip install 'ticketry\[engine\]'"):
        llvmlite_binding()
