"""What Triton makes of the group kernel for an H100: vectors of 16 bytes, tensor cores, no spills. Needs no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install 'ticketry[gpu]'")

POINTERS = {"tiles": "*i32", "rows": "*i32", "places": "*i32"}
DATA = ("x", "weight", "bias", "residual", "out")


def build(tile: int, config: Any, dtype: str, taps: bool) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ticketry_engine.gpu.kernels import group_product

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
    """Print facts of the code for each tile, number format and kind of layer as JSON."""
    from ticketry_engine.gpu.plan import candidate_configs

    found = []
    for tile in (16, 32, 64, 128):
        for config in candidate_configs(tile, 1 << 20, 8)[:2]:  # of large layers; small ones have less of everything
            for kind in [("bf16", True), ("bf16", False), ("fp16", True)]:
                case = [tile, config.pixels, config.columns, config.warps, config.stages, *kind]
                found.append({"case": case, **facts(build(tile, config, *kind))})
    print(json.dumps(found))


@pytest.mark.slow
def test_the_code_has_wide_copies_and_stores_tensor_cores_and_no_spills(tmp_path: Path) -> None:
    """Made in a process without the interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    made = {tuple(entry["case"]): entry for entry in json.loads(done.stdout.splitlines()[-1])}
    assert {case[0] for case in made} == {16, 32, 64, 128}
    for case, entry in made.items():
        tile, pixels, columns, warps, stages = case[:5]
        assert entry["copies"].keys() == {"16"}, case
        # x and the weight, of every step that is in shared memory at once, each once
        assert entry["copies"]["16"] == (tile + pixels) * columns * 2 // 16 // (32 * warps) * stages or tile < 64, case
        assert entry["wgmma"] > 0, case
        assert entry["mma"] == 0, case
        # nothing is spilled in the loop; elsewhere only at the end of the largest tiles, with 128 sums in each thread
        assert entry["spills_in_loops"] == [0], case
        assert entry["local_bytes"] == 0 or tile * pixels > 1 << 14, case
        assert entry["shared_bytes"] <= 227 * 1024, case
        assert set(entry["stores"]) == {"st.global.v4.b32"}, case


if __name__ == "__main__":
    main()
