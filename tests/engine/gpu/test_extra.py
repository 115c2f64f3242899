"""Without Triton there is a clear refusal, and nothing that needs it is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ticketry.engine.gpu import compile_gpu, extra
from ticketry.errors import MissingExtraError


def test_compile_gpu_names_the_extra(monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs triton.*ticketry\[gpu\]"):
        compile_gpu(torch.nn.Linear(2, 2), None, torch.zeros(1, 2))


def test_the_engine_alone_does_not_import_triton():
    program = "import sys, ticketry.engine.gpu, ticketry.engine.gpu.plan\nassert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
