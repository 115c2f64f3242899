"""Budgets of time and multiplications are spent by what weights are worth, where nothing else is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace

import ticketry as tk
from samples import sample
from search.known_costs import costs, slowly, task
from ticketry.errors import LayerCollapseError, UsageError
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.request import build_request
from ticketry.lab.costs.ledger import Sample
from ticketry.report.subject import labels_of
from ticketry.report.tables.results import Results

TENTH = {
    "iterative": {"rate": 0.9, "rewind": "3it"},
    "oneshot": {},
    "gradual": {"frequency": "5it"},
    "acdc": {"warmup": "3it", "phase": "4it", "end": "12it"},
}
"""Methods that go by magnitude."""


@pytest.mark.parametrize("name", sample(TENTH, 2))
def test_no_layer_is_left_empty(name: str, tmp_path: Path) -> None:
    """Magnitudes weighed against multiplications empty the first layers at this budget, see below."""
    method = tk.search.method(name)
    settings = decode_settings({"flops": 0.1, **TENTH[name]}, method.Settings, what=name)[0]
    with tk.Lab(tmp_path) as lab:
        *_, ticket = method(lab, task(), settings, recipe=task().recipe.changed(length="16it"))[0]
        mask, model = lab.store.get_mask(str(ticket.mask)), lab.model(task())
    assert all(bool(kept.any()) for kept in mask.values())
    with pytest.raises(LayerCollapseError):
        tk.prune(model, flops=0.1, example_inputs=torch.zeros(1, 1, 8, 8), score="magnitude")


def test_of_a_time_the_mask_is_that_of_prune(tmp_path: Path) -> None:
    file = costs().save(tmp_path / "costs.json")
    settings = tk.search.iterative.Settings(time=(0.6, 0.4), base="engine", profile=str(file), keep_at_least=2)
    recipe = task().recipe.changed(length="9it")
    with tk.Lab(tmp_path / "store") as lab:
        dense, first, second = tk.search.iterative(lab, task(), settings, recipe=recipe)[0]
        masks = [lab.store.get_mask(str(one.mask)) for one in (first, second)]
        course = lab.course(task())
        for mask, share, trained, within in ((masks[0], 0.6, dense, None), (masks[1], 0.4, first, masks[0])):
            model = lab.model(task(), trained.result)
            found = tk.prune(
                model,
                time=share,
                base="engine",
                example_inputs=torch.zeros(1, 1, 8, 8),
                cost=costs(),
                within=within,
                keep_at_least=2,
                batches=Sample(seed=0).limit_batch_size_to_task(task()).draw(course, model),
                loss=course.loss,
            )
            assert mask == found
            assert min(int(kept.sum()) for kept in mask.values()) >= 2
            assert slowly(mask, costs()) <= share * costs().dense + 1e-12
    assert masks[0] & masks[1] == masks[1]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("iterative", {"flops": 0.5}, True),
        ("gradual", {"flops": 0.5, "keep_at_least": 2}, True),
        ("oneshot", {"flops": 0.5, "unweighed": True}, False),
        ("oneshot", {"flops": 0.5, "distribution": "erk"}, False),
        ("oneshot", {"flops": 0.5, "score": "fisher"}, False),
        ("oneshot", {"density": 0.5}, False),
        ("early", {"flops": 0.5}, False),
        ("continuous", {"flops": 0.5}, False),
    ],
)
def test_what_is_asked_for_is_done(name: str, given: dict[str, Any], expected: bool) -> None:
    assert decode_settings(given, tk.search.method(name).Settings, what=name)[0].spends_budget_by_importance is expected


def test_bytes_are_the_same_for_every_weight(tmp_path: Path) -> None:
    file = str(costs("bytes", 4.0).save(tmp_path / "bytes.json"))
    assert not tk.search.oneshot.Settings(bytes=(0.5,), profile=file).spends_budget_by_importance


def test_a_run_is_not_called_what_it_was_when_it_went_by_magnitude() -> None:
    called = {}
    for rule in ({}, {"unweighed": True}, {"score": "fisher"}):
        settings = decode_settings({"flops": 0.5, **rule}, tk.search.oneshot.Settings, what="")[0]
        called[next(iter(rule), "")] = build_request("oneshot", "digits", settings, replicates=3).name
    assert called.pop("") != "oneshot-digits-7b856bf6"
    assert called == {"unweighed": "oneshot-digits-3aa1146f", "score": "oneshot-digits-a9d5219b"}


def test_the_page_tells_the_score_that_held(tmp_path: Path) -> None:
    common: dict[str, Any] = {"replicates": 1, "controls": (), "recipe": {"length": "4it"}, "workers": 0}
    runs = [
        tk.run("oneshot", task(), flops=0.5, store=tmp_path, **common, **rule) for rule in ({}, {"score": "fisher"})
    ]
    assert [run.record.scored for run in runs] == ["kfac", ""]
    assert runs[0].record.settings["score"] == "magnitude"  # as asked for, and as a run file says it
    assert labels_of([Results(run.record) for run in runs]) == ("oneshot, kfac", "oneshot, fisher")
    assert runs[0].request.name == tk.run("oneshot", task(), flops=0.5, store=tmp_path, **common).name


def test_the_best_ticket_of_a_time_or_of_multiplications(tmp_path: Path) -> None:
    common: dict[str, Any] = {"replicates": 2, "controls": (), "recipe": {"length": "4it"}, "workers": 0}
    run = tk.run("oneshot", task(), flops=(0.5, 0.25), store=tmp_path, **common)
    for ticket in run.tickets:
        asked = {1: 0.5, 2: 0.25}[ticket.level]
        assert 0.95 * asked < ticket.multiplications <= asked
        assert ticket.time is None
    assert run.best(flops="30%").level == 2
    within = [ticket for ticket in run.tickets if ticket.multiplications <= 0.5]
    assert run.best(flops=0.5).validation_value == max(one.validation_value for one in within)
    with pytest.raises(UsageError, match=r"no ticket within 0\.1 of the multiplications; there are: 0\.2"):
        run.best(flops=0.1)
    with pytest.raises(UsageError, match=r"no ticket within 0\.5 of the time; there are: none"):
        run.best(time=0.5)
    with pytest.raises(UsageError, match="density, time and flops exclude each other"):
        run.best(0.5, flops=0.5)


def test_costs_without_single_weights_are_told_before_anything_is_trained(tmp_path: Path) -> None:
    model = costs()
    layers = {name: replace(layer, curves={"rows:4": layer.curves["weights"]}) for name, layer in model.layers.items()}
    file = replace(model, layers=layers).save(tmp_path / "costs.json")
    with pytest.raises(UsageError, match="weights"):
        tk.run("oneshot", task(), time=0.5, base="engine", profile=str(file), store=tmp_path / "store")
    assert not (tmp_path / "store" / "results").exists()
