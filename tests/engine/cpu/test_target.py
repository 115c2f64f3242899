"""Targets by name: the host's, and what its features allow beside it."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from ticketry.engine.cpu import target as module
from ticketry.engine.cpu.target import Target, binding, target
from ticketry.errors import EngineError, MissingExtraError

_AVX512 = Target("avx512", "x86_64-pc-linux-gnu", "znver5", "+avx512f", lanes=16, registers=32)
_AVX2 = Target("avx2", "x86_64-pc-linux-gnu", "haswell", "+avx2", lanes=8, registers=16)
_NEON = Target("generic", "aarch64-unknown-linux-gnu", "neoverse-n1", "+neon", lanes=4, registers=32)


def test_the_host_is_its_own_target() -> None:
    host = target()
    assert target("host") == host == target(host.name)
    assert host.lanes in (4, 8, 16)
    assert host.registers in (16, 32)


@pytest.mark.parametrize("host", [_AVX512, _AVX2, _NEON])
def test_what_a_host_runs(host: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_host", lambda: host)
    for name, lanes in (("avx512", 16), ("avx2", 8)):
        if lanes <= host.lanes:
            assert target(name).lanes == lanes
            assert target(name).triple == host.triple
        else:
            with pytest.raises(EngineError, match=f"{name} do not run on this processor .{host.cpu}"):
                target(name)


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(EngineError, match=r"no target 'avx1024' .* choose from host, avx512, avx2"):
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
        binding()
