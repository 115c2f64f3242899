"""What a gated model looks like from outside, whichever way it is called and however a call ends."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import ticketry as tk
from ticketry.core.scope import scope
from ticketry.errors import UsageError

BETA = 200**0.3


def gate_at_random(model: nn.Module, **options):
    g = tk.gates.attach(model, **options)
    g.anneal(0.3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for s in g.parameters():
            s.copy_(torch.randn(s.shape, generator=generator) * 0.2)
    return g


def products(model: nn.Module, g) -> dict[str, torch.Tensor]:
    weights = scope(model).parameters(model)
    return {name: weights[name] * torch.sigmoid(BETA * s) / 0.5 for name, s in g.named_parameters()}


def assert_gated(model: nn.Module, g, inputs):
    """Outputs and gradients are those of the written-out products."""
    parameters = [*model.parameters(), *g.parameters()]

    def gradients(outputs):
        return torch.autograd.grad(outputs.square().sum(), parameters, allow_unused=True)

    buffers = copy.deepcopy(dict(model.named_buffers()))
    g_outputs = model(inputs)
    got = gradients(g_outputs)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    written_out = products(model, g)
    plain = copy.deepcopy(model)
    own = dict(model.named_parameters())
    given = {name: written_out.get(name, own[name]) for name, _ in plain.named_parameters()}
    outputs = torch.func.functional_call(plain, given, (inputs,))
    torch.testing.assert_close(g_outputs, outputs)
    for one, other in zip(got, gradients(outputs), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def assert_untouched(model: nn.Module):
    for module in model.modules():
        for local, parameter in module._parameters.items():
            assert local not in module.__dict__
            assert getattr(module, local) is parameter
        if isinstance(module, nn.RNNBase):
            assert all(
                one is getattr(module, n)
                for one, n in zip(module._flat_weights, module._flat_weights_names, strict=True)
            )


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
class TestFromOutside:
    def test_class_names_and_state_dict(self, build, name):
        case, other = build(name), build(name)
        weights = dict(case.model.named_parameters())
        gate_at_random(case.model)
        case.model(case.batches[0][0])
        assert type(case.model) is type(other.model)
        assert [type(module) for module in case.model.modules()] == [type(module) for module in other.model.modules()]
        assert [key for key, _ in case.model.named_modules()] == [key for key, _ in other.model.named_modules()]
        assert all(parameter is weights[key] for key, parameter in case.model.named_parameters())
        assert list(case.model.state_dict()) == list(other.model.state_dict())
        for key, value in other.model.named_parameters():
            assert torch.equal(case.model.state_dict()[key], value)
        case.model.load_state_dict(other.model.state_dict())
        assert_untouched(case.model)

    def test_a_copy_is_a_plain_model(self, build, name):
        case, other = build(name), build(name)
        gate_at_random(case.model)
        case.model.eval()
        case.model(case.batches[0][0])
        buffer = io.BytesIO()
        torch.save(case.model, buffer)
        buffer.seek(0)
        for copied in (
            copy.deepcopy(case.model),
            pickle.loads(pickle.dumps(case.model)),
            torch.load(buffer, weights_only=False),
        ):
            assert torch.equal(copied(case.batches[0][0]), other.model.eval()(case.batches[0][0]))
            assert not torch.equal(copied(case.batches[0][0]), case.model(case.batches[0][0]))
            gate_at_random(copied)
            assert torch.equal(copied(case.batches[0][0]), case.model(case.batches[0][0]))

    def test_it_computes_with_products(self, build, name):
        case = build(name)
        g = gate_at_random(case.model)
        assert_gated(case.model, g, case.batches[0][0])
        assert_untouched(case.model)
        assert_gated(case.model.eval(), g, case.batches[0][0])
        with torch.no_grad():
            outputs = case.model(case.batches[0][0])
        expected = torch.func.functional_call(copy.deepcopy(case.model), products(case.model, g), (case.batches[0][0],))
        torch.testing.assert_close(outputs, expected)
        with torch.inference_mode():
            torch.testing.assert_close(case.model(case.batches[0][0]), expected)
        assert_untouched(case.model)

    def test_detached_it_is_as_before(self, build, name):
        case, other = build(name), build(name)
        before = {id(module): dict(module.__dict__) for module in case.model.modules()}
        g = gate_at_random(case.model)
        case.model(case.batches[0][0])
        case.model.load_state_dict(other.model.state_dict())
        g.detach()
        for module in case.model.modules():
            assert module.__dict__.keys() == before[id(module)].keys()
            assert not module._forward_pre_hooks
            assert not module._forward_hooks
        assert torch.equal(case.model.eval()(case.batches[0][0]), other.model.eval()(case.batches[0][0]))
        with pytest.raises(UsageError, match="detached already"):
            g.detach()
        tk.gates.attach(case.model)

    def test_detach_leaves_the_bits_or_applies_the_hard_gates(self, build, name):
        case = build(name)
        before = copy.deepcopy(case.model.state_dict())
        g = gate_at_random(case.model)
        g.detach()
        assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
        g = gate_at_random(case.model.eval())
        with g.hardened():
            expected = case.model(case.batches[0][0])
        soft = case.model(case.batches[0][0])
        mask = g.harden()
        g.detach(apply=True)
        assert torch.equal(case.model(case.batches[0][0]), expected)
        assert not torch.equal(soft, expected)
        for key, weight in scope(case.model).parameters(case.model).items():
            assert torch.equal(weight.detach(), before[key] * mask[key] * 2)  # 1 / sigmoid(0)


class Odd(nn.Module):
    """Calls itself, calls a part twice, uses a weight directly and another module's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
        self.head = nn.Linear(4, 4)
        self.extra = nn.ParameterList([nn.Parameter(torch.ones(4, 4))])

    def forward(self, inputs, depth: int = 2):
        hidden = self.inner(self.inner(inputs)) @ self.extra[0]
        if depth:
            hidden = hidden + self(hidden, depth=depth - 1)
        return functional.linear(hidden, self.head.weight + self.inner[0].weight) + self.head(hidden)


class TestCalls:
    def test_recursion_and_direct_use(self):
        torch.manual_seed(0)
        model = Odd()
        everything = scope(model, include=["extra.*"])
        g = gate_at_random(model, scope=everything)
        inputs = torch.randn(3, 4)
        outputs = model(inputs)
        weights = everything.parameters(model)
        written_out = {name: weights[name] * torch.sigmoid(BETA * s) / 0.5 for name, s in g.named_parameters()}
        expected = torch.func.functional_call(copy.deepcopy(model), written_out, (inputs,))
        torch.testing.assert_close(outputs, expected)
        parameters = [*model.inner.parameters(), *weights.values(), *g.parameters()]
        got = torch.autograd.grad(outputs.sum(), parameters, allow_unused=True)
        plain = torch.func.functional_call(Odd(), {**dict(model.named_parameters()), **written_out}, (inputs,))
        for one, other in zip(got, torch.autograd.grad(plain.sum(), parameters), strict=True):
            torch.testing.assert_close(one, other)
        assert_untouched(model)

    def test_a_part_by_itself(self, build):
        case = build("resnet")
        g = gate_at_random(case.model)
        block, inputs = case.model.blocks[1], torch.randn(2, 6, 6, 6)
        own = {name.removeprefix("blocks.1."): p for name, p in products(case.model, g).items() if "blocks.1." in name}
        expected = torch.func.functional_call(copy.deepcopy(block), own, (inputs,))
        torch.testing.assert_close(block(inputs), expected)
        torch.testing.assert_close(block.conv1(inputs), functional.conv2d(inputs, own["conv1.weight"], None, 2, 1))
        assert_untouched(case.model)

    def test_gates_on_a_part(self, build):
        case, other = build("transformer"), build("transformer")
        g = gate_at_random(case.model.block)
        hidden = other.model.embed(case.batches[0][0])
        written_out = products(other.model.block, g)
        expected = torch.func.functional_call(other.model.block, written_out, (hidden,))
        torch.testing.assert_close(case.model(case.batches[0][0]), other.model.head(other.model.norm(expected)))

    def test_two_sets_of_gates(self, build):
        case, other = build("resnet"), build("resnet")
        first = gate_at_random(case.model, scope=scope(case.model, spare=["fc"]))
        with pytest.raises(UsageError, match=r"'conv\.weight' has gates already"):
            tk.gates.attach(case.model)
        second = gate_at_random(case.model, scope=scope(case.model, spare=["conv", "blocks"]))
        weights = dict(other.model.named_parameters())
        both = first.named_parameters() + second.named_parameters()
        written_out = {name: weights[name] * torch.sigmoid(BETA * s) / 0.5 for name, s in both}
        expected = torch.func.functional_call(other.model, written_out, (case.batches[0][0],))
        torch.testing.assert_close(case.model(case.batches[0][0]), expected)
        first.detach()
        second.detach()

    def test_tied_weights_have_one_gate_that_both_uses_see(self, build):
        case = build("lstm")
        g = gate_at_random(case.model)
        names = [name for name, _ in g.named_parameters()]
        assert names.count("encoder.weight") == 1
        assert "decoder.weight" not in names
        product = products(case.model, g)["encoder.weight"]
        seen = []
        for module in (case.model.encoder, case.model.decoder):
            module.register_forward_hook(lambda module, args, output: seen.append(module.weight))
        case.model(case.batches[0][0])
        assert seen[0] is seen[1]
        torch.testing.assert_close(seen[0], product)

    def test_the_scope_decides_for_all_uses_of_a_tied_weight(self, build):
        case = build("lstm")
        g = gate_at_random(case.model, scope=scope(case.model, spare=["encoder"]))
        assert all("coder" not in name for name, _ in g.named_parameters())
        tokens = case.batches[0][0]
        assert torch.equal(case.model.encoder(tokens), functional.embedding(tokens, case.model.encoder.weight))
        assert torch.equal(case.model.decoder(torch.ones(8)), build("lstm").model.decoder(torch.ones(8)))

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("kind", ["continuous", "stochastic", "hard-concrete", "binary-concrete"])
    def test_activation_checkpointing(self, build, reentrant, kind):
        """The recomputation in the backward pass calls modules by themselves, and sees the same gates."""

        def gradients(checkpointed: bool):
            case = build("resnet")
            g = gate_at_random(case.model, kind=kind)
            if checkpointed:
                for block in case.model.blocks:
                    plain = block.forward
                    block.forward = lambda inputs, plain=plain: plain(inputs)
                model = case.model
                hidden = functional.relu(model.bn(model.conv(case.batches[0][0])))
                for block in model.blocks:
                    hidden = checkpoint(block, hidden, use_reentrant=reentrant)
                outputs = model.fc(hidden.mean(dim=(2, 3)))
            else:
                outputs = case.model(case.batches[0][0])
            functional.cross_entropy(outputs, case.batches[0][1]).backward()
            assert_untouched(case.model)
            return [parameter.grad for parameter in (*case.model.parameters(), *g.parameters())]

        for one, other in zip(gradients(True), gradients(False), strict=True):
            torch.testing.assert_close(one, other)

    @pytest.mark.parametrize("reentrant", [False, True])
    @pytest.mark.parametrize("kind", ["continuous", "stochastic"])
    def test_checkpointing_inside_the_model(self, reentrant, kind):
        """The pass makes all products outside of the checkpointed part, the recomputation makes them inside."""

        class Net(nn.Module):
            def __init__(self, checkpointed: bool) -> None:
                super().__init__()
                self.first, self.body = nn.Linear(4, 5), nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
                self.checkpointed = checkpointed

            def forward(self, inputs):
                hidden = self.first(inputs)
                return (
                    checkpoint(self.body, hidden, use_reentrant=reentrant) if self.checkpointed else self.body(hidden)
                )

        def gradients(checkpointed: bool):
            torch.manual_seed(0)
            model = Net(checkpointed)
            g = gate_at_random(model, kind=kind)
            (model(torch.ones(2, 4)).square().sum() + g.penalty(0.1)).backward()
            return [parameter.grad for parameter in (*model.parameters(), *g.parameters())]

        for one, other in zip(gradients(True), gradients(False), strict=True):
            torch.testing.assert_close(one, other)

    def test_functional_call_on_a_gated_model(self, build):
        """The weights that are handed in are gated."""
        case = build("resnet")
        g = gate_at_random(case.model)
        other = {name: weight.detach() * 2 for name, weight in case.model.named_parameters()}
        outputs = torch.func.functional_call(case.model, other, (case.batches[0][0],))
        weights = {name: other[name] * torch.sigmoid(BETA * s) / 0.5 for name, s in g.named_parameters()}
        g.detach()
        torch.testing.assert_close(
            outputs, torch.func.functional_call(case.model, other | weights, (case.batches[0][0],))
        )

    def test_torch_func_grad(self, build):
        case = build("resnet")
        g = gate_at_random(case.model.eval())
        case.model.train()
        for module in case.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        inputs, targets = case.batches[0]

        def loss(weights):
            return functional.cross_entropy(torch.func.functional_call(case.model, weights, (inputs,)), targets)

        weights = dict(case.model.named_parameters())
        got = torch.func.grad(loss)({name: weight.detach() for name, weight in weights.items()})
        functional.cross_entropy(case.model(inputs), targets).backward()
        for name, weight in weights.items():
            torch.testing.assert_close(got[name], weight.grad)
        g.detach()


class Failing(nn.Module):
    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.LSTM(3, 3)
        self.error = error

    def forward(self, inputs):
        hidden = self.second(self.first(inputs))[0]
        if self.error:
            raise self.error
        return hidden


class TestBrokenOff:
    def test_by_an_exception(self):
        model = Failing(ZeroDivisionError)
        gate_at_random(model)
        with pytest.raises(ZeroDivisionError):
            model(torch.ones(2, 3))
        assert_untouched(model)
        model.error = None
        model(torch.ones(2, 3)).sum().backward()
        assert_untouched(model)

    def test_by_another_hook_before_ours(self):
        model = Failing(None)
        gate_at_random(model)

        def fail(module, args):
            raise ZeroDivisionError

        handle = nn.modules.module.register_module_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(torch.ones(2, 3))
        handle.remove()
        model(torch.ones(2, 3))
        assert_untouched(model)

    @pytest.mark.parametrize("again", ["model", "detach", "anneal"])
    def test_by_ctrl_c(self, again):
        """torch calls no hooks then. What is saved is right at once, the rest at the next call."""
        torch.manual_seed(0)
        model, other = Failing(KeyboardInterrupt), Failing(None)
        other.load_state_dict(model.state_dict())
        g = gate_at_random(model)
        try:
            model(torch.ones(2, 3))
        except KeyboardInterrupt:
            assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())
            assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
        model.error = None
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(2)  # stale products would tell
            for weight in other.parameters():
                weight.mul_(2)
        gate_at_random(other)
        expected = other(torch.ones(2, 3))
        if again == "detach":
            g.detach()
            assert_untouched(model)
            gate_at_random(model)
        if again == "anneal":
            g.anneal(0.3)
            assert_untouched(model)
        assert torch.equal(model(torch.ones(2, 3)), expected)
        assert_untouched(model)

    def test_detaching_inside_a_call_is_refused(self):
        model = nn.Sequential(nn.Linear(2, 2))
        g = gate_at_random(model)
        model[0].register_forward_hook(lambda *args: g.detach())
        with pytest.raises(UsageError, match="while the model runs"):
            model(torch.ones(1, 2))
        assert_untouched(model)


class TestRefusals:
    def test_another_device(self):
        model = nn.Linear(2, 2)
        gate_at_random(model)
        model.to("meta")
        with pytest.raises(UsageError, match="'weight' is on meta and its gates are on cpu"):
            model(torch.ones(1, 2, device="meta"))


def test_nothing_outlives_model_and_gates():
    model = nn.Linear(2, 2)
    g = gate_at_random(model)
    model(torch.ones(1, 2)).sum().backward()
    gone = weakref.ref(g), weakref.ref(model)
    del g, model
    gc.collect()
    assert gone[0]() is None
    assert gone[1]() is None
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.step()
