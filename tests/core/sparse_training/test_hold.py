"""`hold` under what people wrap around models and optimisers: each is compared with masking by hand."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint

from samples import sample
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import Hold, hold
from ticketry.errors import HoldError, MaskError

optim = torch.optim


class Mixing(Optimizer):
    """An optimiser of one's own in which every weight moves by its neighbour's gradient and by the mean."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moved = parameter.grad.flatten().roll(1).reshape(parameter.shape) + parameter.grad.mean()
                    parameter.sub_(moved, alpha=group["lr"])


class Subclassed(optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(1e-3)


OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9),
    "dampening": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "maximize": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-2, maximize=True),
    "sgd-foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "sgd-fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam-decay": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "adam-foreach": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adam-fused": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1, fused=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-foreach": lambda p: optim.AdamW(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "nadam": lambda p: optim.NAdam(p, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    "radam": lambda p: optim.RAdam(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "adagrad-fused": lambda p: optim.Adagrad(p, lr=0.01, fused=True),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0, weight_decay=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True, weight_decay=0.1),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "mixing": lambda p: Mixing(p, lr=0.1),
    "subclassed": lambda p: Subclassed(p, lr=0.1, momentum=0.9),
}
if hasattr(optim, "Muon"):
    OPTIMIZERS["muon"] = lambda p: optim.Muon([one for one in p if one.dim() == 2], lr=0.02)


def masked_by_hand(model: nn.Module, mask: Mask) -> list[tuple[nn.Parameter, torch.Tensor]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return [(parameters[name], kept.float()) for name, kept in mask.items()]


class ByHand:
    """The slow reference: multiplies weights and gradients by the mask when it is told to."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self.pairs = masked_by_hand(model, mask)
        self.weights()

    @torch.no_grad()
    def weights(self) -> None:
        for parameter, kept in self.pairs:
            parameter.mul_(kept)

    def gradients(self) -> None:
        for parameter, kept in self.pairs:
            if parameter.grad is not None:
                parameter.grad.mul_(kept)


def train_by_hand(model: nn.Module, mask: Mask, optimizer: Optimizer, batches, loss, clip: float | None = None):
    hand = ByHand(model, mask)
    return train(model, optimizer, batches, loss, hand.weights, clip, hand.gradients)


def train(
    model, optimizer, batches, loss, after_step=lambda: None, clip: float | None = None, before_clip=lambda: None
):
    norms = []
    for batch in batches:
        optimizer.zero_grad()
        loss(model, batch).backward()
        before_clip()
        if clip is not None:
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), clip))
        optimizer.step()
        after_step()
    return norms


def require_zero(model: nn.Module, mask: Mask) -> None:
    for parameter, kept in masked_by_hand(model, mask):
        assert not parameter.detach()[kept == 0].any()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, left), (_, right) in zip(one.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(left, right), name


def twins(build, name: str, density: float = 0.3):
    case = build(name)
    mask = prune(case.model, density, distribution="layerwise")
    return case, copy.deepcopy(case.model), mask


@pytest.mark.parametrize("model", sample(["transformer", "resnet", "lstm"], 1))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_removed_weights_stay_0_and_kept_ones_train_as_by_hand(build, model, optimizer):
    case, other, mask = twins(build, model)
    train_by_hand(other, mask, OPTIMIZERS[optimizer](other.parameters()), case.batches, case.loss)
    own = OPTIMIZERS[optimizer](case.model.parameters())
    with hold(case.model, mask) as held:
        train(case.model, own, case.batches, case.loss, lambda: require_zero(case.model, mask))
        held.check(own)
    require_zero(case.model, mask)
    assert_same(case.model, other)
    assert any(
        not torch.equal(a, b) for a, b in zip(case.model.parameters(), build(model).model.parameters(), strict=True)
    )


def test_lbfgs(build):
    case, other, mask = twins(build, "transformer")
    batch = case.batches[0]

    def run(model: nn.Module, optimizer: Optimizer, mask_gradients) -> list[float]:
        def closure():
            optimizer.zero_grad()
            value = case.loss(model, batch)
            value.backward()
            mask_gradients()
            return value

        losses = []
        for _ in range(4):
            losses.append(float(optimizer.step(closure).detach()))
            require_zero(model, mask)
        return losses

    by_hand = run(other, optim.LBFGS(other.parameters(), max_iter=4), ByHand(other, mask).gradients)
    with hold(case.model, mask):
        held = run(case.model, optim.LBFGS(case.model.parameters(), max_iter=4), lambda: None)
    assert held == by_hand
    assert held[-1] < held[0]
    assert_same(case.model, other)


@pytest.mark.parametrize("model", ["resnet", "lstm", "transformer"])
def test_clipping_sees_the_masked_gradient(build, model):
    case, other, mask = twins(build, model)
    by_hand = train_by_hand(other, mask, optim.SGD(other.parameters(), lr=0.5), case.batches, case.loss, clip=0.1)
    dense = copy.deepcopy(case.model)
    with hold(case.model, mask):
        norms = train(case.model, optim.SGD(case.model.parameters(), lr=0.5), case.batches, case.loss, clip=0.1)
    assert norms == by_hand
    assert_same(case.model, other)
    unmasked = train(mask.apply_(dense), optim.SGD(dense.parameters(), lr=0.5), case.batches[:1], case.loss, clip=0.1)
    assert norms[0] < unmasked[0]


def test_accumulated_gradients_are_masked(build):
    case, other, mask = twins(build, "resnet")
    hand = ByHand(other, mask)
    with hold(case.model, mask):
        for batch in case.batches[:3]:
            for model in (case.model, other):
                case.loss(model, batch).backward()
            hand.gradients()
            assert all(
                torch.equal(a.grad, b.grad) for a, b in zip(case.model.parameters(), other.parameters(), strict=True)
            )


@pytest.mark.parametrize("optimizer", ["momentum", "nesterov", "adam", "adamw", "rmsprop", "mixing"])
def test_momentum_from_before_does_not_move_removed_weights(build, optimizer):
    case = build("resnet")
    own = OPTIMIZERS[optimizer](case.model.parameters())
    train(case.model, own, case.batches[:3], case.loss)
    dense = copy.deepcopy(own.state_dict())
    mask = prune(case.model, 0.3, distribution="layerwise")
    with hold(case.model, mask) as held:
        train(case.model, own, case.batches[3:], case.loss, lambda: require_zero(case.model, mask))
        held.check(own)
        own.load_state_dict(dense)
        train(case.model, own, case.batches[:3], case.loss, lambda: require_zero(case.model, mask))
        held.check(own)


def test_momentum_is_cleared_for_an_optimizer_that_takes_the_place_of_another(build):
    """Python gives the address, and so the id, of an object that is gone to the next of its size."""
    case = build("resnet")
    mask = prune(case.model, 0.3, distribution="layerwise")
    warm = optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
    train(case.model, warm, case.batches[:2], case.loss)
    with hold(case.model, mask):
        for _ in range(50):
            own = optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
            own.step()
            address = id(own)
            del own
            own = optim.SGD(case.model.parameters(), lr=0.1, momentum=0.9)
            if id(own) == address:
                break
        else:
            pytest.skip("no address was used again")
        own.load_state_dict(copy.deepcopy(warm.state_dict()))
        train(case.model, own, case.batches[:1], case.loss, lambda: require_zero(case.model, mask))


def test_weights_and_earlier_gradients_are_masked_on_entering(build):
    case = build("lstm")
    mask = prune(case.model, 0.3, distribution="layerwise")
    case.loss(case.model, case.batches[0]).backward()
    with hold(case.model, mask):
        require_zero(case.model, mask)
        assert case.model.decoder.weight is case.model.encoder.weight
        optim.SGD(case.model.parameters(), lr=0.1).step()
        require_zero(case.model, mask)


def test_after_the_block_training_is_dense_again(build):
    case, other, mask = twins(build, "resnet")
    own = Mixing(case.model.parameters(), lr=0.1)
    with hold(case.model, mask):
        train(case.model, own, case.batches[:1], case.loss)
    other.load_state_dict(case.model.state_dict())
    train(case.model, own, case.batches[1:], case.loss)
    train(other, Mixing(other.parameters(), lr=0.1), case.batches[1:], case.loss)
    assert_same(case.model, other)
    assert all(not parameter._backward_hooks for parameter in case.model.parameters())
    assert any(parameter.detach()[kept == 0].any() for parameter, kept in masked_by_hand(case.model, mask))


def test_the_held_model_keeps_class_names_and_state_dict(build):
    case, other, mask = twins(build, "lstm")
    with hold(case.model, mask):
        assert type(case.model) is type(other)
        assert list(case.model.state_dict()) == list(other.state_dict())
        assert [key for key, _ in case.model.named_parameters()] == [key for key, _ in other.named_parameters()]
        assert scope(copy.deepcopy(case.model)) == scope(other)


def test_channels_last(build):
    case, other, mask = twins(build, "resnet")
    case.model.to(memory_format=torch.channels_last)
    with hold(case.model, mask):
        train(case.model, optim.SGD(case.model.parameters(), lr=0.1), case.batches, case.loss)
    require_zero(case.model, mask)
    train_by_hand(other, mask, optim.SGD(other.parameters(), lr=0.1), case.batches, case.loss)
    for one, two in zip(case.model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two)  # another layout sums in another order


def test_frozen_weights_can_be_held_and_unfrozen(build):
    case = build("resnet")
    mask = prune(case.model, 0.3, distribution="layerwise")
    case.model.conv.weight.requires_grad_(False)
    own = optim.SGD(case.model.parameters(), lr=0.1)
    with hold(case.model, mask):
        before = case.model.conv.weight.clone()
        train(case.model, own, case.batches[:2], case.loss)
        assert torch.equal(case.model.conv.weight, before)
        case.model.conv.weight.requires_grad_(True)
        train(case.model, own, case.batches[2:], case.loss, lambda: require_zero(case.model, mask))
        assert not torch.equal(case.model.conv.weight, before)


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
def test_a_loop_that_masks_for_itself(build, name):
    """`hooks=False`: gradients once a step, momentum once, nothing else."""
    case, other, mask = twins(build, name)
    train_by_hand(other, mask, optim.AdamW(other.parameters(), lr=0.01), case.batches, case.loss)
    held, own = Hold(case.model, mask, hooks=False), optim.AdamW(case.model.parameters(), lr=0.01)
    held.mask_gradients()  # nothing to mask yet
    for batch in case.batches:
        own.zero_grad()
        case.loss(case.model, batch).backward()
        held.mask_gradients()
        own.step()
        held.check(own)
    assert_same(case.model, other)
    assert all(not parameter._backward_hooks for parameter in case.model.parameters())


class TestViolations:
    def test_the_count_and_the_largest_are_named(self):
        model, mask = nn.Linear(2, 2, bias=False), Mask({"weight": torch.eye(2)})
        held = hold(model, mask)
        (tensor,) = held.tensors
        assert torch.equal(tensor, torch.eye(2))
        with torch.no_grad():
            model.weight.fill_(-2.5)
        said = r"^2 of 2 pruned weights of 'weight' are not 0 \(up to 2\.5\): something outside the optimiser's step"
        with pytest.raises(HoldError, match=said):
            held.check()
        held.mask_weights()
        held.check()
        held.release()
        held.release()

    def test_an_error_in_the_block_is_not_hidden(self, build):
        case, before, mask = twins(build, "resnet")

        def break_both_promises():
            case.model.load_state_dict(before.state_dict())
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), hold(case.model, mask):
            break_both_promises()
        assert all(not parameter._backward_hooks for parameter in case.model.parameters())

    def test_a_mask_of_another_model(self, build):
        case = build("resnet")
        before = copy.deepcopy(case.model)
        with pytest.raises(MaskError, match="the mask does not fit"):
            hold(case.model, Mask({"conv.weight": torch.zeros(6, 3, 3, 3), "fc.weight": torch.ones(5, 9)}))
        assert_same(case.model, before)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, inputs):
        return self.last(torch.relu(self.norm(self.first(inputs))))


STEPS = range(5)


def batch(step: int) -> torch.Tensor:
    return torch.randn(16, 12, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, step: int) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch(step)).float(), torch.arange(16) % 4)


def momentum(parameters, lr: float = 0.1) -> optim.Optimizer:
    return optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-2)


def pair() -> tuple[Network, Network, Mask]:
    model = Network()
    return model, copy.deepcopy(model), prune(model, 0.3, distribution="layerwise")


class SAM(optim.Optimizer):
    """Sharpness-aware minimisation: Foret et al. 2021 (arXiv 2010.01412), algorithm 1, with rho for the radius."""

    def __init__(self, parameters, base, rho: float = 0.05) -> None:
        super().__init__(parameters, {"rho": rho})
        self.base = base(self.param_groups)

    @torch.no_grad()
    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in parameters]).norm()
        climbs = [p.grad * (self.param_groups[0]["rho"] / norm) for p in parameters]
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.add_(climb)
        with torch.enable_grad():
            closure()
        for parameter, climb in zip(parameters, climbs, strict=True):
            parameter.sub_(climb)
        self.base.step()


class Lookahead:
    """Zhang et al. 2019 (arXiv 1907.08610), algorithm 1: a plain class around an optimiser, as it is mostly written."""

    def __init__(self, base: Optimizer, k: int = 2, alpha: float = 0.5) -> None:
        self.base, self.k, self.alpha, self.done = base, k, alpha, 0
        self.fast = [p for group in base.param_groups for p in group["params"]]
        self.slow = [p.detach().clone() for p in self.fast]
        self.zero_grad = base.zero_grad

    @torch.no_grad()
    def step(self) -> None:
        self.base.step()
        self.done += 1
        if self.done % self.k == 0:
            for slow, parameter in zip(self.slow, self.fast, strict=True):
                slow.add_(parameter - slow, alpha=self.alpha)
                parameter.copy_(slow)


class Several:
    """An optimiser for each part of a network."""

    def __init__(self, model: nn.Module) -> None:
        rest = [*model.norm.parameters(), *model.last.parameters()]
        self.each, self.zero_grad = [momentum(model.first.parameters()), optim.Rprop(rest)], model.zero_grad

    def step(self) -> None:
        for one in self.each:
            one.step()


class Adapted(nn.Module):
    """A linear layer with a LoRA adapter, in peft's names (Hu et al. 2021): W x + B A x, W frozen."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, inputs):
        return self.base_layer(inputs) + self.lora_B(self.lora_A(inputs))


def adapted() -> tuple[Network, list[nn.Parameter]]:
    """A network with an adapter, and what is trained of it."""
    model = Network()
    model.first = Adapted(model.first)
    return model, [one for one in model.parameters() if one.requires_grad]


class TestOptimizers:
    @pytest.mark.parametrize("wrapper", [Several, lambda model: Lookahead(momentum(model.parameters()))])
    def test_several_optimizers_and_lookahead(self, wrapper):
        """Lookahead begins with the mask."""
        model, other, mask = pair()
        mask.apply_(other)
        train_by_hand(other, mask, wrapper(other), STEPS, loss)
        with hold(model, mask):
            train(model, wrapper(model), STEPS, loss, lambda: require_zero(model, mask))
        assert_same(model, other)

    def test_lookahead_that_remembers_the_dense_model_is_told(self):
        model, _, mask = pair()
        own = Lookahead(momentum(model.parameters()))
        with pytest.raises(HoldError, match="something outside the optimiser's step wrote them"), hold(model, mask):
            train(model, own, range(2), loss)

    def test_sharpness_aware(self):
        model, other, mask = pair()

        def run(model: nn.Module, own: SAM, mask_gradients) -> None:
            for step in STEPS:

                def closure(step=step) -> None:
                    own.zero_grad()
                    loss(model, step).backward()
                    mask_gradients()

                closure()
                own.step(closure)

        run(other, SAM(other.parameters(), momentum), ByHand(other, mask).gradients)
        with hold(model, mask) as held:
            own = SAM(model.parameters(), momentum)
            run(model, own, lambda: None)
            held.check(own)
            held.check(own.base)
        assert_same(model, other)

    def test_sparse_adam(self):
        torch.manual_seed(0)
        model = nn.EmbeddingBag(20, 6, sparse=True)
        other, mask = copy.deepcopy(model), prune(model, 0.4, scope=scope(model, embeddings=True))
        words = torch.randint(20, (5, 4, 3), generator=torch.Generator().manual_seed(1))
        mask.apply_(other)
        by_hand = optim.SparseAdam(other.parameters(), lr=0.01)
        for each in words:
            by_hand.zero_grad()
            other(each).square().sum().backward()
            other.weight.grad = (other.weight.grad.to_dense() * mask["weight"]).sparse_mask(
                other.weight.grad.coalesce()
            )
            by_hand.step()
        model(words[0]).square().sum().backward()  # before the mask
        with hold(model, mask) as held:
            assert not model.weight.grad.to_dense()[~mask["weight"]].any()
            own = optim.SparseAdam(model.parameters(), lr=0.01)
            for each in words:
                own.zero_grad()
                model(each).square().sum().backward()
                own.step()
            held.check(own)
        assert_same(model, other)

    def test_an_optimizer_a_parameter_that_steps_in_the_backward_pass(self):
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()), STEPS, loss)
        with hold(model, mask) as held:
            each = {parameter: momentum([parameter]) for parameter in model.parameters()}

            def stepped(parameter: nn.Parameter) -> None:
                each[parameter].step()
                each[parameter].zero_grad()

            handles = [one.register_post_accumulate_grad_hook(stepped) for one in model.parameters()]
            for step in STEPS:
                loss(model, step).backward()
            for one in each.values():
                held.check(one)
        for handle in handles:
            handle.remove()
        assert_same(model, other)

    @pytest.mark.parametrize("fused", [False, True])
    def test_grad_scaler_in_fp16(self, fused):
        """A step whose gradients overflow is left out, and is not told as one that diverged."""
        model, other, mask = pair()

        def run(model: nn.Module, mask_gradients) -> float:
            own = optim.Adam(model.parameters(), lr=0.01, fused=fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=2, backoff_factor=2.0**-10)
            for step in range(10):
                own.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    value = loss(model, step)
                scaler.scale(value).backward()
                mask_gradients()
                scaler.step(own)
                scaler.update()
            return scaler.get_scale()

        scale = run(other, ByHand(other, mask).gradients)
        with hold(model, mask):
            assert run(model, lambda: None) == scale < 2.0**40
        require_zero(model, mask)
        assert_same(model, other)
        assert any(
            not torch.equal(one, two) for one, two in zip(model.parameters(), Network().parameters(), strict=True)
        )


def checkpointed(model: Network, step: int, reentrant: bool) -> torch.Tensor:
    inner = checkpoint(model.first, batch(step).requires_grad_(), use_reentrant=reentrant)
    return nn.functional.cross_entropy(model.last(torch.relu(model.norm(inner))), torch.arange(16) % 4)


def functional_call(model: nn.Module, step: int) -> torch.Tensor:
    return loss(lambda inputs: torch.func.functional_call(model, dict(model.named_parameters()), inputs), step)


def in_autocast(model: nn.Module, step: int) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss(model, step)


LOSSES = {
    "activation checkpoints": partial(checkpointed, reentrant=False),
    "reentrant activation checkpoints": partial(checkpointed, reentrant=True),
    "functional_call": functional_call,
    "autocast": in_autocast,
    "DataParallel": lambda model, step: loss(nn.DataParallel(model), step),
}


class TestModels:
    @pytest.mark.parametrize("way", LOSSES)
    def test_ways_to_compute_a_loss(self, way):
        model, other, mask = pair()
        plain = in_autocast if way == "autocast" else loss
        train_by_hand(other, mask, momentum(other.parameters()), STEPS, plain)
        with hold(nn.DataParallel(model) if way == "DataParallel" else model, mask) as held:
            own = momentum(model.parameters())
            train(model, own, STEPS, LOSSES[way], lambda: require_zero(model, mask))
            held.check(own)
        assert_same(model, other)

    @pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)])
    @pytest.mark.parametrize("use_buffers", [False, True])
    def test_averages_of_weights(self, average, use_buffers):
        """SWA and EMA: an average that begins with the mask is masked too."""
        model, _, mask = pair()
        with hold(model, mask) as held:
            averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
            own = momentum(model.parameters())
            schedule = SWALR(own, swa_lr=0.1)
            for step in STEPS:
                train(model, own, [step], loss, lambda: averaged.update_parameters(model))
                schedule.step()
            update_bn([batch(step) for step in range(3)], averaged)
            held.check(own)
        require_zero(averaged.module, mask)

    @pytest.mark.parametrize("choice", [{"spare": "*.lora_?"}, {"include": "*.lora_?"}])
    def test_adapters_train_over_a_pruned_base_and_are_held_in_scope(self, choice):
        (model, trained), (other, trained_by_hand) = adapted(), adapted()
        mask = prune(model, 0.5, scope=scope(model, **choice), score="random", distribution="layerwise")
        assert ("first.lora_A.weight" in mask) == ("include" in choice)
        frozen = model.first.base_layer.weight.detach() * mask["first.base_layer.weight"]
        train_by_hand(other, mask, momentum(trained_by_hand), STEPS, loss)
        with hold(model, mask) as held:
            own = momentum(trained)
            train(model, own, STEPS, loss)
            held.check(own)
        assert torch.equal(model.first.base_layer.weight, frozen)
        assert bool(model.first.lora_B.weight.any())
        assert_same(model, other)

    def test_a_merge_of_an_adapter_while_its_base_is_held_is_told(self):
        model, trained = adapted()
        held = hold(model, prune(model, 0.3, scope=scope(model, spare="*.lora_?"), distribution="layerwise"))
        train(model, momentum(trained), STEPS, loss)
        with torch.no_grad():
            model.first.base_layer.weight += model.first.lora_B.weight @ model.first.lora_A.weight
        with pytest.raises(HoldError, match=r"'first\.base_layer\.weight' are not 0"):
            held.check()
        held.release()

    @pytest.mark.parametrize("compile_first", sample([True, False], 1))
    def test_compiled(self, compile_first):
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()), STEPS, loss)
        compiled = torch.compile(model, backend="aot_eager") if compile_first else None
        with hold(compiled if compile_first else model, mask) as held:
            compiled = compiled if compile_first else torch.compile(model, backend="aot_eager")
            own = momentum(compiled.parameters())
            train(compiled, own, STEPS, loss)
            held.check(own)
        assert_same(model, other)

    @pytest.mark.parametrize("model_too", sample(["whole", "a layer", "no"], 1))
    @pytest.mark.parametrize("whole_step", sample([False, True], 1))
    def test_a_compiled_step(self, model_too, whole_step):
        """The optimiser's step, or that of the whole training; the model that is held may be compiled as well."""
        torch.compiler.reset()
        model, other, mask = pair()
        by_hand, own = momentum(other.parameters()), momentum(model.parameters())
        train_by_hand(other, mask, by_hand, STEPS, loss)
        called = torch.compile(model, backend="eager") if model_too == "whole" else model
        if model_too == "a layer":
            model.first = torch.compile(model.first, backend="eager")

        def step_by(inputs: torch.Tensor) -> None:
            own.zero_grad()
            nn.functional.cross_entropy(called(inputs), torch.arange(16) % 4).backward()
            step_of_it()

        step_of_it = own.step if whole_step else torch.compile(own.step, backend="eager")
        stepping = torch.compile(step_by, backend="eager") if whole_step else step_by
        with hold(called, mask) as held:
            for step in STEPS:
                stepping(batch(step))
            held.check(own)
        assert_same(model, other)

    def test_two_masks_one_in_the_other(self):
        model, other, wide = pair()
        narrow = prune(model, 0.1, within=wide, distribution="layerwise")
        own = momentum(other.parameters())
        train_by_hand(other, wide, own, STEPS, loss)
        for parameter, kept in ByHand(other, narrow).pairs:
            own.state[parameter]["momentum_buffer"].mul_(kept)
        train_by_hand(other, narrow, own, STEPS, loss)
        train_by_hand(other, wide, own, STEPS, loss)
        with hold(model, wide) as outer:
            own = momentum(model.parameters())
            train(model, own, STEPS, loss)
            with hold(model, narrow) as inner:
                train(model, own, STEPS, loss)
                inner.check(own)
            train(model, own, STEPS, loss)
            outer.check(own)
        require_zero(model, wide)
        assert any(p[wide[name] & ~narrow[name]].any() for name, p in wide.parameters(model).items())
        assert_same(model, other)

    def test_accelerate(self):
        accelerate = pytest.importorskip("accelerate")
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()), STEPS, loss)
        accelerator = accelerate.Accelerator(cpu=True)
        wrapped, own = accelerator.prepare(model, momentum(model.parameters()))
        with hold(wrapped, mask) as held:
            for step in STEPS:
                own.zero_grad()
                accelerator.backward(loss(wrapped, step))
                own.step()
            held.check(own)
            held.check(own.optimizer)
        assert_same(accelerator.unwrap_model(wrapped), other)
