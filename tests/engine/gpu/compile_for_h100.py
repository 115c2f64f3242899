"""Compile the group kernel for compute capability 9.0 and print facts of its code as JSON. Run by a test."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ticketry_engine.gpu.kernels import group_product
from ticketry_engine.gpu.tuning import Config, configs

POINTERS = {"tiles": "*i32", "rows": "*i32", "places": "*i32"}
DATA = ("x", "weight", "bias", "residual", "out")


def build(tile: int, config: Config, dtype: str, taps: bool):
    constants = {
        "TILE": tile, "PIXELS": config.pixels, "COLUMNS": config.columns, "TAPS": taps, "BORDER": taps,
        "WIDE": False,
        "ACT": "relu", "SLOPE": 0.0, "BIAS": True, "RESIDUAL": True, "PRECISION": "tf32", "WIDEN": False,
    }  # fmt: skip
    signature, attributes = {}, {}
    for number, name in enumerate(group_product.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = f"*{dtype}" if name in DATA else POINTERS.get(name, "i32")
        if signature[name][0] == "*":  # torch's memory starts at multiples of 16; of other arguments nothing is known
            attributes[(number,)] = [["tt.divisibility", 16]]
    places = {(group_product.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=group_product, signature=signature, constexprs=places, attrs=attributes)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def facts(compiled) -> dict[str, object]:
    code = compiled.asm["ptx"]
    sizes = re.findall(r"cp\.async\.c[ag]\.\S+ \[[^]]*\], \[[^]]*\], (0x\w+)", code)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage, machine = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    return {
        "copies": Counter(str(int(size, 16)) for size in sizes),
        "wgmma": len(re.findall(r"wgmma\.mma_async", code)),
        "mma": len(re.findall(r"\bmma\.sync", code)),
        "stores": Counter(re.findall(r"st\.global\S*", code)),
        "spills_in_loops": spills_in_loops(machine.splitlines()),
        "local_bytes": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        "shared_bytes": compiled.metadata.shared,
    }


def spills_in_loops(lines: list[str]) -> list[int]:
    """Accesses to local memory in each loop that multiplies: between a branch backwards and where it goes."""
    places: dict[int, int] = {}
    found = []
    for number, line in enumerate(lines):
        if address := re.search(r"/\*([0-9a-f]{4,})\*/\s", line):
            places[int(address.group(1), 16)] = number
        target = re.search(r"\bBRA\S*\s.*?(0x[0-9a-f]+)", line)
        if target and (start := places.get(int(target.group(1), 16), number)) < number:
            loop = lines[start:number]
            if any("HGMMA" in one for one in loop):
                found.append(sum(bool(re.search(r"\b(STL|LDL)\b", one)) for one in loop))
    return found


def main() -> None:
    found = []
    for tile in (16, 32, 64, 128):
        # Those of large layers; small ones have less of everything.
        for config in configs(tile, 1 << 20, 8)[:2]:
            for kind in [("bf16", True), ("bf16", False), ("fp16", True)]:
                case = [tile, config.pixels, config.columns, config.warps, config.stages, *kind]
                found.append({"case": case, **facts(build(tile, config, *kind))})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
