"""Errors of scores, losses and batches: what each message says to do is done, and works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from advice import Advice, check, convolutions, loss, net, pairs, x
from ticketry.core.score import Loss


class _OwnNorm(nn.Module):
    """Makes a float32 tensor whatever type its input has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.own_type = True

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.float32 if self.own_type else x.dtype
        out: Tensor = self.linear(x) @ torch.eye(8, dtype=dtype)
        return out


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(x), x


def _scored(give: Callable[[nn.Module, tk.Scope], Any]) -> Callable[[], tk.Mask]:
    """Prune by a score of the user's."""

    def score(model: nn.Module, scope: tk.Scope, **_: object) -> Any:
        return give(model, scope)

    return lambda: tk.prune(net(), 0.5, score=score)


def _weights(model: nn.Module, scope: tk.Scope) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}


def _one_more(model: nn.Module, scope: tk.Scope) -> dict[str, Tensor]:
    return {**_weights(model, scope), "0.bias": torch.ones(8)}


def _one_less(model: nn.Module, scope: tk.Scope) -> dict[str, Tensor]:
    return dict(list(_weights(model, scope).items())[1:])


def _each(change: Callable[[Tensor], Any]) -> Callable[[nn.Module, tk.Scope], dict[str, Any]]:
    return lambda model, scope: {name: change(one) for name, one in _weights(model, scope).items()}


def _snip(loss: Loss = loss) -> tk.Mask:
    return tk.prune(net(), 0.5, score="snip", batches=pairs(), loss=loss)


def _outputs(model: nn.Module) -> Callable[..., Tensor]:
    """A loss that calls another model than the one it is given."""
    return lambda _, batch: model(batch[0]).square().mean()


def _grasp(model: nn.Module, loss: Loss, temperature: float = 2.0) -> dict[str, Tensor]:
    return tk.score.grasp(model, tk.scope(model), batches=pairs(), loss=loss, temperature=temperature)


def _synflow(model: nn.Module, batches: Any = None, loss: Any = None, **scope: Any) -> tk.Mask:
    return tk.prune(model, 0.5, score="synflow", scope=tk.scope(model, **scope), batches=batches, loss=loss)


def _own_type() -> nn.Module:
    model = _OwnNorm()
    model.own_type = False
    return model


CASES = {
    # scores of the user's
    "score gives numbers": Advice(
        "use torch.as_tensor",
        _scored(_each(lambda one: one.tolist())),
        _scored(_each(lambda one: torch.as_tensor(one.tolist()))),
    ),
    "score gives numpy": Advice(
        "use torch.as_tensor",
        _scored(_each(lambda one: one.numpy())),
        _scored(_each(lambda one: torch.as_tensor(one.numpy()))),
    ),
    "score gives too much": Advice(
        "give those of scope.parameters(model) alone", _scored(_one_more), _scored(_weights)
    ),
    "score gives too little": Advice(
        "it needs a tensor for each parameter in scope", _scored(_one_less), _scored(_weights)
    ),
    "score gives complex": Advice(
        "give real ones", _scored(_each(lambda one: one + 0j)), _scored(_each(lambda one: (one + 0j).abs()))
    ),
    "score gives one number": Advice("one number for each weight", _scored(_each(torch.mean)), _scored(_weights)),
    # losses and batches
    "score without data": Advice(
        "give batches= (of training data) and loss=, a function loss(model, batch)",
        lambda: tk.prune(net(), 0.5, score="snip"),
        _snip,
    ),
    "criterion of torch's": Advice(
        "lambda model, batch: criterion(model(batch[0]), batch[1])",
        lambda: _snip(nn.CrossEntropyLoss()),
        lambda: _snip(lambda model, batch: nn.CrossEntropyLoss()(model(batch[0]), batch[1])),
    ),
    "loss of each example": Advice(
        "the mean over the batch",
        lambda: _snip(lambda model, batch: model(batch[0]).sum(1)),
        lambda: _snip(lambda model, batch: model(batch[0]).sum(1).mean()),
    ),
    "loss of another model": Advice(
        "computed from another model than the one it is given",
        lambda: _snip(_outputs(net().requires_grad_(False))),
        _snip,
    ),
    "temperature of another model": Advice(
        "divide the logits in the loss instead",
        lambda: _grasp(net(), _outputs(net())),
        lambda: _grasp(net(), lambda model, batch: nn.functional.cross_entropy(model(batch[0]) / 2, batch[1]), 1.0),
    ),
    "temperature of several outputs": Advice(
        "divide the logits in the loss instead",
        lambda: _grasp(_Pair(), lambda model, batch: nn.functional.cross_entropy(model(batch[0])[0], batch[1])),
        lambda: _grasp(
            _Pair(), lambda model, batch: nn.functional.cross_entropy(model(batch[0])[0] / 2, batch[1]), 1.0
        ),
    ),
    "synflow without inputs": Advice(
        "give batches= of one batch", lambda: _synflow(net()), lambda: _synflow(net(), [x()])
    ),
    "synflow of pairs": Advice(
        "a batch is the model's input",
        lambda: _synflow(net(), [{"x": x()}]),
        lambda: _synflow(net(), [x()]),
        lambda: _synflow(net(), [(x(),)]),
    ),
    "synflow by another model": Advice(
        "give the model's inputs as batches, and no loss",
        lambda: _synflow(net(), pairs(), _outputs(net())),
        lambda: _synflow(net(), [x()]),
    ),
    "synflow of float32": Advice(
        "dtype=x.dtype", lambda: _synflow(_OwnNorm(), [x()]), lambda: _synflow(_own_type(), [x()])
    ),
    "synflow of norms": Advice(
        "leave it out of the scope (norms=False",
        lambda: _synflow(convolutions(), [torch.randn(2, 2, 4, 4)], norms=True),
        lambda: _synflow(convolutions(), [torch.randn(2, 2, 4, 4)]),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_to_do_works(name: str) -> None:
    check(CASES[name])
