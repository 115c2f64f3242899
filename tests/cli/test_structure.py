"""ticketry structure, as a user types it: the new ticket, its table, and that it can be trained and verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import ticketry as tk
from cli.calling import call
from cli.conftest import QUICK
from ticketry.core.structure import coverage, n_m, refill, regroup


def trained(path: Path) -> tuple[tk.Ticket, torch.nn.Module]:
    found = tk.Ticket.load(path)
    return found, found.apply(tk.task("digits").build(), "trained").eval()


def test_channels(ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    words = ["structure", str(ticket), "--to", "refill+", "--plus", "0.5", "-o", str(made), "--json"]
    code, out, _ = call(capsys, *words)
    record = json.loads(out)
    old, model = trained(ticket)
    assert code == 0
    assert tk.Ticket.load(made).mask == refill(model, old.mask, torch.randn(2, 1, 8, 8), plus=0.5)
    assert (record["kind"], record["structure"]["plus"], record["path"]) == ("structure", 0.5, str(made))
    assert [layer["name"] for layer in record["structure"]["layers"]] == [*old.mask, "all layers"]
    assert all(layer["null_coverage"] is None for layer in record["structure"]["layers"]), "columns are gone too"
    assert tk.Ticket.load(made).info["segment"]["shrunk"]


def test_a_search_tells_what_it_did(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, *QUICK, "--store", str(store), "--json", "--structure", "regroup:4")
    told = json.loads(out)
    (ticket,) = told["tickets"]
    assert (code, told["now"]["segments_trained"]) == (0, 1), "dense network and mask are those of the other search"
    assert (ticket["structure"]["kind"], ticket["structure"]["rows"]) == ("regroup", 4)
    whole = tk.Ticket.load(ticket["path"]).info["structure"]["layers"][-1]
    assert ticket["structure"]["coverage"] == whole["coverage"] < 1
    assert "layers" not in ticket["structure"]


def test_other_words(
    ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, model = trained(ticket)
    assert call(capsys, "structure", str(ticket), "--to", "2:4")[0] == 0
    assert tk.Ticket.load(f"{ticket.name}-2-of-4").mask == n_m(model, old.mask, 2, 4)
    assert call(capsys, "structure", str(ticket), "--to", "channels", "--density", "0.3")[0] == 0
    assert tk.Ticket.load(f"{ticket.name}-channels").density == pytest.approx(0.3, abs=0.01)
    assert call(capsys, "structure", str(ticket), "--to", "refill", "--score", "activation_l2")[0] == 0
    code, out, _ = call(capsys, "structure", str(ticket), "--to", "regroup", "--rows", "4", "-o", "made", "--json")
    told, new = json.loads(out)["structure"], tk.Ticket.load("made")
    assert (code, new.mask, new.trained) == (0, regroup(model, old.mask, rows=4), None)
    assert all(torch.equal(new.start[name], old.start[name]) for name in old.start)
    assert told["layers"][:-1] == [fit.as_json() for fit in coverage(model, old.mask, new.mask).values()]
    assert (new.info["structure"]["rows"], new.info["structure"]["of"]) == (4, old.mask.digest)
    assert not {"value", "metrics", "level", "trained_state"} & new.info.keys()
    words = ["structure", str(ticket), "--to", "regroup", "--weights", "start", "--no-null", "--json"]
    code, out, _ = call(capsys, *words)
    assert code == 0
    assert json.loads(out)["structure"]["layers"][0]["null_coverage"] is None


def test_what_is_made_can_be_verified(
    ticket: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    assert call(capsys, "structure", str(ticket), "--to", "refill", "-o", str(made))[0] == 0
    more = ["--store", str(store), "--seeds", "1", "--no-noise", "--no-references", "--workers", "0", "--json"]
    code, out, _ = call(capsys, "verify", str(made), "--controls", "shuffled", *more)
    assert code == 0
    record = json.loads(out)
    assert record["density"] == tk.Ticket.load(made).density
    assert {network["role"] for network in record["networks"]} == {"ticket", "dense", "shuffled"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "blocks"], "not known"),
        (["--to", "refill", "--rows", "4"], "rows is an option of regroup"),
        (["--to", "refill", "--score", "importance"], "importance"),
        (["--to", "regroup", "--density", "1.5"], "density"),
        (["--to", "refill+", "--density", "0.5", "--plus", "0.1"], "give one of them"),
    ],
)
def test_wrong_words(words: list[str], told: str, ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "structure", str(ticket), *words)
    assert (code, out) == (2, "")
    assert told in err
    assert "Traceback" not in err


def test_a_layer_that_is_empty_is_told(tmp_path: Path, ticket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tk.Ticket.load(ticket)
    mask = {name: torch.zeros_like(kept) if name == "fc2.weight" else kept for name, kept in old.mask.items()}
    tk.Ticket(tk.Mask(mask), old.start, old.info, old.start).save(tmp_path / "empty")
    for kind in ("regroup", "refill"):
        code, _, err = call(capsys, "structure", str(tmp_path / "empty"), "--to", kind, "-o", str(tmp_path / "none"))
        assert code == 1
        assert "fc2" in err
        assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("kind", ["regroup", "refill", "channels", "2:4"])
def test_a_spared_layer(kind: str, ticket: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of channels, those that enter it stay too."""
    made, spared = tmp_path / "made", "fc3" if kind == "channels" else "fc2"
    words = ["structure", str(ticket), "--to", kind, "--spare", spared, "-o", str(made)]
    assert call(capsys, *words)[0] == 0
    old, new = tk.Ticket.load(ticket), tk.Ticket.load(made)
    assert new.info["structure"]["spare"] == [spared]
    if kind in ("regroup", "2:4"):
        assert torch.equal(new.mask["fc2.weight"], old.mask["fc2.weight"])
    else:
        assert new.mask["fc2.weight"].any(1).all()
    assert not torch.equal(new.mask["fc1.weight"], old.mask["fc1.weight"])
