"""What Triton makes of the group kernel for an H100: vectors of 16 bytes, tensor cores, no spills. Needs no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ticketry[gpu]'")

pytestmark = pytest.mark.slow

HELPER = Path(__file__).with_name("compile_for_h100.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Facts of the code for each tile, number format and kind of layer, made in a process without the interpreter."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, str(HELPER)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {tuple(entry["case"]): entry for entry in json.loads(done.stdout.splitlines()[-1])}


def test_the_first_candidates_of_every_tile_were_compiled(made):
    assert {case[0] for case in made} == {16, 32, 64, 128}


def test_gathers_are_asynchronous_copies_of_16_bytes(made):
    for case, entry in made.items():
        assert entry["copies"].keys() == {"16"}, case
        # x and the weight, of every step that is in shared memory at once, each once
        tile, pixels, columns, warps, stages = case[:5]
        assert entry["copies"]["16"] == (tile + pixels) * columns * 2 // 16 // (32 * warps) * stages or tile < 64, case


def test_products_are_warp_group_products(made):
    assert all(entry["wgmma"] > 0 and entry["mma"] == 0 for entry in made.values())


def test_nothing_is_spilled_where_it_counts(made):
    """Not in the loop; and nowhere but at the end of the largest tiles, with 128 sums in each thread."""
    for case, entry in made.items():
        assert entry["spills_in_loops"] == [0], case
        assert entry["local_bytes"] == 0 or case[0] * case[1] > 1 << 14, case
        assert entry["shared_bytes"] <= 227 * 1024, case


def test_stores_are_vectors_of_16_bytes(made):
    assert all(set(entry["stores"]) == {"st.global.v4.b32"} for entry in made.values())
