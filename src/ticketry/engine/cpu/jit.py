"""Compiles kernels to machine code, once for each, and keeps the objects in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ticketry.engine.cpu.target import Target, binding
from ticketry.errors import EngineError


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

    @property
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
        return name in self._addresses or (cache_folder() / f"{name}.o").exists()

    def _object(self, name: str, kernel: Kernel) -> bytes:
        path = cache_folder() / f"{name}.o"
        try:
            return _opened(path.read_bytes(), name)
        except (OSError, ValueError):
            pass
        self.compiled += 1
        code = self._compile(kernel, name)
        _keep(path, _digest(name, code) + code)
        return code

    def _compile(self, kernel: Kernel, name: str) -> bytes:
        if self._machine is None:
            self._machine = _machine(self.target, jit=True)
        code: bytes = self._machine.emit_object(_optimised(kernel, name, self.target, self._machine))
        return code

    def _add(self, code: bytes) -> None:
        llvm = binding()
        if self._engine is None:
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(self.target, jit=True))
        self._objects.append(code)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))


def assembly(kernel: Kernel, name: str, target: Target) -> str:
    """A kernel as assembly, of any target that LLVM knows."""
    machine = _machine(target)
    text: str = machine.emit_assembly(_optimised(kernel, name, target, machine))
    return text


def relocatable(kernel: Kernel, name: str, target: Target) -> bytes:
    """A kernel as an object file that a linker takes, of any target that LLVM knows."""
    machine = _machine(target)
    code: bytes = machine.emit_object(_optimised(kernel, name, target, machine))
    return code


def _machine(target: Target, jit: bool = False) -> Any:
    llvm = binding()
    if not jit:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
    found = llvm.Target.from_triple(target.triple)
    more = {"jit": True} if jit else {"reloc": "pic"}
    return found.create_target_machine(target.cpu, target.features, opt=3, **more)


def _optimised(kernel: Kernel, name: str, target: Target, machine: Any) -> Any:
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
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=16).hexdigest()


def cache_folder() -> Path:
    """Where compiled kernels are kept: ``$TICKETRY_CACHE``, else ``ticketry/kernels`` in the user's cache folder."""
    given = os.environ.get("TICKETRY_CACHE")
    if given:
        return Path(given) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ticketry" / "kernels"


def _digest(name: str, code: bytes) -> bytes:
    return hashlib.blake2b(code, digest_size=16, salt=name[-16:].encode()).digest()


def _opened(data: bytes, name: str) -> bytes:
    """The object of a cached file, whose first 16 bytes are its digest: a torn, damaged or renamed one is made anew."""
    if _digest(name, data[16:]) != data[:16]:
        raise ValueError("a damaged object")
    return data[16:]


def _keep(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it. A cache that cannot be written to is done without."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
