"""Gradual pruning resumed in a training of another length: shorter, longer, or when it had finished."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.sparse_training.gradual import Gradual, gradual
from ticketry.errors import MaskError

STEPS = 20
CUTS = [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]
"""Of 20 steps with begin, end and frequency by default: 25 %, 75 % and at least one step."""


class Training:
    """A small training with its model, optimiser and gradual pruning; the batch depends on the step alone."""

    def __init__(self, steps: int, density: float = 0.3, **options: object) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        self.pruning = gradual(self.model, density, steps=steps, distribution="layerwise", **options)  # type: ignore

    def run(self, until: int) -> Training:
        while self.pruning.done < until:
            inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(self.pruning.done))
            self.optimizer.zero_grad()
            (self.model(inputs) - inputs).square().mean().backward()
            self.optimizer.step()
            self.pruning.step()
        return self

    def state(self) -> dict[str, object]:
        parts = {"model": self.model, "optimizer": self.optimizer, "pruning": self.pruning}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict[str, object]) -> Training:
        self.model.load_state_dict(state["model"])  # type: ignore[arg-type]
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        self.pruning.load_state_dict(state["pruning"])  # type: ignore[arg-type]
        return self


def test_a_finished_pruning_keeps_its_mask_in_a_longer_training() -> None:
    finished = Training(STEPS).run(STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is left to prune, so nothing can differ
        longer = Training(2 * STEPS).load(finished.state()).run(2 * STEPS)
    assert longer.pruning.mask == finished.pruning.mask
    assert longer.pruning.mask.kept == round(0.3 * longer.pruning.mask.total)
    longer.pruning.check(longer.optimizer)
    assert not longer.pruning.describe_early_end()


@pytest.mark.parametrize("stop", [6, 10, 14])
def test_a_longer_training_continues_along_the_schedule_of_the_state(stop: int, tmp_path: Path) -> None:
    """The truth: a training with that schedule from the start, in which nothing was interrupted."""
    part = Training(STEPS).run(stop)
    torch.save(part.state(), tmp_path / "checkpoint")
    longer = Training(2 * STEPS)
    with pytest.warns(UserWarning, match=r"cuts at steps 6 to 15.*not along the one of this training .*11 to 30 of 40"):
        longer.load(torch.load(tmp_path / "checkpoint", weights_only=True))
    longer.run(2 * STEPS)
    whole = Training(2 * STEPS, begin="5it", end="15it", frequency="1it").run(2 * STEPS)
    assert list(whole.pruning.cuts) == CUTS
    assert longer.pruning.mask == whole.pruning.mask
    assert all(map(torch.equal, longer.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize("stop", [6, 10])
def test_a_training_too_short_for_the_schedule_of_the_state_is_refused(stop: int) -> None:
    """Else its own last cut would be over, and the mask would stay at a density that nobody requested."""
    state = Training(STEPS).run(stop).state()
    for steps in (8, 12, 15):
        with pytest.raises(MaskError, match=rf"10 cuts at steps 6 to 15, and this training has only {steps} steps"):
            Training(steps).load(state)
    with pytest.warns(UserWarning, match="continues along that schedule"):
        shorter = Training(16).load(state).run(16)
    assert shorter.pruning.mask.kept == round(0.3 * shorter.pruning.mask.total)


def test_a_finished_pruning_is_refused_by_no_length() -> None:
    state = Training(STEPS).run(16).state()
    for steps in (8, 16, 17):
        assert Training(steps).load(state).pruning.mask.density == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_another_final_density_is_refused(density: float) -> None:
    state = Training(STEPS).run(16).state()
    with pytest.raises(MaskError, match=rf"to density 0\.3, .*and density {density:g} is requested now"):
        Training(STEPS, density).load(state)


def test_before_the_first_cut_the_schedule_of_this_training_applies() -> None:
    """Such a state is that of a dense training."""
    state = Training(STEPS).run(5).state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps, first in ((2 * STEPS, 11), (STEPS, 6)):
            resumed = Training(steps, 0.2).load(state)
            assert min(resumed.pruning.cuts) == first
        assert resumed.run(STEPS).pruning.mask.kept == round(0.2 * resumed.pruning.mask.total)
    with pytest.raises(MaskError, match="only 15 steps"):  # its own first cut is over
        Training(15).load(state)


def older(state: dict[str, object]) -> dict[str, object]:
    """The state as earlier versions wrote it, without a schedule."""
    pruning = dict(state["pruning"])  # type: ignore[call-overload]
    del pruning["cuts"]
    return {**state, "pruning": pruning}


@pytest.mark.parametrize("stop", [3, 6, 10, 15, 18])
def test_states_without_a_schedule_resume_where_they_fit(stop: int) -> None:
    whole = Training(STEPS).run(STEPS)
    resumed = Training(STEPS).load(older(Training(STEPS).run(stop).state())).run(STEPS)
    assert resumed.pruning.mask == whole.pruning.mask
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


@pytest.mark.parametrize(("stop", "steps"), [(20, 40), (10, 40), (8, 10), (7, 8)])
def test_states_without_a_schedule_are_refused_where_they_do_not_fit(stop: int, steps: int) -> None:
    state = older(Training(STEPS).run(stop).state())
    with pytest.raises(MaskError, match=rf"after {stop} steps, which gradual pruning to density 0\.3, .* of {steps}"):
        Training(steps).load(state)


def test_a_refused_state_changes_nothing() -> None:
    training = Training(8)
    before = training.pruning.state_dict()
    with pytest.raises(MaskError):
        training.pruning.load_state_dict(Training(STEPS).run(10).pruning.state_dict())
    after = training.pruning.state_dict()
    assert (after["done"], after["cuts"]) == (before["done"], before["cuts"]) == (0, before["cuts"])
    assert training.pruning.mask.density == 1


@pytest.mark.parametrize("cuts", [[], [[3]], [[0, 0.5]], [[5, 0.5], [4, 0.3]], [[5, 1.5]], 7, {"a": 1}, [["x", "y"]]])
def test_what_is_no_schedule(cuts: object) -> None:
    state = Training(STEPS).run(10).pruning.state_dict()
    with pytest.raises(MaskError, match="cuts are no schedule"):
        Training(STEPS).pruning.load_state_dict({**state, "cuts": cuts})


def test_the_state_is_plain() -> None:
    state = tk.gradual(nn.Linear(8, 8), 0.25, steps=40).state_dict()
    assert json.loads(json.dumps(state["cuts"])) == state["cuts"]
    assert Gradual(nn.Linear(8, 8), dict(state["cuts"]), steps=40).cuts == dict(state["cuts"])
