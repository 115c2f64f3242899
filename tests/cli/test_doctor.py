"""What `ticketry doctor` tells, against what is otherwise known of this machine and of pyproject.toml."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cli.calling import call
from ticketry.cli.doctor import EXTRAS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def test_what_is_here(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKETRY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TICKETRY_DATA", raising=False)
    (tmp_path / "cache" / "kernels").mkdir(parents=True)
    (tmp_path / "cache" / "kernels" / "one").write_bytes(bytes(2_500_000))
    ptb = tmp_path / "data" / "ptb"
    ptb.mkdir(parents=True)
    for part in ("train", "valid", "test"):
        (ptb / f"ptb.{part}.txt").write_text("the word")
    code, out, _ = call(capsys, "doctor", "--data", str(tmp_path / "data"), "--json")
    told = json.loads(out)
    assert code == 0
    found = {one["part"]: one for section in list(told.values())[1:] for one in section}
    assert told["environment"]["torch"] == version("torch")
    assert found["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))},")
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert ("AVX-512" in found["vectors"]["found"]) == ("avx512f" in flags)
    assert found["precision"]["found"].startswith("bfloat16") == bool({"avx512_bf16", "amx_bf16", "bf16"} & flags)
    assert found["kernels"]["found"] == f"2.5 MB, {tmp_path / 'cache' / 'kernels'}"
    assert found["ptb"]["found"] == str(ptb)
    assert found["mnist"]["found"] == "not found; downloaded when it is needed"
    assert found["engine"]["found"] == f"llvmlite {version('llvmlite')}"
    assert not (tmp_path / "cache" / "mnist").exists()


def test_extras_are_those_of_the_install_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "install.md").read_text()
    table = page.partition("| extra | what it adds |")[2].partition("\n\n")[0]
    named = {extra for row in table.splitlines() for extra in re.findall(r"`([a-z]+)`", row.split(" | ")[0])}
    assert named - {"demo", "dev", "docs", "rl"} == set(EXTRAS)


def test_extras_are_those_of_the_package() -> None:
    file = Path(__file__).parents[2] / "pyproject.toml"
    told = tomllib.loads(file.read_text())["project"]["optional-dependencies"]
    mine = {extra: {re.split(r"[\[><=; ]", one)[0] for one in packages} for extra, packages in told.items()}
    others = ("cluster", "demo", "dev", "docs", "rl")
    own = {name: packages for name, packages in mine.items() if name not in others}
    assert {extra: set(packages) for extra, (packages, _) in EXTRAS.items()} == own
