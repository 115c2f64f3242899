"""The scripts in examples/ run."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import ticketry as tk

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path, *words: str, needs: tuple[str, ...] = (), **environment: str) -> str:
    """Run an example in an empty folder; return its standard output."""
    for module in (*needs, "sklearn"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def percents(out: str) -> list[float]:
    return [float(one) for one in re.findall(r"([\d.]+) %", out)]


@pytest.mark.slow
def test_own_loop(tmp_path: Path) -> None:
    told = percents(run("own_loop.py", tmp_path))
    assert told[0] > 90
    assert told[-1] > 85
    assert tk.Ticket.load(tmp_path / "ticket-of-my-own-loop").mask.density == pytest.approx(0.6**5, rel=1e-2)


@pytest.mark.slow
def test_timm(tmp_path: Path) -> None:
    if not imported("timm"):
        pytest.skip("timm does not load: pip install 'ticketry[timm]'")
    told = percents(run("with_timm.py", tmp_path, needs=("timm",)))
    assert told[-2] == 20
    assert told[-1] > 80
    ticket = tk.Ticket.load(tmp_path / "timm")
    assert ticket.mask.density == pytest.approx(0.2, rel=1e-2)


def imported(module: str) -> bool:
    """Return whether a library loads; timm needs a torchvision built for this torch."""
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs", "density", "right"),
    [
        ("lightning", ("lightning",), 0.1, 85),
        ("transformers", ("transformers", "accelerate"), 0.3, 80),
        ("accelerate", ("accelerate",), 0.15, 85),
    ],
)
def test_trainers(name: str, needs: tuple[str, ...], density: float, right: float, tmp_path: Path) -> None:
    told = percents(run(f"with_{name}.py", tmp_path, needs=needs))
    assert told[-1] > right
    ticket = tk.Ticket.load(tmp_path / f"ticket-from-{name}")
    assert ticket.mask.density == pytest.approx(density, rel=1e-2)
    trained = ticket.trained
    assert trained is not None
    assert not any(trained[parameter][~kept].any() for parameter, kept in ticket.mask.items())


@pytest.mark.slow
def test_a_sweep(tmp_path: Path) -> None:
    file = tmp_path / "sweep.toml"
    shorter = (EXAMPLES / "sweep.toml").read_text().replace('"3ep"', '"1ep"').replace("lr = [0.1, 0.05]", "lr = [0.1]")
    file.write_text(shorter)
    out = run("sweep.py", tmp_path, str(file))
    assert out.count("validation") == 4
    assert len(list((tmp_path / "sweep-store" / "runs").iterdir())) == 4


@pytest.mark.slow
def test_other_runtimes(tmp_path: Path) -> None:
    out = run("serve_elsewhere.py", tmp_path, needs=("onnx", "onnxscript", "onnxruntime", "openvino"))
    differences = [float(one) for one in re.findall(r"largest difference ([\d.e-]+)", out)]
    assert len(differences) == 2
    assert max(differences) < 1e-4


@pytest.mark.slow
def test_a_service_under_load(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    needs = ("fastapi", "uvicorn", "httpx", "llvmlite", "onnx", "onnxscript", "onnxruntime")
    out = run("load_service.py", tmp_path, needs=needs, PORT=str(port))
    assert percents(out)[0] > 85
    rates = re.findall(r"/(ticket|dense) +(\d+) requests", out)
    assert [name for name, _ in rates] == ["ticket", "dense"]
    assert all(int(rate) > 0 for _, rate in rates)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_comparison_for_a_paper(tmp_path: Path) -> None:
    """Custom data, four methods, three seeds, figures, a LaTeX table and a verdict."""
    (tmp_path / "stripes.py").write_text((EXAMPLES / "stripes.py").read_text())
    (tmp_path / "ticketry").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ticketry "$@"\n')
    (tmp_path / "ticketry").chmod(0o755)
    done = subprocess.run(
        ["sh", EXAMPLES / "comparison.sh", "10it", "train=100"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "verdict  " in done.stdout
    listed = [line.split()[0] for line in done.stdout.splitlines() if " done " in line]
    assert {"SNIP", "EarlyCroP", "IMP", "CS"} <= set(listed)
    table = (tmp_path / "figures" / "results.tex").read_text()
    rows = [line.split(" & ")[0] for line in table.splitlines() if line.endswith("\\\\")]
    assert rows == ["method", "SNIP", "EarlyCroP", "IMP", "CS"]
    figure = (tmp_path / "figures" / "comparison-metric-by-density.svg").read_text()
    assert all(name in figure for name in ("SNIP", "EarlyCroP", "IMP", "CS"))
    assert (tmp_path / "figures" / "comparison-metric-by-density.pdf").is_file()
