"""ticketry compile, bench and export, as a user types them, with real engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from cli.calling import call
from ticketry.lab.store.files import read_with_digest
from ticketry.tasks.models import build
from ticketry_engine.kernels.target import target

ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'ticketry[onnx]'")

FAST = ["--batch", "1,16", "--rounds", "2", "--against", "eager"]


@pytest.fixture(scope="module")
def channel_ticket(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A channel-wise ticket of a convolutional network, as a search would save it."""
    torch.manual_seed(0)
    task = tk.task("cifar10", model="resnet-20-8")
    model = task.build()
    mask = tk.structure.channels(model.eval(), task.example(2), density=0.5)
    state = model.state_dict()
    spec = {"name": "cifar10", "model": "resnet-20-8", "options": {}}
    info = {"task": {"name": "cifar10", "spec": spec, "key": dict(task.key())}}
    return tk.Ticket(mask, state, json.loads(json.dumps(info)), state).save(tmp_path_factory.mktemp("t") / "channels")


def test_compile_writes_a_file_that_runs_without_the_ticket(
    ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, "compile", str(ticket), "--json")
    record = json.loads(out)
    file = tmp_path / f"{ticket.name}.tk"
    assert (code, err, record["kind"], record["path"], record["density"]) == (0, "", "compile", file.name, 0.5)
    assert record["bytes"] == file.stat().st_size < 0.8 * record["dense_bytes"]
    assert 0 <= record["relative_error"] < 1e-5
    rows = {row["name"]: row for row in record["layers"]}
    mask = tk.Ticket.load(ticket).mask
    for name in ("fc1", "fc2", "fc3"):
        assert rows[name]["where"] == "engine"
        assert rows[name]["kept"] == int(mask[f"{name}.weight"].sum())
        assert rows[name]["seconds"] > 0
    x = torch.randn(5, 1, 8, 8)
    source = tk.Ticket.load(ticket).apply(build("lenet-300-100", shape=(1, 8, 8), classes=10), "trained").eval()
    with torch.no_grad():
        torch.testing.assert_close(tk.engine.load(file)(x), source(x), rtol=1e-4, atol=1e-5)


def test_bench_in_json_and_in_the_store(
    ticket: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(ticket), *FAST, "--store", str(store), "--json", "-o", str(tmp_path / "bench.json")]
    code, out, err = call(capsys, *words)
    record = json.loads(out)
    assert (code, err, record["kind"], record["run"]) == (0, "", "bench", ticket.parents[1].name)
    assert json.loads((tmp_path / "bench.json").read_text()) == record
    assert read_with_digest(store / "evidence" / f"{record['name']}.json") == record
    assert [one["batch"] for one in record["comparisons"]] == [1, 16]
    for one in record["comparisons"]:
        assert [row["engine"] for row in one["times"]] == ["eager", "ticketry"]
        assert all(len(row["wall"]) == len(row["cpu"]) == 2 for row in one["times"])
        assert one["fastest_dense"] == "eager"
        (saved,) = one["saved"]
        assert (saved["engine"], saved["against"]) == ("ticketry", one["fastest_dense"])
        assert saved["low"] <= saved["saved"] <= saved["high"] < 1
    assert record["layers_batch"] == 16
    assert record["weight_bytes"] > 0


@pytest.mark.slow
def test_bench_of_a_run(store: Path, ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ticket.parents[1]
    words = ["bench", str(run), "--batch", "1", "--rounds", "2", "--against", "eager"]
    code, out, err = call(capsys, *words, "--json", "-o", str(tmp_path / "benches.json"))
    told = json.loads(out)
    assert (code, err, told["run"]) == (0, "", run.name)
    assert [Path(record["ticket"]).name for record in told["benches"]] == ["replicate-0-level-01"]
    assert json.loads((tmp_path / "benches.json").read_text()) == told
    for record in told["benches"]:
        assert read_with_digest(store / "evidence" / f"{record['name']}.json") == record
        assert all("dense_seconds" in row for row in record["layers"])
    assert "next     ticketry report" in call(capsys, *words)[1]
    assert call(capsys, "report", run.name, "--store", str(store), "--output", str(tmp_path / "page.html"))[0] == 0
    assert "against measured time" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for wrong in (["--densities", "0.1"], ["--replicates", "0"]):
        code, out, err = call(capsys, *words, *wrong)
        assert (code, out) == (2, ""), wrong
        code, out, named = call(capsys, "bench", run.name, *words[2:], *wrong, "--store", str(store))
        assert (code, out) == (2, ""), wrong
        assert run.name in named


@pytest.mark.slow
def test_bench_of_a_model_file(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.tk"
    assert call(capsys, "compile", str(ticket), "-o", str(file))[0] == 0
    words = ["bench", str(file), "--batch", "4", "--rounds", "2", "--against", "openvino", "--cold", "--clock", "cpu"]
    code, out, _ = call(capsys, *words, "--ticket", str(ticket), "--json", "--store", str(tmp_path / "none"))
    (one,) = json.loads(out)["comparisons"]
    assert (code, one["cold"], one["clock"], one["batch"]) == (0, True, "cpu", 4)
    assert [row["engine"] for row in one["times"]] == ["openvino", "ticketry"]
    assert not (tmp_path / "none").exists()
    code, _, err = call(capsys, *words)
    assert (code, "--ticket" in err) == (2, True)


@pytest.mark.slow
def test_bench_of_a_channel_wise_ticket_times_the_smaller_model_too(
    channel_ticket: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(channel_ticket), "--batch", "2", "--rounds", "2", "--against", "onnxruntime", "--json"]
    record = json.loads(call(capsys, *words)[1])
    names = [row["engine"] for row in record["comparisons"][0]["times"]]
    assert names == ["onnxruntime", "ticketry", "onnxruntime, shrunk"]
    assert record["structure"] == "channel-wise"


@pytest.mark.slow
def test_time_against_density(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figure = tmp_path / "curve.svg"
    words = ["bench", str(ticket), "--densities", "0.1,1", "--pattern", "groups:20:any", "--batch", "16"]
    words += ["--rounds", "2", "--against", "eager", "--store", str(tmp_path)]
    code, out, _ = call(capsys, *words, "--figure", str(figure))
    assert code == 0
    assert "batch 16, masks groups:20:any; ideal: density times that of eager" in out
    assert "100.0 %" in out
    assert figure.read_text().startswith("<?xml")
    record = json.loads(call(capsys, *words, "--json")[1])
    (curve,) = record["curves"]
    assert [round(point["density"], 2) for point in curve["points"]] == [1.0, 0.1]
    for point in curve["points"]:
        assert point["ideal"] == pytest.approx(
            point["density"] * next(row["seconds"] for row in curve["comparison"]["times"] if row["engine"] == "eager")
        )


@pytest.mark.slow
def test_bf16_is_compared_with_bf16(ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "bench", str(ticket), *FAST, "--precision", "bf16", "--json")
    if not target().bf16:
        assert (code > 0, out, "bf16" in err) == (True, "", True)
        return
    (*_, comparison) = json.loads(out)["comparisons"]
    assert comparison["precision"] == "bf16"
    assert all(row["error"] < 5e-2 for row in comparison["times"])


@pytest.mark.skipif(not target().bf16, reason="the processor multiplies no bfloat16")
def test_a_file_compiled_in_bf16_is_loaded_so(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", str(ticket), "-o", str(tmp_path / "model.tk"), "--precision", "bf16", "--json"]
    code, out, _ = call(capsys, *words)
    assert (code, json.loads(out)["precision"]) == (0, "bf16")
    assert tk.engine.load(tmp_path / "model.tk").precision == "bf16"


@pytest.mark.slow
def test_a_search_times_its_ticket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `make demo` does."""
    words = ["search", "imp", "--rate", "0.5", "--levels", "2", "--recipe.length", "40it", "--workers", "0"]
    words += ["--replicates", "1", "--bench", "--store", str(tmp_path)]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert "time saved against the fastest dense engine" in out
    record = json.loads(next((tmp_path / "evidence").glob("bench-*.json")).read_text())
    assert [one["batch"] for one in record["comparisons"]] == [1, 8, 64]
    assert {row["engine"] for row in record["comparisons"][0]["times"]} >= {"eager", "openvino", "ticketry"}
    report = next((tmp_path / "runs").glob("*/report.html")).read_text(encoding="utf-8")
    assert "What it saves" in report


@pytest.mark.slow
def test_export_to_onnx(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "model.onnx"
    code, out, err = call(capsys, "export", str(ticket), "-o", str(file))
    assert (code, err) == (0, "")
    assert "50,610 parameters, 25," in out
    assert "checked  in ONNX Runtime" in out
    assert "with batches of 1, 2, 5: equal to its source" in out
    assert "not smaller, for the mask is not channel-wise" in out
    x = torch.randn(7, 1, 8, 8)
    source = tk.Ticket.load(ticket).apply(build("lenet-300-100", shape=(1, 8, 8), classes=10), "trained").eval()
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), source(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_export_of_a_channel_wise_ticket(
    channel_ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "export", str(channel_ticket), "--format", "pt2", "--json")
    made = json.loads(out)["export"]
    assert (code, made["path"], made["shrunk"]) == (0, "channels.pt2", True)
    assert made["parameters"] < 0.6 * made["dense_parameters"]
    assert "shrunk: " in call(capsys, "export", str(channel_ticket), "--format", "pt2")[1]
    whole = json.loads(call(capsys, "export", str(channel_ticket), "--shrink", "no", "--batch", "3", "--json")[1])
    assert (whole["export"]["shrunk"], whole["export"]["batch"], whole["export"]["format"]) == (False, 3, "onnx")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["compile", "{ticket}", "-o", "{folder}"], 2, "got the folder"),
        (["compile", "{ticket}", "--task", "fashion-mnist"], 1, "does not fit the model"),
        (["export", "{ticket}", "--shrink", "yes", "-o", "{folder}/m.onnx"], 1, "not channel-wise"),
        (["export", "{ticket}", "--format", "onnx", "-o", "{folder}/m.pt2"], 2, "named as pt2"),
        (["bench", "nowhere"], 1, "nowhere"),
        (["bench", "{ticket}", "--against", "tensorrt"], 2, "no dense engine 'tensorrt'"),
        (["bench", "{ticket}", "--threads", "999"], 2, "this process may use"),
        (["bench", "{ticket}", "--rounds", "0"], 2, "rounds must be at least 1"),
        (["bench", "{ticket}", "--batch", "0"], 2, "batch must be 1 or more, got 0"),
        (["bench", "{ticket}", "--threads", "2", "--cores", "0"], 2, "cores must be as many as threads (2), got 1"),
        (["bench", "{ticket}", "--figure", "f.svg"], 2, "--densities"),
        (["bench", "{ticket}", "--ticket", "{ticket}"], 2, "belongs to a model file, got"),
        (["bench", "{ticket}", "--densities", "0.5", "--pattern", "dots"], 2, "pattern of a synthetic mask"),
        (["bench", "{ticket}", "--densities", "2"], 2, "density"),
    ],
)
def test_wrong_words_are_told_without_a_traceback(
    words: list[str], code: int, told: str, ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(ticket=ticket, folder=tmp_path) for word in words]
    found, out, err = call(capsys, *filled)
    assert (found, out) == (code, "")
    assert told in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_a_ticket_that_was_never_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = tk.task("digits")
    torch.manual_seed(0)
    model = task.build()
    info: dict[str, Any] = {"task": {"name": "digits", "spec": {"name": "digits", "model": None, "options": {}}}}
    bare = tk.Ticket(tk.prune(model, density=0.5), model.state_dict(), info).save(tmp_path / "bare")
    code, _, err = call(capsys, "export", str(bare), "-o", str(tmp_path / "m.pt2"))
    assert (code, "--weights start" in err) == (1, True)
    words = ["export", str(bare), "--weights", "start", "--format", "pt2", "-o", str(tmp_path / "m.pt2")]
    assert call(capsys, *words)[0] == 0
    mute = tk.Ticket(tk.prune(model, density=0.5), model.state_dict(), {}).save(tmp_path / "mute")
    words = ["export", str(mute), "--weights", "start", "--format", "pt2", "-o", str(tmp_path / "n.pt2")]
    code, _, err = call(capsys, *words)
    assert (code, "does not contain its task" in err) == (1, True)
    assert call(capsys, *words, "--task", "digits")[0] == 0


@pytest.mark.slow
def test_nothing_but_json_on_standard_output(ticket: Path, tmp_path: Path) -> None:
    """In a process of its own: exporters and engines print from native code too."""
    words = ["bench", str(ticket), "--batch", "2", "--rounds", "2", "--json", "--store", str(tmp_path)]
    command = [sys.executable, "-m", "ticketry", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    times = json.loads(done.stdout)["comparisons"][0]["times"]
    assert [row["engine"] for row in times][-1] == "ticketry"
    assert {"eager", "channels_last", "compile", "onnxruntime", "openvino"} < {row["engine"] for row in times}
    assert done.stderr == ""
