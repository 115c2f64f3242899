"""What a score is, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

from ticketry.core.scope import Scope


class Loss(Protocol):
    """The mean loss of a batch: ``loss(model, batch) -> scalar``.

    Examples:
        >>> def loss(model, batch):
        ...     inputs, targets = batch
        ...     return nn.functional.cross_entropy(model(inputs), targets)
        >>> loss(nn.Linear(4, 2), (torch.randn(8, 4), torch.zeros(8, dtype=torch.long))).shape
        torch.Size([])
    """

    def __call__(self, model: nn.Module, batch: object, /) -> Tensor: ...


@dataclass(frozen=True)
class ScoreInputs:
    """What scores are measured on, where they need it; `vars` of it are the arguments of a score.

    Examples:
        >>> inputs = tk.score.ScoreInputs(seed=1)
        >>> model = nn.Linear(4, 2)
        >>> tk.score.random(model, tk.scope(model), **vars(inputs))["weight"].shape
        torch.Size([2, 4])
    """

    batches: Iterable[object] | None = None
    """Of training data."""
    loss: Loss | None = None
    """``loss(model, batch)``, the mean loss of a batch."""
    seed: int = 0
    """Of what is drawn."""


@dataclass(frozen=True)
class About:
    """Facts of a score, for lists: see `described`.

    Examples:
        >>> tk.score.about("snip")
        About(paper='Lee et al. 2019', data='yes', order=1, channels='snap', signed=False)
    """

    paper: str = "not said"
    """A short citation."""
    data: str = "not said"
    """What it looks at beside the weights: no, shapes (of the inputs) or yes (batches of examples)."""
    order: int | None = None
    """Of the highest derivative of the loss that it needs."""
    channels: str = "summed"
    """Its own form for whole channels, a word of `structure.channels`; others are summed over each channel."""
    signed: bool = False
    """Whether it may be below 0: then it cannot be weighed against what weights cost."""


class Score(Protocol):
    """How much each weight is worth.

    Examples:
        >>> def largest_input(model, scope, *, batches=None, loss=None, seed=0):
        ...     weights = scope.parameters(model)
        ...     return {name: weight.detach().abs() / weight.shape[1] for name, weight in weights.items()}
        >>> tk.prune(nn.Linear(4, 2), density=0.5, score=largest_input).kept
        4
    """

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> dict[str, Tensor]: ...


F = TypeVar("F", bound=Callable[..., dict[str, Tensor]])


def described(about: About) -> Callable[[F], F]:
    """A decorator that tells of a score what lists show of it.

    Args:
        about: the facts.

    Examples:
        >>> @tk.score.described(tk.score.About(paper="ours", data="no"))
        ... def smallest(model, scope, *, batches=None, loss=None, seed=0):
        ...     return {name: -weight.detach().abs() for name, weight in scope.parameters(model).items()}
        >>> tk.prune(nn.Linear(4, 2), density=0.25, score=smallest).kept
        2
    """

    def tell(score: F) -> F:
        setattr(score, ABOUT, about)
        return score

    return tell


ABOUT = "about"
"""The attribute of a score that holds its facts."""


def facts(score: object) -> About:
    """What a score tells of itself; of one that tells nothing, or has an attribute of that name for another purpose,
    that nothing is said."""
    found = getattr(score, ABOUT, None)
    return found if isinstance(found, About) else About()
