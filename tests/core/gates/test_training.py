"""A gated model trains as one in which weight * sigmoid(beta s) / sigmoid(s0) is written out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import ticketry as tk
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.core.sparse_training.hold import hold

S0, PENALTY = 0.05, 1e-3


def cross_entropy(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Explicit:
    """The slow reference: torch's functional_call with the products as parameters."""

    def __init__(self, model: nn.Module, init: float = S0, kept=None) -> None:
        self.model, self.init, self.beta = model, init, 1.0
        self.weights = scope(model).parameters(model)
        self.s = {name: nn.Parameter(torch.full_like(weight, init)) for name, weight in self.weights.items()}
        self.kept = kept or dict.fromkeys(self.s, 1.0)

    def gates(self):
        at_start = torch.sigmoid(torch.tensor(self.init))
        return {name: torch.sigmoid(self.beta * s) / at_start * self.kept[name] for name, s in self.s.items()}

    def __call__(self, inputs):
        products = {name: self.weights[name] * gate for name, gate in self.gates().items()}
        return torch.func.functional_call(self.model, products, (inputs,))

    def penalty(self, coefficient: float):
        return coefficient * sum((torch.sigmoid(self.beta * s) * self.kept[n]).sum() for n, s in self.s.items())


def train_explicit(explicit: Explicit, batches):
    optimizers = [torch.optim.SGD(p, lr=0.1, momentum=0.9) for p in (explicit.model.parameters(), explicit.s.values())]
    losses = []
    for step, (inputs, targets) in enumerate(batches):
        explicit.beta = 200 ** (step / len(batches))
        loss = cross_entropy(explicit(inputs), targets) + explicit.penalty(PENALTY)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def train(model, g, batches, **options):
    optimizers = [torch.optim.SGD(p, lr=0.1, momentum=0.9, **options) for p in (model.parameters(), g.parameters())]
    losses = []
    for step, (inputs, targets) in enumerate(batches):
        g.anneal(tk.gates.by_step(step, len(batches)))
        loss = cross_entropy(model(inputs), targets) + g.penalty(PENALTY)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def assert_close(model, g, explicit):
    for (name, weight), (_, other) in zip(model.named_parameters(), explicit.model.named_parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    for name, s in g.named_parameters():
        torch.testing.assert_close(s, explicit.s[name], rtol=1e-4, atol=1e-5, msg=lambda t, name=name: f"{name}: {t}")


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
@pytest.mark.parametrize("fused", [False, True])
def test_as_written_out(build, name, fused):
    case = build(name)
    explicit = Explicit(copy.deepcopy(case.model))
    expected = train_explicit(explicit, case.batches)
    g = tk.gates.attach(case.model, init=S0)
    losses = train(case.model, g, case.batches, fused=fused)
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    assert_close(case.model, g, explicit)


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
def test_within_a_mask(build, name):
    case = build(name)
    mask = prune(case.model, 0.4, distribution="layerwise")
    kept = {at: tensor.float() for at, tensor in mask.items()}
    explicit = Explicit(copy.deepcopy(case.model), kept=kept)
    train_explicit(explicit, case.batches)
    g = tk.gates.attach(case.model, init=S0, within=mask)
    train(case.model, g, case.batches)
    assert_close(case.model, g, explicit)
    assert g.harden(collapse="keep") <= mask
    assert all(bool((s[~mask[at]] == S0).all()) for at, s in g.named_parameters())
    assert g.density() <= mask.density
    g.detach(apply=True)
    parameters = dict(case.model.named_parameters())
    assert not any(parameters[at].detach()[~tensor].any() for at, tensor in mask.items())


@pytest.mark.parametrize("name", ["resnet", "lstm", "transformer"])
def test_held_as_well(build, name):
    """`hold` masks gradients as they come out of the gates."""
    case, other = build(name), build(name)
    mask = prune(case.model, 0.4, distribution="layerwise")
    with hold(case.model, mask):
        g = tk.gates.attach(case.model, init=S0)
        train(case.model, g, case.batches)
    mask.apply_(other.model)
    within = tk.gates.attach(other.model, init=S0, within=mask)
    train(other.model, within, other.batches)
    for one, two in zip(case.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_the_penalty_alone(build):
    """Before a forward pass, after one, again, and after its backward pass: the value and the gradient are the same."""
    case = build("resnet")
    g = tk.gates.attach(case.model, init=S0)
    g.anneal(0.3)
    total = sum(s.numel() for s in g.parameters())
    sigmoid = 1 / (1 + torch.exp(torch.tensor(-(200**0.3) * S0)))
    slope = 1e-3 * 200**0.3 * sigmoid * (1 - sigmoid)

    def check(penalty):
        torch.testing.assert_close(penalty, 1e-3 * total * sigmoid, check_dtype=False)
        for s in g.parameters():
            s.grad = None
        penalty.backward()
        for s in g.parameters():
            torch.testing.assert_close(s.grad, slope.expand(s.shape))

    check(g.penalty(1e-3))
    outputs = case.model(case.batches[0][0])
    check(g.penalty(1e-3))
    check(g.penalty(1e-3))
    case.model(case.batches[0][0])
    early = g.penalty(1e-3)
    outputs.sum().backward()
    check(early)
    check(g.penalty(1e-3))
    with torch.no_grad():
        case.model(case.batches[0][0])
        assert not g.penalty(1.0).requires_grad


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}])
def test_the_penalty_is_that_of_the_gates_as_they_are(options):
    """Fused optimisers change gates without counting up their versions."""
    model = nn.Linear(3, 2)
    g = tk.gates.attach(model)
    optimizer = torch.optim.SGD(g.parameters(), lr=10.0, **options)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert float(g.penalty(1.0).detach()) == pytest.approx(float(torch.sigmoid(g.parameters()[0].detach()).sum()))
    assert g.soft_density() == pytest.approx(float(torch.sigmoid(g.parameters()[0].detach()).mean()))


def test_gradients_accumulate(build):
    case = build("resnet")
    explicit = Explicit(copy.deepcopy(case.model).eval())
    g = tk.gates.attach(case.model.eval(), init=S0)
    for inputs, targets in case.batches[:3]:
        cross_entropy(case.model(inputs), targets).backward()
        cross_entropy(explicit(inputs), targets).backward()
    for at, s in g.named_parameters():
        torch.testing.assert_close(s.grad, explicit.s[at].grad, rtol=1e-4, atol=1e-6)


def test_autocast_keeps_gates_in_float32(build):
    case = build("transformer")
    g = tk.gates.attach(case.model, init=S0)
    g.anneal(0.5)
    reference = copy.deepcopy(case.model)
    with torch.no_grad():
        for name, weight in scope(reference).parameters(reference).items():
            weight.mul_(torch.sigmoid(200**0.5 * dict(g.named_parameters())[name]) / torch.sigmoid(torch.tensor(S0)))
    inputs, targets = case.batches[0]
    with torch.autocast("cpu", torch.bfloat16):
        outputs, expected = case.model(inputs), reference(inputs)
        loss = cross_entropy(outputs, targets) + g.penalty(PENALTY)
    torch.testing.assert_close(outputs, expected)
    loss.backward()
    assert all(s.grad.dtype == torch.float32 for s in g.parameters())


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
@pytest.mark.parametrize("kind", ["continuous", "hard-concrete"])
def test_models_of_another_type(build, dtype, expected, kind):
    case = build("lstm")
    case.model.to(dtype)
    g = tk.gates.attach(case.model, kind=kind)
    losses = train(case.model, g, case.batches)
    assert torch.isfinite(losses).all()
    assert {s.dtype for s in g.parameters()} == {expected}
    assert {weight.dtype for weight in case.model.parameters()} == {dtype}


def test_channels_last(build):
    case = build("resnet")
    explicit = Explicit(copy.deepcopy(case.model))
    train_explicit(explicit, case.batches)
    case.model.to(memory_format=torch.channels_last)
    g = tk.gates.attach(case.model, init=S0)
    train(case.model, g, case.batches)
    assert_close(case.model, g, explicit)
    assert all(s.is_contiguous(memory_format=torch.channels_last) for s in g.parameters() if s.dim() == 4)


def test_frozen_weights(build):
    """Only the gates train (supermasks, Concrete Ticket Search)."""
    case = build("resnet")
    case.model.requires_grad_(False)
    before = copy.deepcopy(case.model.state_dict())
    g = tk.gates.attach(case.model.eval())
    cross_entropy(case.model(case.batches[0][0]), case.batches[0][1]).backward()
    assert all(s.grad is not None and s.grad.any() for s in g.parameters())
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
