"""Without Triton there is a clear refusal, and nothing that needs it is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ticketry as tk
from ticketry.errors import MissingExtraError
from ticketry_engine.gpu import compile_gpu, compiled


def test_compile_gpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs triton.*ticketry\[gpu\]"):
        compile_gpu(torch.nn.Linear(2, 2), None, torch.zeros(1, 2))


def test_tk_compile_hands_models_on_a_gpu_over(monkeypatch):
    class OnGpu(torch.nn.Linear):
        def parameters(self, recurse=True):
            return iter([SimpleNamespace(device=torch.device("cuda", 0))])

    monkeypatch.setattr(compiled, "compile_gpu_in_own_precision", lambda *args, **options: (args, options))
    model, x = OnGpu(2, 2), torch.zeros(1, 2)
    options = {"threads": 3, "target": "host", "precision": "bf16"}
    assert tk.compile(model, None, x, threads=3, precision="bf16") == ((model, None, x), options)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="it would measure")
def test_the_benchmark_says_that_there_is_no_gpu():
    script = Path(__file__).parents[3] / "benchmarks" / "engine_gpu.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "engine_gpu: no CUDA device is visible to torch: nothing was measured"
