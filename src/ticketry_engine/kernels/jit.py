"""Compile each kernel to machine code once, and cache the object files on disk.

    kernel (dataclass) --repr, generator sources, LLVM, target--> name --> kernels/<name>.o in the user's cache

The name is a digest of everything the code depends on, so a stale object can never be loaded.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.target import Target, llvmlite_binding
from ticketry_engine.support.files import digest_of_files, private_cache_folder, read_cached, write_cached


class Kernel(Protocol):
    """Description of a kernel, a frozen dataclass of plain values; equal ``repr`` means equal machine code.

    If the class attribute ``finished`` is true, LLVM does not optimise loops (it only runs clean-up passes).
    """

    def emit(self, name: str, target: Target) -> str:
        """Return the LLVM IR of a module with one function ``void name(i64* state, i64* op)``."""


@dataclass(frozen=True)
class CachedKernel:
    """A kernel that can only be loaded from the cache of compiled kernels, by name; it cannot be compiled again."""

    name: str
    title: str

    def emit(self, name: str, target: Target) -> str:
        raise EngineError(f"the kernel {self.name} is no longer in the cache: compile the model again")


def title(kernel: Kernel) -> str:
    """Return the name under which reports list a kernel."""
    return str(getattr(kernel, "title", type(kernel).__name__.lower()))


class Library:
    """Compiled kernels in memory; a library must live longer than every program that calls its kernels."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.compiled = 0
        """Number of kernels that had to be compiled because no cached object existed."""
        self._engine: Any = None
        self._machine: Any = None
        self._addresses: dict[str, int] = {}
        self._objects: list[Any] = []
        self._read: dict[str, bytes] = {}
        """By kernel name: machine code that was read from the cache but is not in executable memory yet."""
        self._lock = threading.Lock()

    def addresses(self, kernels: Sequence[Kernel]) -> list[int]:
        """Return the address of each kernel's machine code; load or compile the kernels that are not in memory yet."""
        names = [self.name(kernel) for kernel in kernels]
        with self._lock:
            new = {name: kernel for name, kernel in zip(names, kernels, strict=True) if name not in self._addresses}
            for name, kernel in new.items():
                self._add_object_file(self._load_or_compile(name, kernel))
            if new:
                self._engine.finalize_object()
            for name in new:
                self._addresses[name] = self._engine.get_function_address(name)
            return [self._addresses[name] for name in names]

    @functools.cached_property
    def identity(self) -> str:
        """Text that identifies all that machine code depends on: generator sources, LLVM version and target."""
        return f"{_source_digest()} {llvmlite_binding().llvm_version_info} {self.target!r}"

    def name(self, kernel: Kernel) -> str:
        """Return the name of a kernel's machine code: a digest of its description and of `identity`."""
        if isinstance(kernel, CachedKernel):
            return kernel.name
        text = f"{self.identity} {kernel!r}"
        return "k" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def has(self, kernel: Kernel) -> bool:
        """Return whether a kernel's machine code is in memory or in the cache on disk."""
        name = self.name(kernel)
        if name in self._addresses or name in self._read:
            return True
        code = read_cached(private_cache_folder("kernels") / f"{name}.o")
        if code is not None:
            self._read[name] = code  # hold the bytes: the file may be gone when the kernel runs
        return code is not None

    def _load_or_compile(self, name: str, kernel: Kernel) -> bytes:
        path = private_cache_folder("kernels") / f"{name}.o"
        code = self._read.pop(name, None) or read_cached(path)
        if code is None:
            self.compiled += 1
            if self._machine is None:
                self._machine = create_target_machine(self.target, jit=True)
            code = bytes(self._machine.emit_object(optimise(kernel, name, self.target, self._machine)))
            write_cached(path, code)
        return code

    def _add_object_file(self, code: bytes) -> None:
        llvm = llvmlite_binding()
        if self._engine is None:
            self._engine = llvm.create_mcjit_compiler(
                llvm.parse_assembly(""), create_target_machine(self.target, jit=True)
            )
        self._objects.append(code)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))


def create_target_machine(target: Target, **settings: Any) -> Any:
    """Return LLVM's code generator for `target`; `settings` are further arguments of llvmlite's function."""
    found = llvmlite_binding().Target.from_triple(target.triple)
    return found.create_target_machine(target.cpu, target.features, opt=3, **settings)


def optimise(kernel: Kernel, name: str, target: Target, machine: Any) -> Any:
    """Return the LLVM module `name` of a kernel, optimised but not yet translated to machine code."""
    llvm = llvmlite_binding()
    module = llvm.parse_assembly(kernel.emit(name, target))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # generators unroll themselves
    options.loop_vectorization = options.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, options)
    if getattr(kernel, "finished", False):
        passes = llvm.create_new_module_pass_manager()
        passes.add_instruction_combine_pass()
        passes.add_simplify_cfg_pass()
    else:
        passes = builder.getModulePassManager()
    passes.run(module, builder)
    return module


@functools.cache
def _source_digest() -> str:
    """Return a digest of the sources that generate code, so that machine code from other versions is not used."""
    return digest_of_files(Path(__file__).parent.rglob("*.py"))


# -- llvmlite's `ir`; without the extra ``engine``, a stand-in that only supports being imported -----------------------

# Kernel modules name llvmlite's types at import time. Code generation calls `target()` first, which raises
# `MissingExtraError` if llvmlite is missing, so the stand-in's types are never used.


try:
    from llvmlite import ir
except ModuleNotFoundError:

    class _NamedStruct:
        """Stand-in for a type of llvmlite, so that modules can be imported if llvmlite is missing."""

        def __init__(self, *of: Any, **how: Any) -> None:
            pass

    class _Absent:
        def __getattr__(self, name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return _NamedStruct

    ir = _Absent()

__all__ = ["ir"]
