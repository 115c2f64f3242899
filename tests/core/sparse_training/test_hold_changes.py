"""`hold` while models and optimisers change: replaced parameters, earlier momentum, copies, divergence."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn, optim

from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError, UsageError


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 4))


def masked() -> tuple[nn.Sequential, Mask]:
    model = network()
    return model, prune(model, 0.3, distribution="layerwise")


def loss(model: nn.Module, step: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(step)
    dtype = next(model.parameters()).dtype
    return nn.functional.cross_entropy(model(torch.randn(8, 12, generator=draw).to(dtype)), torch.arange(8) % 4)


def sgd(model: nn.Module) -> optim.Optimizer:
    return optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):

        def closure(step: int = step) -> torch.Tensor:
            optimizer.zero_grad()
            value = loss(model, step)
            value.backward()
            return value

        optimizer.step(closure)


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert all(map(torch.equal, one.parameters(), other.parameters()))


def assigned(model: nn.Module) -> None:
    model.load_state_dict(network(1).state_dict(), assign=True)


def swapped(model: nn.Module) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(network(1).state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def rebuilt(model: nn.Module) -> None:
    other = network(1)
    model[2], model[0], model[3] = other[2], other[0], other[3]


def unregistered(model: nn.Module) -> None:
    """Past `nn.Module.__setattr__`, as `torch.__future__.set_overwrite_module_params_on_conversion` does."""
    for name, value in network(1).state_dict().items():
        path, _, local = name.rpartition(".")
        model.get_submodule(path)._parameters[local] = nn.Parameter(value)


WAYS = {f.__name__: f for f in (assigned, swapped, rebuilt, unregistered)}


@pytest.mark.parametrize("before", [False, True], ids=["at once", "after some steps"])
@pytest.mark.parametrize("way", WAYS)
def test_replacements_are_held(way, before):
    model, mask = masked()
    with hold(model, mask) as held:
        if before:
            train(model, sgd(model))
        WAYS[way](model)
        own = sgd(model)
        train(model, own)
        held.check(own)
    for name, parameter in mask.parameters(model).items():
        assert not parameter[~mask[name]].any()
    assert all(not parameter._backward_hooks for parameter in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_a_replacement_without_a_step_fails_the_check(way):
    model, mask = masked()
    with pytest.raises(HoldError, match=r"pruned weights of '0\.weight' are not 0"), hold(model, mask):
        WAYS[way](model)


def test_untied_weights_are_all_held(build):
    case = build("lstm")
    mask = prune(case.model, 0.3, distribution="layerwise")
    with hold(case.model, mask) as held:
        state = {name: torch.randn_like(value) for name, value in case.model.state_dict().items()}
        case.model.load_state_dict(state, assign=True)
        assert case.model.decoder.weight is not case.model.encoder.weight
        own = sgd(case.model)
        for batch in case.batches:
            own.zero_grad()
            case.loss(case.model, batch).backward()
            own.step()
            for tied in (case.model.encoder, case.model.decoder):
                assert not tied.weight[~mask["encoder.weight"]].any()
        held.check(own)
        with torch.no_grad():
            case.model.decoder.weight.fill_(1)
        with pytest.raises(HoldError, match=r"'decoder\.weight'"):
            held.check()
        mask.apply_(case.model)
        case.model.decoder.weight = case.model.encoder.weight


def test_weights_that_become_tied_have_both_masks():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False))
    torch.manual_seed(0)
    mask = Mask({name: torch.rand(6, 6) < 0.5 for name in ("0.weight", "1.weight")})
    with hold(model, mask):
        model[1].weight = model[0].weight
        model(torch.ones(1, 6)).sum().backward()
        sgd(model).step()
        assert not model[0].weight[~(mask["0.weight"] & mask["1.weight"])].any()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda model: model.__delitem__(3),
        lambda model: model.__setitem__(3, nn.Linear(16, 5)),
        lambda model: nn.utils.parametrizations.orthogonal(model[3]),
    ],
    ids=["deleted", "resized", "parametrised"],
)
def test_a_name_that_is_gone_is_an_error_at_the_next_step(spoil):
    model, mask = masked()
    held, own = hold(model, mask), sgd(model)
    spoil(model)
    model(torch.randn(8, 12)).sum().backward()
    for look in (own.step, held.check):
        with pytest.raises(HoldError, match=r"the mask cannot be held.*'3\.weight'"):
            look()
    held.release()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_held_model_trains_densely(copied):
    model, mask = masked()
    with hold(model, mask):
        train(model, sgd(model))
        twin = copied(model)
        train(twin, sgd(twin))
        train(model, sgd(model))
    assert all(parameter[~mask[name]].any() for name, parameter in mask.parameters(twin).items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_hold_refuses_to_be_used(copied):
    model, mask = masked()
    model.held = hold(model, mask)
    twin = copied(model)
    assert_same(model, twin)
    twin.held.release()
    for use in (twin.held.check, twin.held.mask_gradients, twin.held.mask_weights, twin.held.__enter__):
        with pytest.raises(UsageError, match=r"copies hold no weights: hold .*tk\.hold\(model, mask\)"):
            use()
    train(model, sgd(model))
    model.held.check()
    model.held.release()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Rprop])
def test_a_model_that_changes_its_type_between_steps(dtype, optimizer):
    """Rprop is masked after its steps; the cached mask follows the weights."""
    model, mask = masked()
    with hold(model, mask) as held:
        train(model, optimizer(model.parameters(), lr=0.01))
        model.to(dtype)
        held.mask_weights()
        own = optimizer(model.parameters(), lr=0.01)
        train(model, own)
        held.check(own)
        assert all(tensor.dtype == dtype and not tensor.requires_grad for tensor in held.tensors)


@pytest.mark.parametrize("device", ["meta", "cuda"])
@pytest.mark.parametrize("optimizer", [optim.SGD, optim.Rprop])
def test_a_model_that_changes_its_device(device, optimizer):
    """The device "meta" computes nothing, but refuses to be mixed with others."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    model, mask = masked()
    held = hold(model, mask)
    train(model, optimizer(model.parameters(), lr=0.01), 1)
    model.to(device)
    for _ in range(2):
        own = optimizer(model.parameters(), lr=0.01)
        own.zero_grad()
        model(torch.randn(8, 12, device=device)).square().sum().backward()
        own.step()
    held.mask_gradients()
    held.mask_weights()
    if device == "cuda":
        held.check(own)
        model.cpu()
        train(model, optimizer(model.parameters(), lr=0.01))
        held.check()
    assert {tensor.device.type for tensor in held.tensors} == {next(model.parameters()).device.type}
    held.release()


def test_state_that_comes_with_another_parameter_is_cleared():
    model, mask = masked()
    own = sgd(model)
    with hold(model, mask) as held:
        train(model, own)
        old, new = model[0].weight, nn.Parameter(torch.ones(16, 12))
        model[0].weight = new
        own.param_groups[0]["params"][0] = new
        own.state[new] = {"momentum_buffer": torch.ones(16, 12)}
        del own.state[old]
        train(model, own)
        held.check(own)


def test_a_model_that_lost_a_parameter_stops_no_other_models_training() -> None:
    lost, other = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    held = hold(lost, prune(lost, 0.5))
    lost[0] = nn.Linear(4, 2)
    with hold(other, prune(other, 0.5)):
        other(torch.randn(2, 4)).sum().backward()
        optim.SGD(other.parameters(), 0.1).step()
    lost(torch.randn(2, 4)).sum().backward()
    with pytest.raises(HoldError, match=r"another shape of its parameter '0\.weight'"):
        optim.SGD(lost.parameters(), 0.1).step()
    with pytest.raises(HoldError, match=r"another shape of its parameter '0\.weight'"):
        held.check()
    held.release()
    optim.SGD(lost.parameters(), 0.1).step()


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
        train(model, own)
        twin = copy.deepcopy(model)
        mask = prune(model, 0.3, distribution="layerwise")
        with hold(model, mask):
            train(model, own)
        with hold(twin, mask):
            train(twin, self.optimizer(twin))  # one that has no history
        assert_same(model, twin)

    def test_its_history_of_the_masked_model_is_kept(self):
        model, mask = masked()
        twin = copy.deepcopy(model)
        own, other = self.optimizer(model), self.optimizer(twin)
        for _ in range(2):
            with hold(model, mask):
                train(model, own)
            state = copy.deepcopy(own.state_dict())
            own = self.optimizer(model)
            own.load_state_dict(state)
        with hold(twin, mask):
            train(twin, other)
            train(twin, other)
        assert_same(model, twin)

    def test_other_layers_do_not_make_it_forget(self):
        model, free = network(), nn.Linear(4, 4)
        mask = prune(model, 0.3, distribution="layerwise")
        own = optim.LBFGS([*free.parameters(), *model.parameters()], lr=0.5, max_iter=4)
        train(nn.Sequential(model, free), own)
        with hold(model, mask):
            train(nn.Sequential(model, free), own)
            train(nn.Sequential(model, free), own)
            (state,) = own.state.values()
            assert state["n_iter"] == 2 * 3 * 4


def test_state_in_lists_is_cleared_too():
    model = network()
    own = Delayed(model.parameters(), lr=0.1)
    train(model, own)
    mask = prune(model, 0.3, distribution="layerwise")
    with hold(model, mask) as held:
        with pytest.raises(HoldError, match="pruned optimiser state of"):
            held.check(own)
        train(model, own)
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


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "make", [lambda p: optim.SGD(p, lr=0.1), lambda p: optim.AdamW(p, lr=0.1, fused=True), optim.Adafactor]
)
def test_a_loss_that_is_not_finite_is_reported(make, number, replaced):
    model, mask = masked()
    held = hold(model, mask)
    if replaced:
        train(model, make(model.parameters()))
        model[3] = nn.Linear(16, 4)
    own = make(model.parameters())
    for factor in (1, number, 1):
        own.zero_grad()
        (loss(model) * factor).backward()
        own.step()
    with pytest.raises(HoldError, match=r"\(up to nan\): the loss or its gradient was not finite, or something"):
        held.check()
    held.release()
