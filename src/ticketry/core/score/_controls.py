"""Controls of a score: what should be clearly worse than it."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from ticketry.core.scope import Scope
from ticketry.core.score._protocol import Score
from ticketry.core.seeds import generator


def inverted(score: str | Score) -> Score:
    """The score with its sign turned: the weights that it would remove first are kept. As a name: ``inverted:snip``.

    A score that carries information makes a worse network so than a random choice does.
    """
    from ticketry.core.score import get

    function = get(score)

    @functools.wraps(function)
    def control(model: nn.Module, scope: Scope, **options: Any) -> dict[str, Tensor]:
        found = function(model, scope, **options)
        return {name: -(value if value.is_floating_point() else value.double()) for name, value in found.items()}

    return _named(control, "inverted", function)


def shuffled(score: str | Score) -> Score:
    """The score's values in random places of the same layer. As a name: ``shuffled:snip``.

    In one shot each layer keeps exactly as many weights as by the score itself, under any distribution: what it shows
    is how much of the score lies in the layers' densities alone. A pure function of (seed, position of the tensor).
    """
    from ticketry.core.score import get

    function = get(score)

    @functools.wraps(function)
    def control(model: nn.Module, scope: Scope, *, seed: int = 0, **options: Any) -> dict[str, Tensor]:
        found = function(model, scope, seed=seed, **options)
        shuffled: dict[str, Tensor] = {}
        for index, (name, value) in enumerate(found.items()):
            order = torch.randperm(value.numel(), generator=generator(seed, "shuffled score", index))
            shuffled[name] = value.flatten()[order.to(value.device)].reshape(value.shape)
        return shuffled

    return _named(control, "shuffled", function)


def _named(control: Any, kind: str, score: Score) -> Score:
    control.__name__ = f"{kind}:{getattr(score, '__name__', type(score).__name__)}"
    return cast(Score, control)
