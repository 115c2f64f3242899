"""Damage, a full disk, a quota, a store that may not be written, and wrong input."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cli.calling import call
from faults.searching import HOW_FAR, ITERATIVE, QUICK, SMALL, Search, assert_same, searched_here, small_disk
from ticketry.cli import main


@pytest.mark.slow
def test_flipped_byte(tmp_path: Path, undisturbed: dict[str, Any], finished_store: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_store, store)
    folder = store / Path(undisturbed["report"]).parent.relative_to(finished_store)
    points = json.loads((folder / "run.json").read_text())["points"]
    trajectory, _, step = next(point["key"] for point in points if point["role"] == "ticket").partition("@")
    record = json.loads(next(store.glob(f"results/*/{trajectory}/{step}.json")).read_text())
    (victim,) = store.glob(f"blobs/*/{record['model']}.safetensors")
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert searched_here(store)["tickets"], "what does not need the file goes on"
    shutil.rmtree(folder / "tickets")  # now it is needed, to write the tickets again
    code, _, err = Search(store, workers=0).finish()
    assert code == 1
    assert "do not match its digest" in err
    assert "ticketry store check --repair" in err
    assert "Traceback" not in err
    assert main(["store", "check", "--store", str(store)]) == 1
    assert main(["store", "check", "--repair", "--store", str(store)]) == 0
    assert main(["store", "check", "--store", str(store)]) == 0
    assert_same(searched_here(store), undisturbed)


@pytest.mark.slow
def test_full_disk(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    with small_disk(tmp_path, "3m") as disk:
        code, _, err = Search(disk / "store", workers=0).finish()
        assert code == 1
        assert "no space is left there" in err
        assert "Traceback" not in err
        assert not list(disk.glob("**/.*.tmp")), "a failed write leaves nothing behind"
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert main(["store", "check", "--store", str(disk / "store")]) == 0
        assert_same(searched_here(disk / "store"), undisturbed)


@pytest.mark.slow
def test_full_disk_at_what_is_written_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's record; benchmarks/full_disk.py tries every write of a search in turn."""
    with small_disk(tmp_path, "100m") as disk:
        store, ballast = disk / "store", disk / "ballast"
        wanted = searched_here(store, quick=SMALL)
        shutil.move(store / "runs", tmp_path / "runs")  # off the disk
        tickets = [{**one, "path": str(tmp_path / Path(one["path"]).relative_to(store))} for one in wanted["tickets"]]
        wanted |= {"tickets": tickets, "report": str(tmp_path / Path(wanted["report"]).relative_to(store))}
        opened = Path.open

        def full(path: Path, mode: str = "r", *args: Any, **named: Any) -> Any:
            if "run.json" in path.name and mode == "wb" and not ballast.exists():
                left = os.statvfs(disk)
                with open(ballast, "wb") as filled:
                    os.posix_fallocate(filled.fileno(), 0, left.f_bfree * left.f_frsize)
            return opened(path, mode, *args, **named)

        monkeypatch.setattr(Path, "open", full)
        code, out, err = call(capsys, *SMALL, "--store", str(store), "--workers", "0")
        assert (code, out) == (1, "")
        assert re.search("no space (is )?left", err.lower())
        assert "Traceback" not in err
        assert not list(disk.glob("**/.*.tmp"))
        ballast.unlink()
        monkeypatch.undo()
        assert_same(searched_here(store, quick=SMALL), wanted)


@pytest.mark.slow  # as a full disk, by another error
def test_a_limit_on_the_size_of_files(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """A limit on the size of a file."""
    limit = 100_000
    search = Search(
        tmp_path / "store", limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)), workers=0
    )
    code, _, err = search.finish()
    assert code == 1
    assert "a limit (ulimit -f) allows" in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("**/.*.tmp"))
    assert_same(searched_here(tmp_path / "store"), undisturbed)


@pytest.mark.slow
def test_read_only_store(tmp_path: Path, finished_store: Path) -> None:
    with small_disk(tmp_path, "100m") as disk:
        shutil.copytree(finished_store, disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        code, _, err = Search(disk / "store", "--seed", "7").finish()
        assert code == 1
        assert "may not be written" in err
        assert "--store" in err
        assert "Traceback" not in err
        code, _, err = Search(disk / "new", workers=0).finish()
        assert (code, "may not be written" in err) == (1, True)
        assert main(["list", "runs", "--store", str(disk / "store")]) == 0


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--densities", "0"), 2, "0 < density <= 1"),
        (("--densities", "1.5"), 2, "0 < density <= 1"),
        (("--densities", "0.00005"), 1, "layer collapse"),
        (("--recipe.optimizer", "adam", "--recipe.momentum", "1.0"), 2, "momentum and beta2 of adam are below 1"),
        (("--recipe.lr", "1e30"), 2, "lr must be a number from 0 to 1e+06"),
        (("--recipe.lr", "1e6", "--recipe.optimizer", "sgd"), 1, "the loss is nan"),
        (("--recipe.lr", "much"), 2, "--recipe.lr"),
        (("--task", "sudoku"), 2, "there is no task 'sudoku'"),
        (("--rewind", "soon"), 2, "500it, 2ep, 3%"),
        (("--model", "gpt"), 1, "gpt"),
        (("--controls", "placebo"), 2, "placebo"),
        (("--colour", "red"), 2, "colour"),
        (("--task", "mnist", "--data", "/nowhere"), 1, "/nowhere"),
        (("--config", "/nowhere/run.toml"), 2, "cannot be read"),
    ],
)
def test_bad_input_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, told: str
) -> None:
    store = tmp_path / "store"
    quick = QUICK if "--densities" not in words else [*ITERATIVE, *QUICK[len(ITERATIVE) + len(HOW_FAR) :]]
    short = ("--recipe.length", "50it")
    found, out, err = call(capsys, *quick, *short, "--store", str(store), "--workers", "0", *words)
    assert (found, out) == (code, "")
    assert told in err
    assert "Traceback" not in err
    if store.exists():
        assert main(["store", "check", "--store", str(store)]) == 0
