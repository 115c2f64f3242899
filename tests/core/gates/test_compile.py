"""Compiled code sees the gates, whether it was compiled before or after they came."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

import ticketry as tk
from samples import sample
from ticketry.core.scope import scope


def expected_of(model, g, inputs):
    weights = scope(model).parameters(model)
    products = {name: weights[name] * torch.sigmoid(g.beta * s) / 0.5 for name, s in g.named_parameters()}
    return torch.func.functional_call(copy.deepcopy(model), products, (inputs,))


def change(g, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for s in g.parameters():
            s.copy_(torch.randn(s.shape, generator=generator))


def check(model, g, call, inputs) -> None:
    for seed in range(3):
        change(g, seed)
        g.anneal(seed / 4)
        torch.testing.assert_close(call(inputs), expected_of(model, g, inputs), rtol=1e-4, atol=1e-5)


@pytest.fixture(autouse=True)
def _reset():
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("name", sample(["lstm", "resnet", "transformer"], 1))
def test_compiled_after(build, name):
    case = build(name)
    g = tk.gates.attach(case.model.eval())
    check(case.model, g, torch.compile(case.model, backend="eager"), case.batches[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(["resnet", "lstm", "transformer"], 1))
def test_compiled_and_run_before(build, name):
    case = build(name)
    compiled = torch.compile(case.model.eval(), backend="eager")
    before = compiled(case.batches[0][0])
    g = tk.gates.attach(case.model)
    check(case.model, g, compiled, case.batches[0][0])
    g.detach()
    torch.testing.assert_close(compiled(case.batches[0][0]), before)


@pytest.mark.slow
@pytest.mark.parametrize("before", sample([True, False], 1))
def test_module_compile(build, before):
    case = build("resnet")
    plain = build("resnet").model.eval()
    if before:
        case.model.eval().compile(backend="eager")
        case.model(case.batches[0][0])
    g = tk.gates.attach(case.model.eval())
    if not before:
        case.model.compile(backend="eager")
    check(plain, g, case.model, case.batches[0][0])


@pytest.mark.slow
def test_a_compiled_function_that_calls_the_model(build):
    case = build("resnet")
    case.model.eval()
    function = torch.compile(lambda inputs: case.model(inputs) * 2, backend="eager")
    function(case.batches[0][0])
    g = tk.gates.attach(case.model)
    check(case.model, g, lambda inputs: function(inputs) / 2, case.batches[0][0])


@pytest.mark.slow
@pytest.mark.parametrize("backend", sample(["aot_eager", "eager"], 1))
def test_training_of_a_compiled_model(build, backend):
    def run(compiled: bool):
        case = build("resnet")
        g = tk.gates.attach(case.model, init=0.1)
        model = torch.compile(case.model, backend=backend) if compiled else case.model
        optimizers = [torch.optim.SGD(p, lr=0.1) for p in (case.model.parameters(), g.parameters())]
        for step, (inputs, targets) in enumerate(case.batches[:3]):
            g.anneal(step / 3)
            loss = functional.cross_entropy(model(inputs), targets) + g.penalty(1e-3)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        return [*case.model.parameters(), *g.parameters()]

    for one, other in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
