"""Kernels for Arm run on any host, in Unicorn's emulator: by a library that programs take as they take the host's.

What a kernel reads and writes is this process' own memory, at the same addresses, mapped when it is first touched.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ticketry_engine.kernels.jit import Kernel, Library, create_target_machine, optimise
from ticketry_engine.kernels.program import Driver
from ticketry_engine.kernels.target import Target, cross_compile_target, llvmlite_binding

_CODE, _CODE_BYTES = 1 << 32, 256 << 20
_STACK, _STACK_BYTES = 1 << 33, 1 << 20
_BACK = (1 << 33) + (1 << 30)
"""Address to which a call returns."""

_MEMSET = (0xAA0003E3, 0xB4000082, 0x38001461, 0xF1000442, 0x54FFFFC1, 0xD65F03C0)
"""``mov x3, x0; cbz x2, end; again: strb w1, [x3], #1; subs x2, x2, #1; b.ne again; end: ret``"""
_RETURN = (0xD65F03C0,)

_PAGE, _LOW = (275,), {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""Relocations (ELF for the Arm 64-bit Architecture): a page of an address from here; its low 12 bits, in units of
so many bytes (a power of 2)."""
_CALL, _WHOLE, _APART = (282, 283), {257: "<Q"}, {260: "<q", 261: "<i"}
"""Relocation types of a call, an address, and a relative address."""


class ArmLibrary(Library):
    """Kernels of AArch64 with NEON: a program's driver is a call into the emulator."""

    def __init__(self) -> None:
        super().__init__(cross_compile_target("aarch64"))
        self.calls = 0
        self._emulator = _Emulator()

    def addresses(self, kernels: Sequence[Kernel]) -> list[Any]:
        return [self._driver(kernel) if isinstance(kernel, Driver) else self._address(kernel) for kernel in kernels]

    def _address(self, kernel: Kernel) -> int:
        name = self.name(kernel)
        if name not in self._addresses:
            self._addresses[name] = self._emulator.load(relocatable(kernel, name, self.target), name)
        return self._addresses[name]

    def _driver(self, kernel: Driver) -> Callable[..., None]:
        address = self._address(kernel)

        def drive(*arguments: int) -> None:
            self.calls += 1
            self._emulator.call(address, arguments)

        return drive


@functools.cache
def arm_library() -> ArmLibrary:
    """One for all tests; they are skipped where there is no emulator."""
    pytest.importorskip("unicorn", reason="needs Unicorn, an emulator: pip install unicorn")
    return ArmLibrary()


class _Emulator:
    """A processor that has this process' memory, with separate code."""

    def __init__(self) -> None:
        import unicorn
        from unicorn import arm64_const as registers

        self._unicorn, self._registers = unicorn, registers
        self._uc = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self._uc.reg_write(registers.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors may be used
        self._uc.mem_map(_CODE, _CODE_BYTES)
        self._uc.mem_map(_STACK, _STACK_BYTES)
        self._uc.mem_map(_BACK, 4096)
        self._uc.hook_add(unicorn.UC_HOOK_MEM_UNMAPPED, self._missing)
        self._mapped: list[tuple[int, int]] = []
        self._lost: int | None = None
        self._end = _CODE
        self._outside = {name: self._place(words) for name, words in (("memset", _MEMSET), ("sched_yield", _RETURN))}

    def _place(self, words: Sequence[int]) -> int:
        begin = self._reserve(4 * len(words))
        self._uc.mem_write(begin, struct.pack(f"<{len(words)}I", *words))
        return begin

    def _reserve(self, size: int, align: int = 64) -> int:
        begin = -(-self._end // align) * align
        self._end = begin + size
        assert self._end <= _CODE + _CODE_BYTES, "more code than the emulator has room for"
        return begin

    def load(self, code: bytes, name: str) -> int:
        """An object file's sections, linked; the address of a function."""
        sections = _sections(code)
        begins: dict[int, int] = {}
        for number, (kind, flags, at, size, align, *_) in enumerate(sections):
            if flags & 2 and size:  # takes memory
                begins[number] = self._reserve(size, max(64, align))
                self._uc.mem_write(begins[number], code[at : at + size] if kind != 8 else bytes(size))
        symbols = self._symbols(code, sections, begins)
        for kind, _, at, size, _, goal, _ in sections:
            if kind == 4 and goal in begins:
                for first in range(at, at + size, 24):
                    offset, info, addend = struct.unpack_from("<QQq", code, first)
                    self._relocate(begins[goal] + offset, info & 0xFFFFFFFF, symbols[info >> 32][1] + addend)
        return dict(symbols)[name]

    def _symbols(self, code: bytes, sections: Sequence[Any], begins: dict[int, int]) -> list[tuple[str, int]]:
        ((_, _, at, size, _, _, link),) = [section for section in sections if section[0] == 2]
        names = sections[link][2]
        found = []
        for first in range(at, at + size, 24):
            name_at, _, _, section, value, _ = struct.unpack_from("<IBBHQQ", code, first)
            name = code[names + name_at : code.index(b"\0", names + name_at)].decode()
            if section == 0 and name:
                found.append((name, self._outside[name]))
            else:
                found.append((name, begins.get(section, 0) + value))
        return found

    def _relocate(self, place: int, kind: int, goal: int) -> None:
        if kind in _WHOLE or kind in _APART:
            form, value = (_WHOLE[kind], goal) if kind in _WHOLE else (_APART[kind], goal - place)
            self._uc.mem_write(place, struct.pack(form, value))
            return
        (word,) = struct.unpack("<I", self._uc.mem_read(place, 4))
        if kind in _PAGE:
            pages = (goal >> 12) - (place >> 12)
            word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
        elif kind in _LOW:
            word |= (goal & 0xFFF) >> _LOW[kind] << 10
        elif kind in _CALL:
            word |= (goal - place) >> 2 & 0x3FFFFFF
        else:
            raise NotImplementedError(f"relocation {kind}")
        self._uc.mem_write(place, struct.pack("<I", word))

    def call(self, address: int, arguments: Sequence[int]) -> None:
        """A function of integers. `AssertionError` if it touches memory that this process does not have."""
        uc, registers = self._uc, self._registers
        for number, argument in enumerate(arguments):
            uc.reg_write(registers.UC_ARM64_REG_X0 + number, int(argument))
        uc.reg_write(registers.UC_ARM64_REG_SP, _STACK + _STACK_BYTES - 64)
        uc.reg_write(registers.UC_ARM64_REG_X30, _BACK)
        self._lost = None
        try:
            uc.emu_start(address, _BACK)
        except self._unicorn.UcError as error:
            where = uc.reg_read(registers.UC_ARM64_REG_PC)
            lost = "" if self._lost is None else f", which reads or writes {self._lost:#x}: nobody's memory"
            raise AssertionError(f"{error} at {where:#x}{lost}") from None
        finally:
            while self._mapped:  # another call may find other memory there
                uc.mem_unmap(*self._mapped.pop())

    def _missing(self, _uc: Any, _access: int, address: int, size: int, *_: Any) -> bool:
        for at in {address, address + size - 1}:
            if any(begin <= at < begin + length for begin, length in self._mapped):
                continue
            found = _region(at)
            if found is None:
                self._lost = at
                return False
            self._uc.mem_map_ptr(*found, self._unicorn.UC_PROT_ALL, found[0])
            self._mapped.append(found)
        return True


def _sections(code: bytes) -> list[tuple[int, ...]]:
    """A section of an ELF file: kind, flags, offset, size, alignment, info and link."""
    at, size, count = *struct.unpack_from("<Q", code, 40), *struct.unpack_from("<HH", code, 58)
    found = []
    for number in range(count):
        _, kind, flags, _, begin, length, link, info, align, _ = struct.unpack_from(
            "<IIQQQQIIQQ", code, at + number * size
        )
        found.append((kind, flags, begin, length, align, info, link))
    return found


def _region(address: int) -> tuple[int, int] | None:
    """Yield address and bytes of each readable memory range of this process."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
        bounds, rights, *_ = line.split()
        begin, end = (int(bound, 16) for bound in bounds.split("-"))
        if begin <= address < end:
            return (begin, end - begin) if rights.startswith("r") else None
    return None


def _machine(target: Target):
    llvmlite_binding().initialize_all_targets()
    llvmlite_binding().initialize_all_asmprinters()
    return create_target_machine(target, reloc="pic")


def assembly(kernel: Kernel, name: str, target: Target) -> str:
    """A kernel as assembly."""
    machine = _machine(target)
    return machine.emit_assembly(optimise(kernel, name, target, machine))


def relocatable(kernel: Kernel, name: str, target: Target) -> bytes:
    """A kernel as an object file that a linker takes."""
    machine = _machine(target)
    return machine.emit_object(optimise(kernel, name, target, machine))
