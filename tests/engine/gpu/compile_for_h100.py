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

from ticketry.engine.gpu.kernels import group_product
from ticketry.engine.gpu.tuning import Config, configs

POINTERS = {"tiles": "*i32", "rows": "*i32", "places": "*i32"}
DATA = ("x", "weight", "bias", "residual", "out")


def build(tile: int, config: Config, dtype: str, taps: bool, outer: bool):
    constants = {
        "TILE": tile, "PIXELS": config.pixels, "COLUMNS": config.columns, "TAPS": taps, "BORDER": taps,
        "OUTER": outer, "WIDE": False,
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
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {
        "copies": Counter(str(int(size, 16)) for size in sizes),
        "wgmma": len(re.findall(r"wgmma\.mma_async", code)),
        "mma": len(re.findall(r"\bmma\.sync", code)),
        "stores": Counter(re.findall(r"st\.global\S*", code)),
        "local_bytes": sum(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)),
        "shared_bytes": compiled.metadata.shared,
    }


def main() -> None:
    found = []
    for tile in (16, 32, 64, 128):
        # Those of large layers; small ones have less of everything.
        for config in configs(tile, 1 << 20, 8)[:2]:
            for kind in [("bf16", True, False), ("bf16", False, True), ("fp16", True, True)]:
                case = [tile, config.pixels, config.columns, config.warps, config.stages, *kind]
                found.append({"case": case, **facts(build(tile, config, *kind))})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
