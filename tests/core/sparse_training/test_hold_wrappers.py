"""`hold` under what people wrap around models and optimisers: each is compared with masking by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from samples import sample
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import hold

optim = torch.optim
STEPS = 5


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(12, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, inputs):
        return self.last(torch.relu(self.norm(self.first(inputs))))


def batch(step: int) -> torch.Tensor:
    return torch.randn(16, 12, generator=torch.Generator().manual_seed(step))


def loss(model: nn.Module, step: int) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch(step)).float(), torch.arange(16) % 4)


def momentum(parameters, lr: float = 0.1) -> optim.Optimizer:
    return optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-2)


def pair() -> tuple[Network, Network, Mask]:
    model = Network()
    return model, copy.deepcopy(model), prune(model, 0.3, distribution="layerwise")


class ByHand:
    """The slow reference: multiplies weights and gradients by the mask when it is told to."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        parameters = dict(model.named_parameters())
        self.pairs = [(parameters[name], kept.float()) for name, kept in mask.items()]
        mask.apply_(model)

    def gradients(self) -> None:
        for parameter, kept in self.pairs:
            if parameter.grad is not None:
                parameter.grad.mul_(kept)


def train_by_hand(model: nn.Module, mask: Mask, optimizer, steps: int = STEPS) -> None:
    train(model, optimizer, steps, after_backward=ByHand(model, mask).gradients)


def train(model: nn.Module, optimizer, steps: int = STEPS, loss=loss, after_backward=lambda: None) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, step).backward()
        after_backward()
        optimizer.step()


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, left), right in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def assert_zero(model: nn.Module, mask: Mask) -> None:
    for name, parameter in mask.parameters(model).items():
        assert not parameter.detach()[~mask[name]].any(), name


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


class TestOptimizers:
    def test_sharpness_aware(self):
        model, other, mask = pair()

        def run(model: nn.Module, own: SAM, mask_gradients) -> None:
            for step in range(STEPS):

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
        words = torch.randint(20, (STEPS, 4, 3), generator=torch.Generator().manual_seed(1))
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
        train_by_hand(other, mask, momentum(other.parameters()))
        with hold(model, mask) as held:
            each = {parameter: momentum([parameter]) for parameter in model.parameters()}

            def stepped(parameter: nn.Parameter) -> None:
                each[parameter].step()
                each[parameter].zero_grad()

            handles = [one.register_post_accumulate_grad_hook(stepped) for one in model.parameters()]
            for step in range(STEPS):
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
            for step in range(STEPS + 5):
                own.zero_grad()
                with torch.autocast("cpu", torch.float16):
                    value = loss(model, step)
                scaler.scale(value).backward()
                mask_gradients()
                scaler.step(own)
                scaler.update()
            return scaler.get_scale()

        hand = ByHand(other, mask)
        scale = run(other, hand.gradients)
        with hold(model, mask):
            assert run(model, lambda: None) == scale < 2.0**40
        assert_zero(model, mask)
        assert_same(model, other)
        assert any(
            not torch.equal(one, two) for one, two in zip(model.parameters(), Network().parameters(), strict=True)
        )


class TestModels:
    @pytest.mark.parametrize("compile_first", sample([True, False], 1))
    def test_compiled(self, compile_first):
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()))
        compiled = torch.compile(model, backend="aot_eager") if compile_first else None
        with hold(compiled or model, mask) as held:
            compiled = compiled or torch.compile(model, backend="aot_eager")
            own = momentum(compiled.parameters())
            train(compiled, own)
            held.check(own)
        assert_same(model, other)

    @pytest.mark.parametrize("model_too", sample(["whole", "a layer", "no"], 1))
    @pytest.mark.parametrize("whole_step", sample([False, True], 1))
    def test_a_compiled_step(self, model_too, whole_step):
        """The optimiser's step, or that of the whole training; the model that is held may be compiled as well."""
        torch.compiler.reset()
        model, other, mask = pair()
        by_hand, own = momentum(other.parameters()), momentum(model.parameters())
        train_by_hand(other, mask, by_hand)
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
            for step in range(STEPS):
                stepping(batch(step))
            held.check(own)
        assert_same(model, other)

    def test_two_masks_one_in_the_other(self):
        model, other, wide = pair()
        narrow = prune(model, 0.1, within=wide, distribution="layerwise")
        own = momentum(other.parameters())
        train_by_hand(other, wide, own)
        for parameter, kept in ByHand(other, narrow).pairs:
            own.state[parameter]["momentum_buffer"].mul_(kept)
        train_by_hand(other, narrow, own)
        train_by_hand(other, wide, own)
        with hold(model, wide) as outer:
            own = momentum(model.parameters())
            train(model, own)
            with hold(model, narrow) as inner:
                train(model, own)
                inner.check(own)
            train(model, own)
            outer.check(own)
        assert_zero(model, wide)
        assert any(p[wide[name] & ~narrow[name]].any() for name, p in wide.parameters(model).items())
        assert_same(model, other)

    def test_accelerate(self):
        accelerate = pytest.importorskip("accelerate")
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()))
        accelerator = accelerate.Accelerator(cpu=True)
        wrapped, own = accelerator.prepare(model, momentum(model.parameters()))
        with hold(wrapped, mask) as held:
            for step in range(STEPS):
                own.zero_grad()
                accelerator.backward(loss(wrapped, step))
                own.step()
            held.check(own)
            held.check(own.optimizer)
        assert_same(accelerator.unwrap_model(wrapped), other)
