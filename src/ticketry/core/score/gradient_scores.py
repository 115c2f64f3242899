"""Scores from gradients of the loss: formulas of a weight and its gradient or Hessian-gradient product, and K-FAC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Protocol

import torch
from torch import Tensor, nn

from ticketry.core.mask import Mask
from ticketry.core.model_calls import COUNTED_LAYERS, without_parameter_gradients
from ticketry.core.output_change import add_output_gradients, record_calls, squared_output_change
from ticketry.core.scope import Scope
from ticketry.core.score import measurement
from ticketry.core.score.protocol import ABOUT, About, Loss, described
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point

Formula = Callable[[Tensor, Tensor], Tensor]
"""A function that computes scores from the weights of a parameter and a measured tensor, all of the same shape."""


class DataScore(Protocol):
    """A score that needs batches and a loss, and has the options `norms` and `at`.

    Args:
        model: the model whose weights are scored; it is restored afterwards.
        scope: the parameters to score.
        batches: batches of training data; every batch counts the same.
        loss: ``loss(model, batch)``, the mean loss of a batch, a scalar.
        seed: seed of random numbers that the model draws (dropout is off).
        norms: ``batch``: norms use the statistics of the batch; ``running``: they use running statistics.
        at: a mask; the weights that it removes are 0 during the measurement.

    Raises:
        UsageError: without batches or loss.
        ScoreError: if all scores are 0 or a score is not finite; for scores with second derivatives, if an operation
            has no second derivative.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> snip: tk.score.DataScore = tk.score.snip
        >>> batches, loss = [torch.ones(1, 2)], lambda model, batch: model(batch).sum()
        >>> snip(model, tk.scope(model), batches=batches, loss=loss)["weight"]
        tensor([[2., 3.]])
        >>> snip(model, tk.scope(model))
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: score 'snip' needs batches and a loss: give batches= (of training data) and ...
    """

    __name__: str

    def __call__(
        self,
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        norms: str = "batch",
        at: Mask | None = None,
    ) -> dict[str, Tensor]: ...


def of_gradients(
    about: About, each: Callable[[Tensor], Tensor] = lambda gradient: gradient
) -> Callable[[Formula], DataScore]:
    """Return a decorator that turns a formula of weight w and gradient g into a score.

    Here g is the mean over batches of ``each(dL/dw)``, where L is the loss of a batch.

    Args:
        about: facts about the score, see `described`.
        each: function applied to the gradient of each batch before averaging, such as `torch.square`.

    Examples:
        >>> @tk.score.of_gradients(tk.score.About(paper="Lee et al. 2019", data="yes", order=1))
        ... def saliency(weight, gradient):
        ...     return (weight * gradient).abs()
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> saliency(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return lambda formula: _build_score(
        formula,
        about,
        lambda model, weights, batches, loss, at: measurement.average_gradients(model, weights, batches, loss, each),
    )


def of_gradient_flow(about: About) -> Callable[[Formula], DataScore]:
    """Return a decorator that turns a formula of weight w and Hessian-gradient product Hg into a score.

    The gradient g and the Hessian H are of the mean loss over all batches.

    Args:
        about: facts about the score, see `described`.

    Examples:
        >>> @tk.score.of_gradient_flow(tk.score.About(paper="ours", data="yes", order=2))
        ... def flow(weight, flow):
        ...     return (weight * flow).abs()
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[1.0, 3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 0): Hg = (1, 0)
        >>> flow(model, tk.scope(model), batches=[torch.tensor([[1.0, 0.0]])], loss=half_square)
        {'weight': tensor([[1., 0.]])}
    """
    return lambda formula: _build_score(
        formula, about, lambda *measured: measurement.hessian_gradient_product(formula.__name__, *measured)
    )


def _build_score(formula: Formula, about: About, measure: Callable[..., dict[str, Tensor]]) -> DataScore:
    name = formula.__name__

    @entry_point(CHANGES)
    def score(
        model: nn.Module,
        scope: Scope,
        *,
        batches: Iterable[object] | None = None,
        loss: Loss | None = None,
        seed: int = 0,
        norms: str = "batch",
        at: Mask | None = None,
    ) -> dict[str, Tensor]:
        batches, loss = measurement.require_data(name, batches, loss)
        with measurement.prepare_for_measurement(model, scope, norms=norms, at=at, seed=seed) as weights:
            measured = measure(model, weights, batches, loss, at)
            wide = {key: weight.detach().to(measured[key].dtype) for key, weight in weights.items()}
        return measurement.check_scores(name, {key: formula(wide[key], measured[key]) for key in weights})

    for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):  # but not the formula's signature
        setattr(score, attribute, getattr(formula, attribute))
    setattr(score, ABOUT, about)
    return score


@of_gradients(About(paper="Lee et al. 2019", data="yes", order=1, channels="snap"))
def snip(weight: Tensor, gradient: Tensor) -> Tensor:
    """Score each weight by |w * dL/dw|, where L is the loss averaged over the batches (SNIP); needs data.

    Lee, Ajanthan & Torr, "SNIP: Single-shot network pruning based on connection sensitivity" (2019, arXiv 1810.02340).
    Their division by the sum of all scores is left out, because it does not change the order. Iter-SNIP and FORCE
    prune by this score in several iterations: see `prune`.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.snip(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return (weight * gradient).abs()


@of_gradients(About(paper="Molchanov et al. 2019", data="yes", order=1, channels="taylor"), torch.abs)
def taylor(weight: Tensor, size: Tensor) -> Tensor:
    """Score each weight by the mean over batches of |w * dL/dw|, the change of the loss without w; needs data.

    The change is the first-order Taylor expansion of Molchanov et al., "Pruning convolutional neural networks for
    resource efficient inference" (2017, arXiv 1611.06440), here for single weights instead of feature maps. Absolute
    values are taken per batch, so changes of opposite sign do not cancel. In `snip` they cancel; with a single batch,
    the two scores are equal.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.taylor(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2., 3.]])}
    """
    return weight.abs() * size


@of_gradients(About(paper="Theis et al. 2018", data="yes", order=1, channels="summed"), torch.square)
def fisher(weight: Tensor, square: Tensor) -> Tensor:
    """Score each weight by w^2 / 2 * mean of (dL/dw)^2 over the batches (empirical Fisher); needs data.

    Theis et al., "Faster gaze prediction with dense networks and Fisher pruning" (2018, arXiv 1801.05787), here for
    single weights. The published score averages over examples; it equals this score if each batch has one example,
    which needs ``norms="running"``. The gradient of a larger batch is a mean over examples, so its square is smaller.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.fisher(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2.0000, 4.5000]])}
    """
    return weight**2 / 2 * square


@of_gradient_flow(About(paper="Rachwan et al. 2022", data="yes", order=2, channels="crop_gates"))
def crop(weight: Tensor, product: Tensor) -> Tensor:
    """Score each weight by |w * Hg|, the change of the gradient flow without the weight (CroP); needs data.

    Rachwan et al., "Winning the lottery ahead of time: efficient early network pruning" (2022, arXiv 2206.10451). The
    gradient flow is g'g, where g is the gradient of the mean loss over all batches with respect to the weights in
    scope; H is the Hessian of this loss. Without the weight w, the flow changes by about -2 w * Hg. CroPit and
    EarlyCroP prune by this score in several iterations with the schedule ``halving``: see `prune`. The published code
    measures with ``norms="running"``.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 1): Hg = (-2, -2)
        >>> tk.score.crop(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=half_square)
        {'weight': tensor([[4., 6.]])}
    """
    return (weight * product).abs()


@described(About(paper="Wang et al. 2020", data="yes", order=2, channels="summed", signed=True))
@entry_point(CHANGES)
def grasp(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
    temperature: float = 1.0,
) -> dict[str, Tensor]:
    """Score each weight by w * Hg: how much the gradient flow would fall without the weight (GraSP); needs data.

    Wang, Zhang & Grosse, "Picking winning tickets before training by preserving gradient flow" (2020, arXiv
    2002.07376). For g and H see `crop`. The paper removes the weights with the largest -w * Hg, and so retains the
    weights with the largest w * Hg. The sign matters: to retain the largest -w * Hg, or the largest absolute values
    (`crop`), is another method.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.
        temperature: number by which the model's output (one tensor of logits) is divided before the loss. The published
            code uses 200, which flattens the class probabilities: ``functools.partial(score.grasp, temperature=200)``.

    Raises:
        UsageError: if the temperature is not positive, or the output is not a single tensor; see also `DataScore`.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> half_square = lambda model, batch: model(batch).square().sum() / 2  # at x = (1, 1): Hg = (-2, -2)
        >>> tk.score.grasp(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=half_square)
        {'weight': tensor([[-4.,  6.]])}
    """
    batches, loss = measurement.require_data("grasp", batches, loss)
    with (
        measurement.prepare_for_measurement(model, scope, norms=norms, at=at, seed=seed) as weights,
        _divide_output(model, temperature),
    ):
        product = measurement.hessian_gradient_product("grasp", model, weights, batches, loss, at)
    return measurement.check_scores(
        "grasp", {name: weight.detach() * product[name] for name, weight in weights.items()}
    )


@contextmanager
def _divide_output(model: nn.Module, temperature: float) -> Iterator[None]:
    """Within the block, divide the output of every call of the model by `temperature`."""
    if not 0 < temperature < inf:
        raise UsageError(f"a temperature is a positive number, not {temperature}")
    if temperature == 1:
        yield
        return
    divided = []

    def divide(_: nn.Module, __: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise UsageError(
                f"a temperature divides the tensor that a model returns, and {type(model).__name__} returns a"
                f" {type(output).__name__}: divide the logits in the loss instead"
            )
        divided.append(True)
        return output / temperature

    handle = model.register_forward_hook(divide)
    try:
        yield
    finally:
        handle.remove()
    if not divided:
        raise UsageError("the loss does not call the model it is given: divide the logits in the loss instead")


@described(About(paper="Wang et al. 2020 (code)", data="yes", order=2, channels="summed", signed=True))
@entry_point(CHANGES)
def grasp200(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "batch",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """Score weights of a classifier by `grasp` at temperature 200, as the authors' published code does; needs data.

    Wang, Zhang & Grosse (2020, arXiv 2002.07376). This score exists so that commands can request the temperature by a
    name. It raises the same errors as `grasp`.

    Args:
        model, scope, batches, loss, seed, norms, at: see `DataScore`.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> mask = tk.prune(model, 0.5, score="grasp200", batches=batches, loss=loss)
        >>> mask.kept
        6
    """
    return grasp(model, scope, batches=batches, loss=loss, seed=seed, norms=norms, at=at, temperature=200.0)


@described(About(paper="Martens & Grosse 2015", data="yes", order=1, channels="summed"))
@entry_point(CHANGES)
def kfac(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    norms: str = "running",
    at: Mask | None = None,
) -> dict[str, Tensor]:
    """Score each weight by w^2 / 2 * E[x^2] * E[g^2], where x is its input and g its output's gradient; needs data.

    E[x^2] * E[g^2] is the diagonal of the empirical Fisher information if inputs and gradients are uncorrelated:
    Martens & Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature" (ICML 2015, arXiv
    1503.05671). For convolutions, Grosse & Martens (ICML 2016, arXiv 1602.01407) also assume that positions are
    uncorrelated. The score uses each example of a batch separately, so it is less noisy than `fisher`. The score of
    several weights is the sum of their scores, and layers are comparable; ``structure="auto"`` is based on it. It is
    computed in float64.

    The formula applies to weights of linear layers, attention and convolutions. Any other weight (of recurrent layers,
    embeddings, norms, computed weights) gets w^2 / 2 * size * g^2, where g is the weight's gradient of the mean loss of
    a batch of `size` examples. This has the same expectation, because gradients of different examples cancel.

    Args:
        model, scope, loss, seed, at: see `DataScore`.
        batches: batches of training data, of equal size; every batch counts the same.
        norms: see `ticketry.score`; by default ``running``, so that examples do not influence one another.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> total = lambda model, batch: model(batch).sum()
        >>> tk.score.kfac(model, tk.scope(model), batches=[torch.ones(1, 2)], loss=total)
        {'weight': tensor([[2.0000, 4.5000]], dtype=torch.float64)}
    """
    batches, loss = measurement.require_data("kfac", batches, loss)
    with (
        measurement.prepare_for_measurement(model, scope, norms=norms, at=at, seed=seed) as weights,
        without_parameter_gradients(model),
    ):
        scores = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
        layers = {id(one._parameters.get("weight")) for one in model.modules() if isinstance(one, COUNTED_LAYERS)}
        count, others = 0, set[str]()
        for count, batch in enumerate(batches, start=1):
            with record_calls(model, weights, others) as calls:
                value = measurement.call_loss(loss, model, batch)
                # A layer that the model never calls has no product, but is not used otherwise either.
                others |= {name for name, one in weights.items() if not calls[name] and id(one) not in layers}
                known = {name: made for name, made in calls.items() if name not in others}
                measurement.check_loss(value, count, reached=not others)
                if value.requires_grad and any(known.values()):
                    add_output_gradients(value.reshape(()), known)
                size = max((call.examples for made in calls.values() for call in made), default=0) or 1
            found = {name: squared_output_change(weights[name], made) for name, made in known.items()}
            theirs = {name: weight for name, weight in weights.items() if name in others}
            found |= _batch_gradient_squares(model, theirs, batch, loss, count)
            for name, values in found.items():  # g of the mean loss is that of one example / size
                scores[name] += values.to(scores[name].device) * (size / 2)
        if not count:
            raise measurement.no_batch_error()
        mean = measurement.average_over_processes(
            model, weights, {name: values / count for name, values in scores.items()}
        )
    return measurement.check_scores("kfac", mean)


def _batch_gradient_squares(
    model: nn.Module, weights: Mapping[str, nn.Parameter], batch: object, loss: Loss, count: int
) -> dict[str, Tensor]:
    """Return (weight * gradient of the batch's loss)^2 for each parameter, by name."""
    if not weights:
        return {}
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        value = measurement.batch_loss(model, batch, loss, count)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    found = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        own = torch.zeros_like(weight) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        found[name] = (weight.detach().double() * own.double()).square()
    return found
