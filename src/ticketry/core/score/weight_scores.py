"""Scores that need no data: weight magnitudes, random numbers, and SynFlow, which needs the shape of the inputs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ticketry.core.computed_weights import effective_weights
from ticketry.core.mask import Mask
from ticketry.core.scope import EMBEDDINGS, NORMS, Scope, name_without_wrappers, unwrapped
from ticketry.core.score.measurement import call_loss, check_scores, no_batch_error, prepare_for_measurement
from ticketry.core.score.protocol import About, Loss, described
from ticketry.errors import ScoreError, UsageError
from ticketry_engine.support.entry_points import BY_NAME, CHANGES, Need, entry_point, restore_callers_defaults
from ticketry_engine.support.process_state import default_dtype
from ticketry_engine.support.seeds import generator


@described(About(paper="Han et al. 2015", data="no", order=0, channels="l1, l2"))
@entry_point(Need(python=False, floats=False))
def magnitude(
    model: nn.Module, scope: Scope, *, batches: Iterable[object] | None = None, loss: object = None, seed: int = 0
) -> dict[str, Tensor]:
    """Score each weight by |w|; a computed weight (weight_norm, …) by the value that the layer uses; needs no data.

    Args:
        model: the model whose weights are scored.
        scope: the parameters to score.
        batches, loss, seed: ignored; all scores have the same signature.

    Examples:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> model.weight.data = torch.tensor([[2.0, -3.0]])
        >>> tk.score.magnitude(model, tk.scope(model))
        {'weight': tensor([[2., 3.]])}
    """
    return {name: weight.abs() for name, weight in effective_weights(model, scope.parameters(model)).items()}


@described(About(paper="a control", data="no", order=0, channels="summed"))
@entry_point(BY_NAME)
def random(
    model: nn.Module, scope: Scope, *, batches: Iterable[object] | None = None, loss: object = None, seed: int = 0
) -> dict[str, Tensor]:
    """Score weights by uniform random numbers in [0, 1), which depend only on the seed and the tensor's index.

    The numbers are float64, so that ties are rare.

    Args:
        model: the model whose weights are scored.
        scope: the parameters to score.
        batches, loss: ignored; all scores have the same signature.
        seed: seed of the random numbers.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> one, again = (tk.score.random(model, tk.scope(model), seed=1)["weight"] for _ in range(2))
        >>> one.shape, one.dtype, torch.equal(one, again)
        (torch.Size([2, 4]), torch.float64, True)
    """
    return {
        name: torch.rand(shape, dtype=torch.float64, generator=generator(seed, "random", index))
        for index, (name, shape) in enumerate(scope.shapes.items())
    }


@described(About(paper="Tanaka et al. 2020", data="shapes", order=1, channels="summed"))
@entry_point(CHANGES)
def synflow(
    model: nn.Module,
    scope: Scope,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    at: Mask | None = None,
    bypass: tuple[type[nn.Module], ...] = (),
) -> dict[str, Tensor]:
    """Score each weight by |w| * dR/d|w| for R = sum of the outputs for inputs of 1 (SynFlow); needs input shapes only.

    R is computed with the absolute values of all weights. Tanaka et al., "Pruning neural networks without any data by
    iteratively conserving synaptic flow" (2020, arXiv 2006.05467). Pruning in a single step empties layers, so the
    paper prunes in many steps: ``prune(…, score="synflow", iterations=100)``. The score is meant for networks of linear
    layers, pooling and ReLU, where the scores of each layer add up to R.

    Norms return their input unchanged, and dropout is off. Everything is computed in float64 on copies, because R grows
    with the weights of every layer and overflows float32. Tensors that the model creates without a type, such as an
    initial hidden state, are also float64. An embedding gets a 1 for each of its rows as input.

    Args:
        model: the model whose weights are scored; it is restored afterwards.
        scope: the parameters to score.
        batches: only the shapes of the first batch are used; one example suffices. With `loss`, the model gets the
            inputs that the loss passes to it; without `loss`, the batch itself, a tensor or a tuple of tensors.
        loss: ``loss(model, batch)``, see `batches`.
        seed: ignored.
        at: see `ticketry.score`.
        bypass: custom classes of norms, to be bypassed like torch's.

    Raises:
        UsageError: without a batch, if `at` is not a mask, if the loss does not call the model, or if a parameter of a
            norm is in scope.
        ScoreError: if all scores are 0, if a score is not finite, or if the model cannot compute in float64.

    Examples:
        >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
        >>> model[0].weight.data, model[1].weight.data = torch.tensor([[2.0], [-3.0]]), torch.tensor([[5.0, 7.0]])
        >>> tk.score.synflow(model, tk.scope(model), batches=[torch.zeros(1, 1)])
        {'0.weight': tensor([[10.],
                [21.]], dtype=torch.float64), '1.weight': tensor([[10., 21.]], dtype=torch.float64)}
    """
    if batches is None:
        raise UsageError("score 'synflow' needs the shape of the inputs: give batches= of one batch")
    passed = (*NORMS, *bypass)
    with (
        prepare_for_measurement(model, scope, norms="running", seed=seed) as weights,
        _bypass_norms_and_embeddings(model, passed),
    ):
        _refuse_norm_parameters(model, weights, passed)
        args, kwargs = _replace_floats_by_ones(_capture_inputs(model, batches, loss))
        inner = unwrapped(model)  # functional_call takes no nn.DataParallel
        tensors, leaves = _copy_absolute_tensors(inner, at)
        wanted = [leaves[id(weight)] for weight in weights.values()]
        try:
            with default_dtype(torch.float64):
                found = functional_call(_SummedOutput(inner, wanted), tensors, args, kwargs, tie_weights=False)
        except RuntimeError as error:
            text = str(error).split("\n")[0]
            if not re.search("dtype|scalar type|double|float", text, re.IGNORECASE):
                raise
            raise ScoreError(
                f"synflow calls the model in float64, and there torch says: {text}. The model makes or keeps a tensor"
                " of a fixed type: give it the type of the inputs (dtype=x.dtype, x.new_zeros) or make it a buffer; or"
                " take a score that computes in the model's type"
            ) from error
    scores = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in weights.items()}
    for (name, weight), gradient in zip(weights.items(), found, strict=bool(found)):
        if gradient is not None:
            scores[name] = weight.detach().double().abs() * gradient
    return check_scores("synflow", scores)


class _SummedOutput(nn.Module):
    """Sums the outputs of a model and differentiates the sum with respect to the `wanted` tensors, in one call.

    Forward and backward pass run in a single call with substituted tensors, because activation checkpointing calls
    parts of the model again in the backward pass.
    """

    def __init__(self, model: nn.Module, wanted: Sequence[Tensor]) -> None:
        super().__init__()
        self.model = model
        self.wanted = wanted  # not arguments: torch's FLOP counter would wait for gradients of those

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...]:
        with restore_callers_defaults():
            output = self.model(*args, **kwargs)
        total = _sum_outputs(output)
        return torch.autograd.grad(total, self.wanted, allow_unused=True) if total.requires_grad else ()


class _ModelCalled(Exception):
    """Exception that stops a call of the model and contains the arguments of the call."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.call = args, kwargs


def _capture_inputs(
    model: nn.Module, batches: Iterable[object], loss: Loss | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with which the loss calls the model for the first batch."""
    batch: Any = next(iter(batches), None)
    if batch is None:
        raise no_batch_error()
    if loss is None:
        args = (batch,) if isinstance(batch, Tensor) else batch
        if not isinstance(args, (tuple, list)) or not all(isinstance(each, Tensor) for each in args):
            raise UsageError("without a loss, a batch is the model's input: a tensor, or a tuple of them")
        return tuple(args), {}

    def stop_at_model_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ModelCalled(args, kwargs)

    handle = model.register_forward_pre_hook(stop_at_model_call, prepend=True, with_kwargs=True)
    try:
        call_loss(loss, model, batch)
    except _ModelCalled as found:
        return found.call
    finally:
        handle.remove()
    raise UsageError("the loss does not call the model it is given: give the model's inputs as batches, and no loss")


def _replace_floats_by_ones(value: Any) -> Any:
    """Replace each floating-point tensor in a nested value by ones; other tensors (indices, masks) are unchanged."""
    if isinstance(value, Tensor):
        return torch.ones_like(value, dtype=torch.float64) if value.is_floating_point() and value.dim() else value
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(_replace_floats_by_ones(each) for each in value)
    if type(value) is dict:
        return {name: _replace_floats_by_ones(each) for name, each in value.items()}
    return value


def _copy_absolute_tensors(model: nn.Module, at: Mask | None) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Return the absolute values of the model's tensors in float64: by name, and those of parameters also by id."""
    leaves: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters():
        absolute = parameter.detach().double().abs()
        if at is not None and name_without_wrappers(name) in at:
            absolute *= at[name_without_wrappers(name)].to(absolute.device)
        leaves[id(parameter)] = absolute.requires_grad_(True)
    # Buffers keep their sign: one may be an attention mask with -inf.
    buffers = {id(each): each.double() if each.is_floating_point() else each.clone() for each in model.buffers()}
    given = leaves | buffers
    # Each place under one name only: torch restores a place that is given twice wrongly.
    tensors = {
        ".".join(part for part in ("model", prefix, local) if part): given[id(tensor)]
        for prefix, module in model.named_modules()
        for local, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    return tensors, leaves


def _sum_outputs(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output.double().sum() if output.is_floating_point() else torch.zeros((), dtype=torch.float64)
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if not isinstance(output, (tuple, list)):
        raise ScoreError(f"synflow adds up tensors, and the model returns a {type(output).__name__}")
    parts = [_sum_outputs(each) for each in output if each is not None]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


@contextmanager
def _bypass_norms_and_embeddings(model: nn.Module, passed: tuple[type[nn.Module], ...]) -> Iterator[None]:
    """Within the block, let norms return their input, and embeddings the sum of their rows (a 1 for each row)."""

    def return_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: object) -> Any:
        return args[0] if args else next(iter(kwargs.values()))

    def return_sum_of_rows(module: nn.Module, _: object, output: Tensor) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.sum(0).expand(output.shape)

    handles = []
    for module in model.modules():
        if isinstance(module, passed):
            handles.append(module.register_forward_hook(return_input, with_kwargs=True))
        elif isinstance(module, EMBEDDINGS):
            handles.append(module.register_forward_hook(return_sum_of_rows))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _refuse_norm_parameters(
    model: nn.Module, weights: Mapping[str, nn.Parameter], passed: tuple[type[nn.Module], ...]
) -> None:
    names = {id(weight): name for name, weight in weights.items()}
    for module in model.modules():
        if isinstance(module, passed):
            for parameter in module.parameters():
                if id(parameter) in names:
                    raise UsageError(
                        f"synflow passes norms by and has no score for {names[id(parameter)]!r}: leave it out of the"
                        " scope (norms=False, spare=)"
                    )
