"""Gradients of removed weights, against autograd by hand; moves of a mask, remembered."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ticketry.core.sparse_training import mask_dynamics
from ticketry.core.sparse_training.mask_dynamics import drop_and_grow
from ticketry.errors import TrainingError, UsageError
from ticketry.lab.training.segment import Start
from ticketry.search.dynamic import first_batch_gradient, update_dynamic_mask
from ticketry_engine.support.seeds import generator, mix_seeds

STEP, ORDER = 9, 5


def onward(lab, task, half):
    """How training goes on from step 9, in the second epoch; the network has batch norm and dropout."""
    before = lab.train(lab.segment(task, start=2, mask=half, last=STEP, order_seed=ORDER))
    start = Start(state=before.model, optimizer=before.training)
    return lab.segment(task, start=start, mask=half, first=STEP, order_seed=ORDER)


def by_hand(lab, task, segment) -> dict[str, torch.Tensor]:
    model, train = task.build(), task.load().train
    model.load_state_dict(lab.store.get_tensors(segment.start.state))
    order = torch.randperm(len(train), generator=generator(ORDER, "order", 1))
    batch = order[(STEP - 7) * 32 : (STEP - 6) * 32]
    torch.manual_seed(mix_seeds(ORDER, "step", STEP))
    nn.functional.cross_entropy(model.train()(train.inputs[batch]), train.targets[batch]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_the_gradient_of_the_next_batch(lab, points, half, equal_bits):
    segment = onward(lab, points, half)
    before = torch.random.get_rng_state()
    found = first_batch_gradient(lab, segment)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert equal_bits(found, by_hand(lab, points, segment))
    mask = lab.store.get_mask(half)
    assert any(bool(found[name][~kept].any()) for name, kept in mask.items()), "of removed weights too"


def test_a_move_is_made_once(lab, points, half, monkeypatch):
    segment = onward(lab, points, half)
    digest = update_dynamic_mask(lab, segment, 0.3, grow="gradient")
    sizes = {name: gradient.abs() for name, gradient in by_hand(lab, points, segment).items()}
    assert lab.store.get_mask(digest) == drop_and_grow(
        lab.store.get_mask(half), lab.store.get_tensors(segment.start.state), sizes, 0.3
    )
    monkeypatch.setattr(mask_dynamics, "drop_and_grow", None)
    assert update_dynamic_mask(lab, segment, 0.3, grow="gradient") == digest
    assert update_dynamic_mask(lab, segment.shortened_to(STEP + 3), 0.3, grow="gradient") == digest, (
        "however far training goes on"
    )
    for other in ({"share": 0.2}, {"regrow": True}, {"grow": "random"}):
        with pytest.raises(TypeError):
            update_dynamic_mask(lab, segment, **{"share": 0.3, "grow": "gradient", **other})


def test_random_growth_is_of_its_seed(lab, points, half):
    segment = onward(lab, points, half)
    made = [update_dynamic_mask(lab, segment, 0.5, grow="random", seed=seed) for seed in (1, 2, 1)]
    assert made[0] == made[2] != made[1]
    with pytest.raises(UsageError, match="is not known: gradient, random"):
        update_dynamic_mask(lab, segment, 0.5, grow="hope")


def test_a_gradient_that_is_no_number_is_told(lab, points, half):
    segment = onward(lab, points, half)
    state = lab.store.get_tensors(segment.start.state)
    broken = lab.store.put_tensors(
        {name: value * float("nan") if value.is_floating_point() else value for name, value in state.items()}
    )
    with pytest.raises(TrainingError, match=f"gradient of '0.weight' at step {STEP} is not finite: lower the learning"):
        first_batch_gradient(lab, lab.segment(points, start=Start(state=broken), mask=half, first=STEP))


def test_from_an_initialisation(lab, points, equal_bits):
    fresh = lab.train(lab.segment(points, start=4, last=0), measure=False)
    one, other = (lab.segment(points, start=start, order_seed=1) for start in (4, Start(state=fresh.model)))
    assert equal_bits(first_batch_gradient(lab, one), first_batch_gradient(lab, other))
