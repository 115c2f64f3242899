"""Compiles kernels to machine code, once for each, and keeps the objects in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ticketry_engine.errors import EngineError
from ticketry_engine.kept_files import digest_of_files, folder, keep, kept
from ticketry_engine.kernels.target import Target, binding


class Kernel(Protocol):
    """What a kernel is made from: a frozen dataclass of plain values, whose ``repr`` tells all its code depends on.

    A class attribute ``finished`` says that its loops are written as they should run: it is only tidied up, which takes
    half the time of LLVM's usual passes.
    """

    def emit(self, name: str, target: Target) -> str:
        """LLVM IR of a module with one function ``void name(i64* state, i64* op)``."""


@dataclass(frozen=True)
class Kept:
    """A kernel known by its name alone: its machine code is in the cache, and what it was made from is not at hand."""

    name: str
    title: str

    def emit(self, name: str, target: Target) -> str:
        raise EngineError(f"the kernel {self.name} is no longer in the cache: compile the model again")


def title(kernel: Kernel) -> str:
    """A kernel's name for people."""
    return str(getattr(kernel, "title", type(kernel).__name__.lower()))


class Library:
    """Kernels as machine code in memory. Lives as long as any program that calls it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.compiled = 0
        """Kernels that had to be compiled: the others were in the cache, or here already."""
        self._engine: Any = None
        self._machine: Any = None
        self._addresses: dict[str, int] = {}
        self._objects: list[Any] = []
        self._read: dict[str, bytes] = {}
        """Machine code by name, read from the cache and not in memory's executable part yet."""
        self._lock = threading.Lock()

    def addresses(self, kernels: Sequence[Kernel]) -> list[int]:
        """The address of each kernel, compiled where it is not there yet."""
        names = [self.name(kernel) for kernel in kernels]
        with self._lock:
            new = {name: kernel for name, kernel in zip(names, kernels, strict=True) if name not in self._addresses}
            for name, kernel in new.items():
                self._add(self._object(name, kernel))
            if new:
                self._engine.finalize_object()
            for name in new:
                self._addresses[name] = self._engine.get_function_address(name)
            return [self._addresses[name] for name in names]

    @functools.cached_property
    def identity(self) -> str:
        """What machine code depends on beside the kernel itself: the generators, LLVM, the target."""
        return f"{_sources()} {binding().llvm_version_info} {self.target!r}"

    def name(self, kernel: Kernel) -> str:
        """The name of a kernel's machine code: a digest of all that it depends on."""
        if isinstance(kernel, Kept):
            return kernel.name
        text = f"{self.identity} {kernel!r}"
        return "k" + hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def has(self, kernel: Kernel) -> bool:
        """Whether a kernel's machine code is here or in the cache."""
        name = self.name(kernel)
        if name in self._addresses or name in self._read:
            return True
        code = kept(folder("kernels") / f"{name}.o")
        if code is not None:
            self._read[name] = code  # what is whole now is what will be run
        return code is not None

    def _object(self, name: str, kernel: Kernel) -> bytes:
        path = folder("kernels") / f"{name}.o"
        code = self._read.pop(name, None) or kept(path)
        if code is None:
            self.compiled += 1
            if self._machine is None:
                self._machine = machine_for(self.target, jit=True)
            code = bytes(self._machine.emit_object(optimised(kernel, name, self.target, self._machine)))
            keep(path, code)
        return code

    def _add(self, code: bytes) -> None:
        llvm = binding()
        if self._engine is None:
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine_for(self.target, jit=True))
        self._objects.append(code)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))


def machine_for(target: Target, **settings: Any) -> Any:
    """LLVM's machine of a target, with settings of its own."""
    found = binding().Target.from_triple(target.triple)
    return found.create_target_machine(target.cpu, target.features, opt=3, **settings)


def optimised(kernel: Kernel, name: str, target: Target, machine: Any) -> Any:
    """A kernel's IR as LLVM's middle end leaves it for a machine."""
    llvm = binding()
    module = llvm.parse_assembly(kernel.emit(name, target))
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_unrolling = False  # the generators unroll what should be
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
def _sources() -> str:
    """A digest of the generators, so that objects made by others than these are not used."""
    return digest_of_files(Path(__file__).parent.rglob("*.py"))
