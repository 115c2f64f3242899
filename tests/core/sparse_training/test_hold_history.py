"""What an optimiser remembers from before a mask, and what a training that diverges is told."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError

optim = torch.optim
INPUTS = torch.randn(16, 10, generator=torch.Generator().manual_seed(5))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))


def loss(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(INPUTS), torch.arange(16) % 3)


def step(model: nn.Module, optimizer: optim.Optimizer, steps: int = 3) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    for _ in range(steps):
        optimizer.step(closure)


def state_tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for each in inner for tensor in state_tensors(each)]


class Delayed(optim.Optimizer):
    """Steps by the gradient of two steps ago, which it keeps in a list."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                waiting = self.state[parameter].setdefault("waiting", {"gradients": []})["gradients"]
                waiting.append(parameter.grad.clone())
                if len(waiting) > 2:
                    parameter.sub_(waiting.pop(0), alpha=group["lr"])


class TestLBFGS:
    """Its state is of all parameters together: vectors through all of them, one after another."""

    def optimizer(self, model: nn.Module) -> optim.LBFGS:
        return optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)

    def test_its_history_of_the_dense_model_is_forgotten(self):
        model = network()
        own = self.optimizer(model)
        step(model, own)
        twin = copy.deepcopy(model)
        mask = prune(model, 0.5, distribution="layerwise")
        with hold(model, mask):
            step(model, own)
        with hold(twin, mask):
            step(twin, self.optimizer(twin))  # one that has no history
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))

    def test_its_history_of_the_masked_model_is_kept(self):
        model = network()
        mask = prune(model, 0.5, distribution="layerwise")
        twin = copy.deepcopy(model)
        own, other = self.optimizer(model), self.optimizer(twin)
        for _ in range(2):
            with hold(model, mask):
                step(model, own)
            state = copy.deepcopy(own.state_dict())
            own = self.optimizer(model)
            own.load_state_dict(state)
        with hold(twin, mask):
            step(twin, other, 6)
        assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))

    def test_other_layers_do_not_make_it_forget(self):
        model, free = network(), nn.Linear(3, 3)
        mask = prune(model, 0.5, distribution="layerwise")
        own = optim.LBFGS([*free.parameters(), *model.parameters()], lr=0.5, max_iter=4)
        step(nn.Sequential(model, free), own)
        with hold(model, mask):
            step(nn.Sequential(model, free), own)
            step(nn.Sequential(model, free), own)
            (state,) = own.state.values()
            assert state["n_iter"] == 2 * 3 * 4


def test_state_in_lists_is_cleared_too():
    model = network()
    own = Delayed(model.parameters(), lr=0.1)
    step(model, own)
    mask = prune(model, 0.5, distribution="layerwise")
    with hold(model, mask) as held:
        with pytest.raises(HoldError, match="pruned optimiser state of"):
            held.check(own)
        step(model, own)
        held.check(own)


def test_numbers_that_stand_for_others_are_left_alone():
    """State in 8 bits: 0 is no 0 there."""
    model = nn.Linear(4, 4, bias=False)
    own = Delayed(model.parameters(), lr=0.1)
    own.state[model.weight]["code"] = torch.full((4, 4), 127, dtype=torch.uint8)
    with hold(model, Mask({"weight": torch.eye(4)})) as held:
        held.mask_state(own)
        held.check(own)
    assert bool((own.state[model.weight]["code"] == 127).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: optim.AdamW(p, lr=0.01),
        lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9),
        lambda p: optim.LBFGS(p, lr=0.1, max_iter=4),
    ],
    ids=["sgd", "adamw", "rmsprop", "lbfgs"],
)
def test_state_of_a_dense_training_that_is_loaded_while_a_mask_is_held(make):
    model = network()
    dense = make(model.parameters())
    step(model, dense)
    mask = prune(model, 0.5, distribution="layerwise")
    with hold(model, mask) as held:
        own = make(model.parameters())
        step(model, own)
        own.load_state_dict(copy.deepcopy(dense.state_dict()))
        step(model, own)
        held.check(own)


class TestDivergence:
    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: optim.SGD(p, lr=0.1),
            lambda p: optim.AdamW(p, lr=0.1, fused=True),
            lambda p: optim.Adafactor(p),
        ],
        ids=["sgd", "adamw", "adafactor"],
    )
    def test_a_loss_that_is_not_finite_is_reported(self, make, number):
        model = network()
        own = make(model.parameters())
        mask = prune(model, 0.5, distribution="layerwise")

        def diverge():
            for step in range(1, 7):
                own.zero_grad()
                (loss(model) * (number if step == 4 else 1)).backward()
                own.step()

        with (
            pytest.raises(HoldError, match=r"\(up to nan\): the loss or its gradient was not finite, or something"),
            hold(model, mask),
        ):
            diverge()
