"""Splits as replicates: one command, each replicate on its own data, tickets and controls of it, paired verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import ticketry as tk
from cli.calling import printed
from ticketry.cli import main
from ticketry.experiments.run_file import read_run_file
from ticketry.lab.store.files import read_sealed
from ticketry.tasks import catalogue


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    tmp_path = tmp_path_factory.mktemp("splits")
    numbers = np.random.default_rng(0).normal(size=(60, 3))
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c", *(",".join(map(str, row)) for row in numbers)]))
    again = ["--retrain", "restart", "--json"]
    words = ["--task", f"table:{path}", "--target", "c", "--model", "mlp-8", "--replicates", "3", "--density", "0.5"]
    more = [
        "--recipe.length",
        "20it",
        "--workers",
        "0",
        "--controls",
        "shuffled",
        "--distribution",
        "erk",
        "--rewind",
        "0",
        "--json",
    ]
    return path, json.loads(printed("search", "oneshot", *words, *more, *again, "--store", str(tmp_path / "store")))


@pytest.mark.slow
def test_each_replicate_is_trained_and_measured_on_its_split(searched: tuple[Path, dict[str, object]]) -> None:
    path, result = searched
    store = tk.Lab(result["store"]).store  # type: ignore[arg-type]
    record = read_sealed(store.paths.run(str(result["run"])) / "run.json")
    assert record is not None
    assert len(record["points"]) == 9
    for point in record["points"]:
        described = store.result(*_parts(point["key"]))
        assert described is not None
        task = described["segment"]["task"]
        assert task["split"] == point["replicate"]
        assert point["test"]["rmse"] > 0
    assert record["task"]["metric"].items() >= {"name": "rmse", "unit": "", "higher_is_better": False}.items()
    (verdict,) = record["verdicts"]
    assert verdict["n"] == 3
    differences = [_value(record, "dense", 0, n) - _value(record, "ticket", 1, n) for n in range(3)]
    assert verdict["difference"] == pytest.approx(np.mean(differences))  # above 0: the ticket's error is lower
    assert path.name in record["task"]["name"]


def test_its_tickets_are_of_their_splits(searched: tuple[Path, dict[str, object]]) -> None:
    for found in searched[1]["tickets"]:  # type: ignore[attr-defined]
        spec = tk.Ticket.load(found["path"]).info["task"]["spec"]
        assert spec["options"] == {"split": str(found["replicate"]), "target": "c"}
        assert (
            catalogue.get(spec["name"], model=spec["model"], options=spec["options"]).key()["split"]
            == found["replicate"]
        )


def test_the_run_file_repeats_it(searched: tuple[Path, dict[str, object]], capsys: pytest.CaptureFixture[str]) -> None:
    result = searched[1]
    config = Path(str(result["report"])).parent / "run.toml"
    assert read_run_file(config)["options"] == {"target": "c"}
    words = ["--config", str(config), "--store", str(result["store"]), "--workers", "0", "--json"]
    assert main(["search", *words]) == 2, "it names a file of a table"
    assert "--trust" in capsys.readouterr().err
    assert main(["search", *words, "--trust"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["run"] == result["run"]
    assert again["now"]["segments_trained"] == 0


def _parts(key: str) -> tuple[str, int]:
    trajectory, _, step = key.partition("@")
    return trajectory, int(step)


def _value(record: dict[str, object], role: str, level: int, replicate: int) -> float:
    (found,) = (
        point["test"]["rmse"]
        for point in record["points"]  # type: ignore[attr-defined]
        if (point["role"], point["level"], point["replicate"]) == (role, level, replicate)
    )
    return float(found)
