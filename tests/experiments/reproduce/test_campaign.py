"""A campaign carried out on digits: decided, told, gone on with, shared, moved."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ticketry as tk
from cli.calling import call
from flips import repacked
from ticketry.cli import main
from ticketry.cli.reproduce import parse_budget_seconds
from ticketry.errors import StoreError, UsageError
from ticketry.experiments.reproduce.campaign_file import campaigns_at_scale
from ticketry.lab.store.files import read_with_digest
from ticketry.lab.training.kernels import name_local_kernels
from ticketry.records.campaign import CampaignRecord, read_campaign_record
from ticketry_engine.support.seeds import mix_seeds

SMALL = """
title = "Masks matter"
[scales.demo]
interim = [3]
[scales.demo.runs.tickets]
method = "iterative"
task = "digits"
recipe = { length = "40it" }
settings = { densities = [0.05] }
controls = ["random_prune"]
[claims.beat-random]
statement = "Tickets are better than random masks."
a = { run = "tickets" }
b = { run = "tickets", role = "random_prune" }
density = 0.05
margin = 5
[claims.no-cheaper]
statement = "They cost fewer steps than the dense network."
a = { run = "tickets" }
b = { run = "tickets", role = "dense" }
density = 0.05
metric = "steps"
margin = 1
"""

OTHERS = """
[scales.demo.runs.others]
method = "iterative"
task = "digits"
recipe = { length = "41it" }
settings = { densities = [0.05] }
controls = ["random_prune"]
[claims.others-beat-random]
statement = "So are those of a longer training."
a = { run = "others" }
b = { run = "others", role = "random_prune" }
density = 0.05
margin = 5
"""


def record_of(store: Path) -> CampaignRecord:
    return read_campaign_record(read_with_digest(store / "campaigns" / "small-demo.json"))


def test_a_small_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = tmp_path / "small.toml", tmp_path / "store"
    file.write_text(SMALL)
    words = ["reproduce", str(file), "--store", str(store), "--workers", "0"]

    # planned, and nothing searched: the file's digest and date stand in the record from here on
    assert main([*words, "--plan"]) == 0
    planned = record_of(store)
    assert [claim.n for claim in planned.claims] == [0, 0]
    assert "the next analysis of the others takes about" in capsys.readouterr().err
    assert main([*words, "--budget", "0.001s"]) == 0
    assert "the budget is spent" in capsys.readouterr().out
    assert not list(store.glob("runs/*"))

    # carried out
    assert main([*words, "--only", "beat-random"]) == 0
    done = record_of(store)
    assert done.files == planned.files
    beat, cheaper = done.claims
    assert (beat.found, beat.n, beat.limit) == ("confirmed", 3, 3)
    assert beat.difference == pytest.approx(sum(a - b for a, b in zip(beat.a.values, beat.b.values, strict=True)) / 3)
    assert (cheaper.found, cheaper.difference) == ("refuted", -40.0)  # 40 steps more, with no spread at all
    assert {(row.role, row.n) for row in done.table} == {("dense", 3), ("ticket", 3), ("random_prune", 3)}
    assert done.steps_trained == 3 * 40 * 4, "dense in two orders, ticket, control"
    out = capsys.readouterr().out
    assert "beat-random" in out
    assert "confirmed" in out

    # again: nothing is trained, and the page stays
    page = store / "campaigns" / "small-demo.html"
    before = page.read_bytes(), record_of(store)
    code, out, _ = call(capsys, *words, "--json")
    assert code == 0
    (again,) = json.loads(out)
    assert again["segments_trained"] == done.segments_trained
    assert record_of(store).claims == before[1].claims
    assert b"beat-random" in page.read_bytes()
    text = (store / "campaigns" / "small-demo.md").read_text()
    assert "| beat-random | confirmed |" in text
    assert ", before its runs: SHA-256" in text
    assert main(["store", "check", "--store", str(store)]) == 0

    # moved without weights, or without masks too: all is told there, and nothing is trained
    sizes = []
    for masks in (True, False):
        elsewhere = tmp_path / f"elsewhere-{masks}"
        bundle = tk.store.pack((), tmp_path / "all.tkz", store=store, masks=masks)
        sizes.append(bundle.bytes)
        tk.store.unpack(bundle.path, store=elsewhere)
        assert record_of(elsewhere).claims == record_of(store).claims
        capsys.readouterr()
        code, out, err = call(capsys, *words[:3], str(elsewhere), *words[4:], "--json")
        assert code == 0
        assert "trained," not in err
        assert [claim["found"] for claim in json.loads(out)[0]["claims"]] == ["confirmed", "refuted"]
        assert main(["store", "check", "--store", str(elsewhere)]) == 0
    assert sizes[1] < sizes[0] < 300_000

    # changed after its runs: that is told
    file.write_text(SMALL.replace("margin = 5", "margin = 4"))
    assert main(words) == 0
    changed = record_of(store)
    assert changed.files[0] == done.files[0]
    assert len(changed.files) == 2
    assert "It was changed after that" in (store / "campaigns" / "small-demo.md").read_text()

    # another file that is seen after its runs
    time.sleep(1.1)  # dates are of whole seconds
    (tmp_path / "hindsight.toml").write_text(file.read_text())
    assert main(["reproduce", str(tmp_path / "hindsight.toml"), *words[2:], "--only", "beat-random"]) == 0
    text = (store / "campaigns" / "hindsight-demo.md").read_text()
    assert "after 3 replicates of its runs were trained: SHA-256" in text
    assert "before its runs" not in text


EMPTIED = (
    SMALL.split("[claims.no-cheaper]")[0]
    + """
[scales.demo.runs.one-cut]
method = "early"
task = "digits"
recipe = { length = "40it" }
settings = { density = 0.0002, when = "0", iterations = 1, score = "random", distribution = "uniform" }
[claims.beats-one-cut]
statement = "Tickets are better than one cut."
a = { run = "tickets", density = 0.05 }
b = { run = "one-cut", density = 0.0002 }
family = "one-cut"
"""
)


@pytest.mark.slow
def test_a_run_that_cannot_go_on_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = tmp_path / "small.toml", tmp_path / "store"
    file.write_text(EMPTIED)
    code, out, err = call(capsys, "reproduce", str(file), "--store", str(store), "--workers", "0")
    assert code == 1
    done = record_of(store)
    assert {claim.name: claim.found for claim in done.claims} == {
        "beat-random": "confirmed",
        "beats-one-cut": "undecided",
    }
    assert {run.name for run in done.runs if run.failed} == {"one-cut"}
    assert "layer collapse" in out
    assert "one-cut failed" in err
    assert "The run one-cut could not continue: " in (store / "campaigns" / "small-demo.md").read_text()

    # claims that do not rest on it are none the worse
    code, out, _ = call(
        capsys, "reproduce", str(file), "--store", str(store), "--workers", "0", "--only", "beat-random", "--json"
    )
    assert (code, json.loads(out)[0]["claims"][0]["found"]) == (0, "confirmed")


@pytest.mark.slow
def test_two_processes_tell_of_what_both_have_done(tmp_path: Path) -> None:
    """One campaign in one store, by other claims: the record of the last one to write has the other's work too."""
    file, store = tmp_path / "small.toml", tmp_path / "store"
    file.write_text(SMALL + OTHERS)
    words = [sys.executable, "-m", "ticketry", "reproduce", str(file), "--store", str(store), "--workers", "0"]
    claims = ("beat-random", "others-beat-random")
    both = [subprocess.Popen([*words, "--only", claim], stdout=subprocess.DEVNULL) for claim in claims]
    assert [one.wait() for one in both] == [0, 0]
    done = record_of(store)
    assert {claim.name: claim.n for claim in done.claims}["others-beat-random"] == 3
    assert all(run.planned_took for run in done.runs)
    # Dense network, ticket, control and second order of each replicate: none is shared between the two.
    assert (done.segments_asked, done.segments_trained) == (24, 24)


def test_wrong_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    words = ["reproduce", str(file), "--store", str(tmp_path / "store"), "--workers", "0"]
    code, _, err = call(capsys, *words, "--only", "beats")
    assert code == 2
    assert "the campaign small has no claim 'beats': it has beat-random, no-cheaper" in err
    code, _, err = call(capsys, *words, "--scale", "cpu")
    assert code == 2
    assert "there is no cpu" in err
    assert not (tmp_path / "store" / "results").exists(), "something was trained"


@pytest.mark.slow
def test_blocks_of_another_kind_of_machine_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three replicates are trained in sparse kernels of another name; then the limit is raised, and two more are."""
    pytest.importorskip("llvmlite")
    file, store = tmp_path / "small.toml", tmp_path / "store"
    text = SMALL.replace("[scales.demo.runs", '[scales.demo.base]\nkernels = "sparse"\n[scales.demo.runs')
    text = text.replace("digits", "norms_task:norms").replace("40it", "12it").replace("[0.05]", "[0.2]")
    text = text.replace("density = 0.05", "density = 0.2").replace("margin = 5", "margin = 60")  # not decided by three
    words = ["reproduce", str(file), "--store", str(store), "--only", "beat-random", "--trust", "--device", "cpu"]
    words += ["--workers", "0"]

    file.write_text(text)
    own = name_local_kernels()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("ticketry.lab.training.kernels.name_local_kernels", lambda precision: "sparse 1 other")
        assert main(words) == 0
    assert trained_kernels(store) == {"dense": 3 + 3, "sparse 1 other": 6}  # with dense networks in a second order
    first = record_of(store)
    assert [(one.first, one.last, one.kernels) for one in first.runs[0].blocks] == [(0, 3, ("dense", "sparse 1 other"))]
    (block,) = store.glob("runs/*/run.json")
    before = block.read_bytes()

    file.write_text(text.replace("interim = [3]", "interim = [3, 5]"))
    assert main(words) == 0
    assert block.read_bytes() == before
    assert trained_kernels(store) == {"dense": 5 + 5, "sparse 1 other": 6, own: 4}
    both = record_of(store)
    assert [(one.first, one.last, one.kernels) for one in both.runs[0].blocks] == [
        (0, 3, ("dense", "sparse 1 other")),
        (3, 5, ("dense", own)),
    ]
    assert {one.precision for one in both.runs[0].blocks} == {"fp32"}
    assert both.claims[0].a.values[:3] == first.claims[0].a.values
    assert len(both.claims[0].a.values) == 5
    text = (store / "campaigns" / "small-demo.md").read_text()
    assert f"fp32 + dense + sparse 1 other (replicates 1 to 3); fp32 + dense + {own} (replicates 4 to 5)" in text
    assert 'precision = "fp32"\nkernels = "sparse"' in block.with_name("run.toml").read_text()


@pytest.mark.slow
def test_stability_and_what_networks_differ_by_from_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, store = tmp_path / "small.toml", tmp_path / "store"
    text = SMALL.replace('controls = ["random_prune"]', "stability = { at = [0.05], points = 3 }").split("[claims")[0]
    file.write_text(
        text
        + """
[claims.far]
statement = "Two orders of the data end nearer than 1000."
a = { run = "tickets" }
b = { value = 1000 }
density = 0.05
metric = "order-distance"
[claims.barrier]
statement = "There is a barrier of more than 90 points."
a = { value = 90 }
b = { run = "tickets" }
density = 0.05
metric = "barrier"
[claims.worse]
statement = "Tickets are worse."
a = { run = "tickets", role = "dense" }
b = { run = "tickets" }
density = 0.05
margin = 5
"""
    )
    words = ["reproduce", str(file), "--store", str(store), "--workers", "0", "--device", "cpu"]
    assert main(words) == 0
    done = record_of(store)
    far, steep, worse = done.claims
    assert (far.found, steep.found) == ("confirmed", "refuted")
    assert (far.unit, steep.unit, far.noise) == ("", "%", ())

    # values are those of the analysis by itself, which trains nothing anew
    seeds, recipe = 20_000, {"length": "40it"}
    options = {"precision": "fp32", "device": "cpu", "workers": 0, "store": store}
    asked = {"masks": ["none"], "splits": ["test"], "dense": False, "layers": False, "points": 3, "at": [0.05]}
    alone = tk.stability(
        "iterative", densities=[0.05], rewinds=["0"], controls=[], seeds=seeds, recipe=recipe, **asked, **options
    ).record
    assert far.a.values == tuple(row.data_order.l2 for row in alone.rows if row.data_order)
    assert steep.b.values == tuple(row.barriers[0].height for row in alone.rows)

    # A/A: the dense network's own training, but for the order of the data
    lab = tk.Lab(store, precision="fp32", device="cpu")
    task = tk.task("digits")
    for number, difference in enumerate(worse.noise):
        order = seeds + number
        segment = lab.segment(task, start=order, order_seed=order, recipe=task.recipe.changed(**recipe))
        twin = replace(segment, order_seed=mix_seeds(order, "second order"))
        one, other = (lab.train(each).metrics["test"]["accuracy"] for each in (segment, twin))
        assert difference == pytest.approx(other - one)
    assert len(worse.noise) == 3
    assert lab.ledger.segments_trained == 0
    assert done.segments_trained == 3 * 4, "dense, ticket and both again"

    # again, and elsewhere without weights: nothing is trained
    capsys.readouterr()
    bundle = tk.store.pack((), tmp_path / "all.tkz", store=store)
    tk.store.unpack(bundle.path, store=tmp_path / "elsewhere")
    for place in (store, tmp_path / "elsewhere"):
        code, out, err = call(capsys, *words[:3], str(place), *words[4:], "--json")
        assert code == 0
        assert "trained," not in err
        assert [claim["found"] for claim in json.loads(out)[0]["claims"]] == [one.found for one in done.claims]
    page = (store / "campaigns" / "small-demo.md").read_text()
    assert "of tickets, B: the number 1000 at 5" in page


def networks(store: Path) -> set[str]:
    """All that was trained in a store."""
    return {path.name for path in (*store.glob("results/*/*/*.json"), *store.glob("blobs/*/*"))}


@pytest.mark.slow
def test_a_campaign_is_packed_by_its_name_with_all_that_it_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Elsewhere it is told by runs and trainings alone, whether its record is with them or not."""
    file, store, bundle = tmp_path / "small.toml", tmp_path / "store", tmp_path / "small.tkz"
    file.write_text(SMALL)
    words = ["reproduce", str(file), "--workers", "0", "--device", "cpu", "--store"]
    assert main([*words, str(store)]) == 0
    tk.run("iterative", "digits", levels=1, replicates=1, recipe={"length": "10it"}, workers=0, store=store)
    done = record_of(store)
    assert len(done.claims[0].noise) == 3
    assert 0 < done.planned_took <= done.seconds + 60  # what it took by the clock, looking things up included
    capsys.readouterr()
    assert main(["store", "pack", "small-demo", "-o", str(bundle), "--store", str(store)]) == 0
    assert "packed 1 run," in capsys.readouterr().out, "the run that is none of the campaign's is left out"
    by_runs = tk.store.pack(done.runs[0].runs, tmp_path / "runs.tkz", store=store).path
    assert by_runs.read_bytes() == bundle.read_bytes()

    for number, recorded in enumerate((True, False)):
        other = tmp_path / f"other-{number}"
        assert main(["store", "unpack", str(bundle), "--store", str(other)]) == 0
        if not recorded:
            (other / "campaigns" / "small-demo.json").unlink()
        before = networks(other)
        capsys.readouterr()
        assert main([*words, str(other)]) == 0
        out, err = capsys.readouterr()
        assert "trained," not in err
        assert ("Trained in this store: planned" in out) == recorded, "what was trained elsewhere was not planned here"
        assert networks(other) == before
        assert [claim.noise for claim in record_of(other).claims] == [claim.noise for claim in done.claims]

    # bundles that came before have no trainings in the second order: what is decided is told without them
    for one in done.twins:
        trajectory, _, step = one.key.partition("@")
        (other / "results" / trajectory[:2] / trajectory / f"{step}.json").unlink()
    (other / "campaigns" / "small-demo.json").unlink()
    before = networks(other)
    assert main([*words, str(other)]) == 0
    assert networks(other) == before
    assert [(claim.found, claim.noise) for claim in record_of(other).claims] == [(one.found, ()) for one in done.claims]

    # where the campaign goes on they are trained with the next replicates, and so they are planned
    file.write_text(SMALL.replace("interim = [3]", "interim = [3, 4]").replace("margin = 5", "margin = 95"))
    capsys.readouterr()
    code, out, _ = call(capsys, *words, str(other), "--plan", "--json")
    assert code == 0
    (planned,) = json.loads(out)[0]["planned"]
    assert (planned["run"], planned["first"], planned["last"], planned["claims"]) == ("tickets", 3, 4, ["beat-random"])
    assert networks(other) == before
    assert main([*words, str(other)]) == 0
    goes_on = record_of(other)
    assert goes_on.claims[0].noise[:3] == done.claims[0].noise
    assert len(goes_on.claims[0].noise) == 4


@pytest.mark.slow
def test_a_campaign_by_another_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store, bundle = tmp_path / "small.toml", tmp_path / "store", tmp_path / "small.tkz"
    file.write_text(SMALL)
    call(capsys, "reproduce", str(file), "--store", str(store), "--workers", "0", "--only", "no-cheaper")
    tk.store.pack("small-demo", bundle, store=store)

    def renamed(told: dict[str, Any]) -> None:
        next(part for part in told["parts"] if part["kind"] == "campaign")["name"] = ["another-demo"]

    repacked(bundle, renamed)
    with pytest.raises(StoreError, match="the campaign calls itself 'small-demo'"):
        tk.store.unpack(bundle, store=tmp_path / "other")
    assert not (tmp_path / "other" / "campaigns").exists()


def test_what_cannot_be_packed_as_a_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (file := tmp_path / "small.toml").write_text(SMALL)
    store = tmp_path / "store"
    assert main(["reproduce", str(file), "--workers", "0", "--store", str(store), "--plan"]) == 0
    run = tk.run("iterative", "digits", levels=1, replicates=1, recipe={"length": "10it"}, workers=0, store=store)
    capsys.readouterr()
    code, _, err = call(capsys, "store", "pack", "small", "--store", str(store))
    assert (code, "there is no run or campaign small in" in err, "the campaigns small-demo" in err) == (1, True, True)
    code, _, err = call(capsys, "store", "pack", "small-demo", "--store", str(store))
    assert (code, "nothing is done of the campaign small-demo" in err) == (1, True)
    # a campaign of which nothing is done goes with no run
    tk.store.unpack(tk.store.pack(run.name, tmp_path / "run.tkz", store=store).path, store=tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere" / "campaigns").exists()


def trained_kernels(store: Path) -> Counter[str]:
    """How many networks were trained in which kernels."""
    told = [read_with_digest(file) for file in (store / "results").rglob("*.json")]
    whole = [one["segment"]["arithmetic"] for one in told if one["segment"]["last"] == 12]
    return Counter(one.get("kernels", "dense") for one in whole)


def test_budgets_are_times() -> None:
    assert [parse_budget_seconds(text) for text in ("90s", "30min", "8h", "1.5 h", "2d")] == [
        90,
        1800,
        28800,
        5400,
        172800,
    ]
    assert parse_budget_seconds("") == float("inf")
    for text in ("8", "h", "-1h", "0h", "8 hours", "1e3s"):
        with pytest.raises(UsageError, match="budget must be a time such as"):
            parse_budget_seconds(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", campaigns_at_scale("demo"))
def test_the_demo_of_every_campaign_judges_every_claim(name: str, tmp_path: Path) -> None:
    assert main(["reproduce", name, "--scale", "demo", "--store", str(tmp_path / "store")]) == 0
    record = read_campaign_record(read_with_digest(tmp_path / "store" / "campaigns" / f"{name}-demo.json"))
    assert all(claim.n >= 3 for claim in record.claims)
    assert all(claim.found != "undecided" or claim.n == claim.limit for claim in record.claims)
