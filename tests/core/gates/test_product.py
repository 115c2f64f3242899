"""The fused product against torch's numerical derivatives and against arithmetic at the limits."""

from __future__ import annotations

import pytest
import torch

from ticketry.core.gates.kinds import LARGEST_BETA
from ticketry.core.gates.product import sigmoid_product, weighted_sum
from ticketry.errors import TrainingError


def draw(*shape: int, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_() for _ in range(2)]


@pytest.mark.parametrize("kept", [None, torch.tensor([[1.0, 0, 1], [0, 1, 1]], dtype=torch.float64)])
@pytest.mark.parametrize("beta", [1.0, 7.0])
def test_derivatives(kept, beta):
    weight, logits = draw(2, 3)

    def function(weight, logits):
        return sigmoid_product(weight, logits, kept, beta, 2.0)

    assert torch.autograd.gradcheck(function, (weight, logits))
    assert torch.autograd.gradgradcheck(function, (weight, logits))
    product, total = function(weight, logits)
    gate = 1 / (1 + torch.exp(-beta * logits)) * (1 if kept is None else kept)
    torch.testing.assert_close(product, weight * gate * 2)
    torch.testing.assert_close(total, gate.sum())


def test_only_one_of_them_needs_a_gradient():
    weight, logits = draw(2, 3)
    product, _ = sigmoid_product(weight.detach(), logits, None, 1.0, 2.0)
    product.sum().backward()
    assert logits.grad is not None
    product, _ = sigmoid_product(weight, logits.detach(), None, 1.0, 2.0)
    product.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("beta", [200.0, LARGEST_BETA])
def test_saturated_gates_are_exactly_0_or_1_and_have_no_gradient(beta):
    weight = torch.full((4,), 3.0, requires_grad=True)
    logits = torch.tensor([1e38, -1e38, float("inf"), -float("inf")], requires_grad=True)
    product, total = sigmoid_product(weight, logits, None, beta, 1.0)
    assert product.tolist() == [3, 0, 3, 0]
    assert total == 2
    (product.sum() + total).backward()
    assert logits.grad.tolist() == [0, 0, 0, 0]
    assert weight.grad.tolist() == [1, 0, 1, 0]


def test_a_transposed_gradient():
    weight, logits = draw(5, 3, dtype=torch.float32)
    other = torch.randn(3, 5)
    product, _ = sigmoid_product(weight, logits, None, 2.0, 2.0)
    product.t().backward(other)
    gate = torch.sigmoid(2 * logits.detach())
    torch.testing.assert_close(weight.grad, other.t() * gate * 2)
    torch.testing.assert_close(logits.grad, other.t() * weight.detach() * 2 * 2 * gate * (1 - gate))


def test_the_incoming_gradient_is_not_written_to():
    (weight, logits), (bias, _) = draw(3), draw(3)
    product, _ = sigmoid_product(weight, logits, None, 2.0, 2.0)
    (product + bias).backward(torch.ones(3, dtype=torch.float64))  # both get the same tensor
    assert bias.grad.tolist() == [1, 1, 1]


def test_a_step_between_forward_and_backward_is_noticed():
    weight, logits = draw(3)
    product, _ = sigmoid_product(weight, logits, None, 2.0, 2.0)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(TrainingError, match="between forward and backward"):
        product.sum().backward()


def test_sums():
    terms = [torch.tensor(float(number), requires_grad=True, dtype=torch.float64) for number in range(3)]
    assert float(weighted_sum(terms, 0.5).detach()) == 1.5
    assert torch.autograd.gradcheck(lambda *terms: weighted_sum(terms, 0.5), terms)
