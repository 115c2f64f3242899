"""Language models in the lab: carried states are part of a segment, smaller networks train alike, every method runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from a_text import write_text_file
from samples import sample
from ticketry.core.prune import prune
from ticketry.core.structure.channel_masks import channels
from ticketry.errors import InterruptedTrainingError, TaskError
from ticketry.evidence import instability, stability
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.store import Store
from ticketry.lab.training import job as job_module
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import rebuild_model
from ticketry.search import method
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task
from ticketry.testing import check_search
from watches import StopAt

LSTM, POINTER, GPT = (
    pytest.param(name, marks=pytest.mark.slow) for name in ("lstm@0.04", "pointer-lstm@0.04", "gpt@0.1")
)
CARRYING = (LSTM, "lstm-tied@0.04", POINTER)
MODELS = (*CARRYING, GPT)


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_file(tmp_path_factory.mktemp("text"), 100)


def task_of(file: Path, model: str, **options: str) -> Task:
    return catalogue.get(f"text:{file}", model=model, options={"time": "6", **options})


def recipe_of(task: Task, length: str = "24it"):
    return task.recipe.changed(
        length=length, batch=4, optimizer="adam", lr=5e-3, momentum=0.9, weight_decay=0.0, clip=1.0, warmup="0it"
    )


def everything(store: Store, segment: Segment) -> dict[str, Any]:
    record = store.load_result(segment.trajectory, segment.last)
    assert record is not None
    return {name: record[name] for name in ("model", "training", "metrics", "loss")}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("shrunk", sample([True, False], 1))
def test_going_on_gives_the_same_bits(tmp_path: Path, file: Path, monkeypatch, model: str, shrunk: bool) -> None:
    """Stopped three times, one of them at a kept step, with a mask and dropout; also without the masked units."""
    monkeypatch.setattr(job_module, "_TICK_SECONDS", 0.0)
    task, found = task_of(file, model), []
    for stops in ((), (3, 10, 17)):
        with Lab(tmp_path / str(len(stops)), device="cpu") as lab:
            mask = mask_of(lab, task, shrunk)
            segment = lab.segment(task, start=1, order_seed=2, recipe=recipe_of(task), mask=mask, shrunk=shrunk)
            for stop in stops:
                with pytest.raises(InterruptedTrainingError):
                    execute(lab.store, None, segment, (10,), StopAt(at=stop, checkpoint_seconds=1e9))
            execute(lab.store, None, segment, (10,), Watch())
            found.append([everything(lab.store, each) for each in (segment.shortened_to(10), segment)])
            stored = lab.store.get_tensors(found[-1][0]["training"])
            assert any(name.startswith("session/") for name in stored) == (not model.startswith("gpt"))
    assert found[0] == found[1]


def mask_of(lab: Lab, task: Task, shrunk: bool) -> str:
    network = rebuild_model(task, lab.state(lab.train(lab.segment(task, start=0, last=0), measure=False)))
    if shrunk:
        return lab.store.put_mask(channels(network, lab.course(task).inputs(2), 0.5, score="l1"))
    return lab.store.put_mask(prune(network, 0.5, collapse="keep"))


@pytest.mark.parametrize("model", CARRYING)
def test_the_second_half_with_the_firsts_optimiser_is_the_second_half(tmp_path: Path, file: Path, model: str) -> None:
    """Hidden states go on with the optimiser's; from weights alone they begin at 0."""
    task = task_of(file, model)
    with Lab(tmp_path, device="cpu") as lab:
        whole = lab.segment(task, start=1, recipe=recipe_of(task))
        result = lab.train(whole, keep=(11,))
        middle = lab.at(result, 11)
        both, alone = (
            lab.train(lab.segment(task, start=Start(state=middle.model, **more), first=11, recipe=recipe_of(task)))
            for more in ({"optimizer": middle.training}, {})
        )
        assert both.model == result.model
        assert alone.model != result.model


@pytest.mark.parametrize("model", MODELS)
def test_a_smaller_network_trains_as_the_masked_one(tmp_path: Path, file: Path, model: str) -> None:
    """Begun in the middle, with hidden states of all units: those of removed ones are told to nobody."""
    task = task_of(file, model, dropout="0")
    with Lab(tmp_path, device="cpu") as lab:
        recipe = recipe_of(task).changed(optimizer="sgd", lr=0.5)
        middle = lab.at(lab.train(lab.segment(task, start=1, recipe=recipe), keep=(9,)), 9)
        mask, start = mask_of(lab, task, True), Start(state=middle.model, optimizer=middle.training)
        small, masked = (
            lab.train(lab.segment(task, start=start, mask=mask, first=9, recipe=recipe, shrunk=shrunk), keep=(20,))
            for shrunk in (True, False)
        )
        for name, value in lab.state(small).items():
            torch.testing.assert_close(value, lab.state(masked)[name], rtol=1e-4, atol=1e-5)
        assert small.metrics["test"]["loss"] == pytest.approx(masked.metrics["test"]["loss"], rel=1e-4)
        one, two = (lab.store.get_tensors(str(lab.at(each, 20).training)) for each in (small, masked))
        assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in two.items()}


ONE, KEEP = {"density": (0.5,)}, {"keep_at_least": 1}
SEARCHES: list[tuple[str, dict[str, Any]]] = [
    ("iterative", {"densities": (0.5,), "rewind": "10%", **KEEP}),
    ("concrete", {**ONE, "collapse": "keep"}),
    ("early", {**ONE, "every": "2it", "structure": "channels"}),
    ("gradual", {**ONE, "frequency": "4it", "structure": "channels"}),
    ("dynamic", {**ONE, "frequency": "4it"}),
]


@pytest.mark.parametrize("model", ["lstm-tied@0.04", POINTER, GPT])
def test_methods(tmp_path: Path, file: Path, model: str) -> None:
    """In one store: they share the dense training."""
    task = task_of(file, model)
    recipe = recipe_of(task, "12it")
    with Lab(tmp_path, device="cpu") as lab:
        for name, settings in SEARCHES:
            chosen = method(name)
            found = list(chosen.search(lab, task, recipe, chosen.Settings(**settings), Seeds()))
            assert found[0].mask is None
            for ticket in found[1:]:
                mask, state = lab.store.get_mask(str(ticket.mask)), lab.state(ticket.result)
                assert mask.density < 0.6, (name, settings)
                assert all(not state[tensor][~kept].any() for tensor, kept in mask.items())
                assert {"perplexity", "bits_per_character", "loss"} <= ticket.result.metrics["test"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lstm-tied@0.04", "pointer-lstm@0.04"])
def test_every_promise_of_a_search_is_kept(tmp_path: Path, file: Path, model: str) -> None:
    task = task_of(file, model)
    settings = method("gradual").Settings(density=(0.5,), frequency="4it", keep_at_least=1)
    check_search("gradual", tmp_path, settings=settings, densities=(0.5,), task=task, recipe=recipe_of(task))


def test_a_text_that_is_too_short_for_a_batch(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words only, and no more.")
    task = catalogue.get(f"text:{short}", model="lstm@0.04")
    with Lab(tmp_path / "store", device="cpu") as lab, pytest.raises(TaskError, match="too short for batches of 200"):
        lab.train(lab.segment(task, start=0, recipe=task.recipe.changed(batch=200)))
    with pytest.raises(TaskError, match="the option train is 99999 tokens"):
        catalogue.get(f"text:{short}", options={"train": "99999"}).course()


@pytest.mark.slow
def test_barriers_and_stability(tmp_path: Path, file: Path) -> None:
    """Two children of one start, which read the text from other places; errors are perplexities or bits."""
    task, chosen = task_of(file, "lstm-tied@0.04"), method("iterative")
    recipe = recipe_of(task)
    with Lab(tmp_path, device="cpu") as lab:
        settings = chosen.Settings(densities=(0.5,), rewind="25%", keep_at_least=1)
        ticket = list(chosen.search(lab, task, recipe, settings, Seeds()))[1]
        line = instability(lab, task, recipe, ticket, Seeds(), points=3, split="train")
        apart = stability(lab, task, recipe, ticket, Seeds())
        assert line.height >= 0
        with torch.no_grad():
            network = rebuild_model(task, lab.state(ticket.result)).eval()
            found = lab.course(task).evaluate(network, "train", lab.arithmetic(task))
        assert line.errors[0] == pytest.approx(found["bits_per_character"], rel=1e-6)
        assert apart.data_order.l2 > 0
