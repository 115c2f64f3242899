"""`hold` under what people wrap around models and optimisers: each is compared with masking by hand."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from samples import sample
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError

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
    """Two equal networks, and a mask of them."""
    model = Network()
    return model, copy.deepcopy(model), prune(model, 0.3, distribution="layerwise")


class ByHand:
    """The slow reference: multiplies weights and gradients by the mask when it is told to."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        parameters = dict(model.named_parameters())
        self.pairs = [(parameters[name], kept.float()) for name, kept in mask.items()]
        self.weights()

    @torch.no_grad()
    def weights(self) -> None:
        for parameter, kept in self.pairs:
            parameter.mul_(kept)

    def gradients(self) -> None:
        for parameter, kept in self.pairs:
            parameter.grad.mul_(kept)


def train_by_hand(model: nn.Module, mask: Mask, optimizer: optim.Optimizer, steps: int = STEPS, loss=loss) -> None:
    hand = ByHand(model, mask)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, step).backward()
        hand.gradients()
        optimizer.step()


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int = STEPS, loss=loss) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, step).backward()
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


class Lookahead:
    """Zhang et al. 2019 (arXiv 1907.08610), algorithm 1: a plain class around an optimiser, as it is mostly written."""

    def __init__(self, base: optim.Optimizer, k: int = 2, alpha: float = 0.5) -> None:
        self.base, self.k, self.alpha, self.done = base, k, alpha, 0
        self.slow = [p.detach().clone() for group in base.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        self.base.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        self.base.step()
        self.done += 1
        if self.done % self.k == 0:
            fast = [p for group in self.base.param_groups for p in group["params"]]
            for slow, parameter in zip(self.slow, fast, strict=True):
                slow.add_(parameter - slow, alpha=self.alpha)
                parameter.copy_(slow)


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

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        self.base_layer.weight += self.lora_B.weight @ self.lora_A.weight
        return self.base_layer


def adapted() -> Network:
    model = Network()
    model.first = Adapted(model.first)
    return model


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

    def test_lookahead_that_begins_with_the_mask(self):
        model, other, mask = pair()
        hand = ByHand(other, mask)
        own = Lookahead(momentum(other.parameters()))
        for step in range(STEPS):
            own.zero_grad()
            loss(other, step).backward()
            hand.gradients()
            own.step()
        with hold(model, mask):
            train(model, Lookahead(momentum(model.parameters())))
        assert_zero(model, mask)
        assert_same(model, other)

    def test_lookahead_that_remembers_the_dense_model_is_told(self):
        """Its slow weights are no state of an optimiser: they are written over the masked ones."""
        model, _, mask = pair()
        own = Lookahead(momentum(model.parameters()))
        with pytest.raises(HoldError, match="something outside the optimiser's step wrote them"), hold(model, mask):
            train(model, own, 2)

    def test_sparse_adam(self):
        """Gradients of an embedding that are sparse tensors."""
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
        hand, own = ByHand(other, mask), momentum(other.parameters())
        for step in range(STEPS):
            own.zero_grad()
            loss(other, step).backward()
            hand.gradients()
            own.step()
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

    def test_several_optimizers(self):
        model, other, mask = pair()

        def two(model: Network) -> list[optim.Optimizer]:
            return [
                momentum(model.first.parameters()),
                optim.Rprop([*model.norm.parameters(), *model.last.parameters()]),
            ]

        hand, by_hand = ByHand(other, mask), two(other)
        for step in range(STEPS):
            other.zero_grad()
            loss(other, step).backward()
            hand.gradients()
            for each in by_hand:
                each.step()
        with hold(model, mask) as held:
            own = two(model)
            for step in range(STEPS):
                model.zero_grad()
                loss(model, step).backward()
                for each in own:
                    each.step()
                    held.check(each)
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
    @pytest.mark.parametrize("use_buffers", [False, True])
    def test_averages_of_weights(self, use_buffers):
        """SWA and EMA: an average that begins with the mask is masked too."""
        from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

        for average in (None, get_ema_multi_avg_fn(0.9)):
            model, other, mask = pair()
            train_by_hand(other, mask, momentum(other.parameters()), 1)
            with hold(model, mask) as held:
                averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=use_buffers)
                own = momentum(model.parameters())
                schedule = SWALR(own, swa_lr=0.1)
                for step in range(STEPS):
                    own.zero_grad()
                    loss(model, step).backward()
                    own.step()
                    averaged.update_parameters(model)
                    schedule.step()
                    if not step:
                        assert_same(averaged.module, other)
                update_bn([batch(step) for step in range(3)], averaged)
                held.check(own)
            assert_zero(averaged.module, mask)
            assert_zero(model, mask)

    @pytest.mark.parametrize("compile_first", sample([True, False], 1))
    def test_compiled(self, compile_first):
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()))
        compiled = torch.compile(model, backend="aot_eager") if compile_first else None
        with hold(model if compiled is None else compiled, mask) as held:
            compiled = torch.compile(model, backend="aot_eager") if compiled is None else compiled
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

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_activation_checkpointing(self, reentrant):
        model, other, mask = pair()

        def thrifty(model: Network, step: int) -> torch.Tensor:
            inner = checkpoint(model.first, batch(step).requires_grad_(), use_reentrant=reentrant)
            return nn.functional.cross_entropy(model.last(torch.relu(model.norm(inner))), torch.arange(16) % 4)

        train_by_hand(other, mask, momentum(other.parameters()))
        with hold(model, mask) as held:
            own = momentum(model.parameters())
            train(model, own, loss=thrifty)
            held.check(own)
        assert_same(model, other)

    def test_functional_call(self):
        """Parameters that are passed to a model for one call take no name from those that are held."""
        model, other, mask = pair()
        train_by_hand(other, mask, momentum(other.parameters()))

        def functional(model: nn.Module, step: int) -> torch.Tensor:
            return loss(lambda inputs: torch.func.functional_call(model, dict(model.named_parameters()), inputs), step)

        with hold(model, mask):
            train(model, momentum(model.parameters()), loss=functional)
        assert_same(model, other)

    def test_two_masks_one_in_the_other(self):
        model, other, wide = pair()
        narrow = prune(model, 0.1, within=wide, distribution="layerwise")
        own = momentum(other.parameters())
        train_by_hand(other, wide, own)
        for state, (_, kept) in zip(
            [own.state[one] for one, _ in ByHand(other, narrow).pairs], ByHand(other, narrow).pairs, strict=True
        ):
            state["momentum_buffer"].mul_(kept)
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


class TestAdapters:
    def test_out_of_scope_they_train_over_a_pruned_base(self):
        model, other = adapted(), adapted()
        mask = prune(model, 0.3, scope=scope(model, spare="*.lora_?"), distribution="layerwise")
        assert list(mask) == ["first.base_layer.weight", "last.weight"]
        frozen = model.first.base_layer.weight.detach() * mask["first.base_layer.weight"]
        mask.apply_(other)
        own = momentum([one for one in other.parameters() if one.requires_grad])
        for step in range(STEPS):
            own.zero_grad()
            loss(other, step).backward()
            other.last.weight.grad.mul_(mask["last.weight"])
            own.step()
        with hold(model, mask) as held:
            own = momentum([one for one in model.parameters() if one.requires_grad])
            train(model, own)
            held.check(own)
        assert torch.equal(model.first.base_layer.weight, frozen)
        assert bool(model.first.lora_B.weight.any())
        assert_same(model, other)

    def test_in_scope_they_are_held_themselves(self):
        model, other = adapted(), adapted()
        mask = prune(model, 0.5, scope=scope(model, include="*.lora_?"), score="random", distribution="layerwise")
        assert {"first.lora_A.weight", "first.lora_B.weight"} < set(mask)
        mask.apply_(other)
        own = momentum([one for one in other.parameters() if one.requires_grad])
        trained = {name: one for name, one in mask.parameters(other).items() if one.requires_grad}
        for step in range(STEPS):
            own.zero_grad()
            loss(other, step).backward()
            for name, parameter in trained.items():
                parameter.grad.mul_(mask[name])
            own.step()
        with hold(model, mask) as held:
            own = momentum([one for one in model.parameters() if one.requires_grad])
            train(model, own)
            held.check(own)
        assert_zero(model, mask)
        assert_same(model, other)

    def test_a_merge_while_the_base_is_held_is_told(self):
        model = adapted()
        mask = prune(model, 0.3, scope=scope(model, spare="*.lora_?"), distribution="layerwise")

        def merged() -> None:
            train(model, momentum([one for one in model.parameters() if one.requires_grad]))
            model.first.merge()

        with pytest.raises(HoldError, match=r"'first\.base_layer\.weight' are not 0"), hold(model, mask):
            merged()

    def test_merged_and_masked_after_the_block(self):
        model = adapted()
        mask = prune(model, 0.3, scope=scope(model, spare="*.lora_?"), distribution="layerwise")
        with hold(model, mask):
            train(model, momentum([one for one in model.parameters() if one.requires_grad]))
        added = model.first.lora_B.weight @ model.first.lora_A.weight + model.first.base_layer.weight
        model.first.merge()
        mask.apply_(model)
        assert torch.equal(model.first.base_layer.weight, added * mask["first.base_layer.weight"])


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import ticketry as tk

rank, folder, first = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "held"
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
mask = tk.prune(model, 0.3, distribution="layerwise")
inputs = torch.randn(5, 2, 8, 12, generator=torch.Generator().manual_seed(1))
wrapped = None if first else DistributedDataParallel(model)
with tk.hold(wrapped or model, mask) as held:
    wrapped = wrapped or DistributedDataParallel(model)
    own = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    for step in inputs:
        own.zero_grad()
        nn.functional.cross_entropy(wrapped(step[rank]), torch.arange(8) % 4).backward()
        own.step()
    held.check(own)
torch.save(model.state_dict(), f"{folder}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["held", "wrapped"])
def test_data_parallel_in_two_processes(tmp_path: Path, first: str):
    """Each sees half of every batch; gradients are masked before they are averaged."""
    started = [
        subprocess.Popen([sys.executable, "-c", TWO_PROCESSES, str(rank), str(tmp_path), first], env=dict(os.environ))
        for rank in range(2)
    ]
    assert [process.wait(timeout=240) for process in started] == [0, 0]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    mask = prune(model, 0.3, distribution="layerwise")
    inputs = torch.randn(5, 2, 8, 12, generator=torch.Generator().manual_seed(1))

    def whole(model: nn.Module, step: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(inputs[step].flatten(0, 1)), (torch.arange(8) % 4).repeat(2))

    train_by_hand(model, mask, momentum(model.parameters()), loss=whole)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one[name], value)  # two halves are summed in another order
        if name in mask:
            assert not one[name][~mask[name]].any()
