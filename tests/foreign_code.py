"""Kernels as code of any target that LLVM knows, whether this machine runs it or not."""

from __future__ import annotations

from ticketry_engine.kernels.jit import Kernel, machine_for, optimise
from ticketry_engine.kernels.target import Target, binding


def _machine(target: Target):
    binding().initialize_all_targets()
    binding().initialize_all_asmprinters()
    return machine_for(target, reloc="pic")


def assembly(kernel: Kernel, name: str, target: Target) -> str:
    """A kernel as assembly."""
    machine = _machine(target)
    return machine.emit_assembly(optimise(kernel, name, target, machine))


def relocatable(kernel: Kernel, name: str, target: Target) -> bytes:
    """A kernel as an object file that a linker takes."""
    machine = _machine(target)
    return machine.emit_object(optimise(kernel, name, target, machine))
