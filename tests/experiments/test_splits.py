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
from ticketry.lab.store.files import read_with_digest
from ticketry.tasks import catalogue


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    tmp_path = tmp_path_factory.mktemp("splits")
    numbers = np.random.default_rng(0).normal(size=(60, 3))
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c", *(",".join(map(str, row)) for row in numbers)]))
    words = ["--task", f"table:{path}", "--target", "c", "--model", "mlp-8", "--replicates", "3", "--density", "0.5"]
    more = "--recipe.length 20it --workers 0 --controls shuffled --distribution erk --rewind 0 --retrain restart --json"
    store = str(tmp_path / "store")
    return path, json.loads(printed("search", "oneshot", *words, *more.split(), "--store", store))


def test_each_replicate_is_trained_and_measured_on_its_split(searched: tuple[Path, dict[str, object]]) -> None:
    path, result = searched
    store = tk.Lab(result["store"]).store  # type: ignore[arg-type]
    record = read_with_digest(store.paths.run(str(result["run"])) / "run.json")
    assert record is not None
    assert len(record["points"]) == 9
    for point in record["points"]:
        trajectory, _, step = point["key"].partition("@")
        assert store.load_result(trajectory, int(step))["segment"]["task"]["split"] == point["replicate"]
    assert record["task"]["metric"].items() >= {"name": "rmse", "unit": "", "higher_is_better": False}.items()
    (verdict,) = record["verdicts"]
    assert verdict["n"] == 3
    errors = {(one["role"], one["replicate"]): one["test"]["rmse"] for one in record["points"]}
    differences = [errors["dense", n] - errors["ticket", n] for n in range(3)]
    assert verdict["difference"] == pytest.approx(np.mean(differences))  # above 0: the ticket's error is lower
    assert path.name in record["task"]["name"]
    for found in result["tickets"]:  # type: ignore[attr-defined]
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
