"""The wheel as a stranger gets it: built, checked, installed into an empty environment, used without this checkout.

    python .ci/check_wheel.py [--python python3.12] [--torch 2.10.0] [--demo]

Without extras first: how many packages and megabytes it brings beside torch's own (above the limits it fails), what
is said where an extra is missing, a loop of one's own, a sample of the tests. Then the demo, with its extra. What it
builds stays in `dist/`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PACKAGES, MEGABYTES = 25, 150
TESTS = ("core/test_mask.py", "core/test_prune.py", "core/sparse_training/test_hold.py", "test_public.py")
"""A sample: what makes and holds masks, and that importing stays light."""
WITH_DEMO = ("records", "evidence/judging", "report/test_wording.py")
"""A sample of what needs the extra `lab`."""
OWN_LOOP = """
import torch, ticketry as tk
model = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
start = {name: value.clone() for name, value in model.state_dict().items()}
mask = tk.prune(model, density=0.5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
with tk.hold(model, mask):
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.randn(64, 20)), torch.randint(0, 2, (64,))).backward()
        optimizer.step()
assert all((value[~mask[name]] == 0).all() for name, value in model.named_parameters() if name in mask)
tk.Ticket(mask, start, {"method": "one-shot"}, trained=model.state_dict()).save("own-ticket")
tk.Ticket.load("own-ticket").apply(model, "trained")
channels = tk.structure.channels(model, torch.randn(4, 20), density=0.5)
assert tk.shrink(model, channels, torch.randn(4, 20))(torch.randn(3, 20)).shape == (3, 2)
"""
"""Code that needs no extra."""
TEST_TOOLS = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis")


def main() -> None:
    """Every step stops the script where it fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="the Python to install into")
    parser.add_argument("--torch", help="a version of torch; else the one that constraints.txt names")
    parser.add_argument("--demo", action="store_true", help="also the search of `make demo`, a minute or two")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ticketry-wheel-") as made:
        folder = Path(made)
        wheel, sdist = _build(folder / "tools")
        python, constraints = _create_environment(folder / "empty", given.python), _constraints(folder, given.torch)
        _install(python, constraints, "torch", "numpy")
        before = _list_packages(python)
        _install(python, constraints, str(wheel))
        _weigh(before, _list_packages(python))
        _use_package(python, constraints, sdist, folder / "elsewhere", demo=given.demo)


def _build(tools: Path) -> tuple[Path, Path]:
    """The wheel, made of the sdist as `build` does it, so that what the sdist lacks is missed here."""
    python = _create_environment(tools, sys.executable)
    _run(python, "-m", "pip", "install", "--quiet", "build", "twine", "check-wheel-contents")
    shutil.rmtree(DIST, ignore_errors=True)
    _run(python, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    _run(python, "-m", "twine", "check", "--strict", wheel, sdist)
    _run(python, "-m", "check_wheel_contents", wheel)
    return wheel, sdist


def _create_environment(folder: Path, python: str) -> Path:
    if os.path.realpath(python) == os.path.realpath(sys.executable):
        venv.create(folder, with_pip=True)
    else:
        _run(python, "-m", "venv", folder)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _constraints(folder: Path, torch: str | None) -> Path:
    """The tested versions, with another torch if one is given."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    if torch:
        lines = [f"torch=={torch}" if line.startswith("torch==") else line for line in lines]
    (written := folder / "constraints.txt").write_text("\n".join(lines))
    return written


def _install(python: Path, constraints: Path, *what: str) -> None:
    _run(python, "-m", "pip", "install", "--quiet", "--no-compile", "-c", constraints, *what)


def _list_packages(python: Path) -> dict[str, float]:
    """Package -> megabytes of the files that its record names."""
    code = (
        "from importlib.metadata import distributions as d\n"
        "for one in d():\n"
        "    found = [one.locate_file(f) for f in one.files or ()]\n"
        "    print(one.name, sum(f.stat().st_size for f in found if f.is_file()) / 1e6)\n"
    )
    lines = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: float(size) for name, size in map(str.split, lines)}


def _weigh(before: dict[str, float], after: dict[str, float]) -> None:
    added = {name: size for name, size in after.items() if name not in before}
    added["numpy"] = after["numpy"]  # torch takes it if it is there, and does not ask for it
    for name, size in sorted(added.items(), key=lambda one: -one[1]):
        print(f"{size:8.1f} MB  {name}")
    print(f"{len(added)} packages besides torch's own, {sum(added.values()):.0f} MB")
    if len(added) > PACKAGES or sum(added.values()) > MEGABYTES:
        sys.exit(f"at most {PACKAGES} packages and {MEGABYTES} MB are promised")


def _use_package(python: Path, constraints: Path, sdist: Path, folder: Path, *, demo: bool) -> None:
    """Commands, tests and the demo, in a folder that has the sdist's tests and nothing of its source."""
    folder.mkdir()
    command = [python, "-m", "ticketry"]
    for arguments in (["--version"], ["--help"], ["list", "methods"], ["doctor"]):
        _run(*command, *arguments, cwd=folder, quiet=True)
    _run(python, "-c", OWN_LOOP, cwd=folder)
    _names_the_extra([*command, "demo"], "demo", folder)
    _names_the_extra([*command, "search", "iterative", "--task", "mnist"], "lab", folder)
    _install(python, constraints, *TEST_TOOLS)
    with tarfile.open(sdist) as packed:
        wanted = [m for m in packed.getmembers() if m.name.split("/")[1] in ("tests", "pyproject.toml")]
        packed.extractall(folder, members=wanted, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (unpacked,) = folder.glob("ticketry-*")
    code = "import sys, ticketry; print(ticketry.__file__); sys.exit('site-packages' not in ticketry.__file__)"
    _run(python, "-c", code, cwd=unpacked)
    _tested(python, TESTS, unpacked)
    if demo:
        _install(python, constraints, f"{next(DIST.glob('*.whl'))}[demo]")
        _tested(python, WITH_DEMO, unpacked)
        (folder / "told.json").write_text(
            subprocess.run(
                [*command, "demo", "--json"], cwd=folder, env=_elsewhere(), stdout=subprocess.PIPE, check=True
            ).stdout.decode()
        )
        _run(python, ROOT / ".ci/check_demo.py", cwd=folder, stdin=folder / "told.json")


def _tested(python: Path, names: Sequence[str], unpacked: Path) -> None:
    tests = [f"tests/{name}" for name in names]
    _run(python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *tests, cwd=unpacked)


def _names_the_extra(command: list[str | Path], extra: str, folder: Path) -> None:
    """A command that lacks packages ends at once, and says how they are to be had."""
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=_elsewhere(), capture_output=True, text=True, check=False
    )
    if ended.returncode != 1 or f"pip install 'ticketry[{extra}]'" not in ended.stderr:
        sys.exit(f"{command}: {ended.returncode}, {ended.stderr}")


def _elsewhere() -> dict[str, str]:
    """An environment that knows nothing of this checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _run(*command: str | Path, cwd: Path | None = None, quiet: bool = False, stdin: Path | None = None) -> None:
    with open(stdin or os.devnull) as given:
        subprocess.run(
            list(map(str, command)), cwd=cwd, env=_elsewhere(), check=True, stdin=given,
            stdout=subprocess.DEVNULL if quiet else None,
        )  # fmt: skip


if __name__ == "__main__":
    main()
