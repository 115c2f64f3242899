"""Prepare a model for measuring a score, and compute gradients and Hessian-gradient products of its loss."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase

from ticketry.choices import check_choice
from ticketry.core.computed_weights import require_computed_weights_are_removed
from ticketry.core.mask import Mask
from ticketry.core.model_calls import compilation_disabled
from ticketry.core.scope import Scope
from ticketry.core.score.protocol import Loss, Score, ScoreInputs, evaluate_score
from ticketry.core.sharding import process_groups
from ticketry.errors import MaskError, ScoreError, UsageError
from ticketry_engine.support.entry_points import Need, check_model, copy_inference_tensors, restore_callers_defaults
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import mix_seeds

NORMS = ("batch", "running")


@contextmanager
def prepare_for_measurement(
    model: nn.Module, scope: Scope, *, norms: str = "batch", at: Mask | None = None, seed: int = 0
) -> Iterator[dict[str, nn.Parameter]]:
    """Within the block, prepare a model for measuring gradients; yield the parameters in scope by name.

    All layers are in evaluation mode (no dropout), but with ``norms="batch"`` norms use the statistics of the batch.
    Random numbers depend on `seed` only, weights that the mask `at` removes are 0, and compiled modules run eagerly.
    Afterwards, also after an exception, modes, buffers, weights, ``requires_grad`` and random generators are restored.
    This takes the memory of a copy of the buffers and, with `at`, of the weights.
    """
    check_choice("norms", norms, NORMS)
    if at is not None and at.shapes != dict(scope.shapes):
        raise MaskError("the mask to measure at is not of the parameters in scope")
    check_model(model, Need(python=False, floats=False, training=True))
    parameters = scope.parameters(model)
    if unordered := [name for name, parameter in parameters.items() if parameter.is_complex()]:
        raise ScoreError(
            f"{unordered[0]!r} holds complex numbers, and scores of gradients are of real ones: score='magnitude' ranks"
            " complex weights; or spare it"
        )
    if at is not None:
        require_computed_weights_are_removed(model, parameters, at)  # else the loss could be NaN without an explanation
    with ExitStack() as stack:
        stack.enter_context(seeded_random_state(seed, model))
        stack.enter_context(compilation_disabled(model))
        if isinstance(model, nn.parallel.DistributedDataParallel):  # no gradient exchange: `backward` is never called
            stack.enter_context(model.no_sync())
        for module in model.modules():  # one by one, because an overridden train() may have side effects
            stack.callback(setattr, module, "training", module.training)
            module.training = norms == "batch" and isinstance(module, _NormBase)
        stack.enter_context(_restore_buffers_afterwards(model))
        stack.enter_context(temporarily_pruned(at, parameters))
        for parameter in parameters.values():  # frozen weights get a score too
            stack.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        yield parameters


@contextmanager
def seeded_random_state(seed: int, model: nn.Module) -> Iterator[None]:
    """Within the block, seed torch's random generators on the CPU and the model's devices; restore them afterwards."""
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with private_random_state(devices):
        torch.default_generator.manual_seed(mix_seeds(seed, "scoring"))
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(mix_seeds(seed, "scoring"))
        yield


def cache_batches(inputs: ScoreInputs, model: nn.Module) -> ScoreInputs:
    """Return `inputs` with the batches as a list, so that they can be iterated several times."""
    if inputs.batches is None:
        return inputs
    with seeded_random_state(inputs.seed, model):  # a loader that shuffles draws from the global generator
        return replace(inputs, batches=list(inputs.batches))


@contextmanager
def temporarily_pruned(mask: Mask | None, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within the block, set the weights that `mask` removes to 0; restore them exactly afterwards."""
    if mask is None:
        yield
        return
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    try:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.masked_fill_(~mask[name].to(parameter.device), 0)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


@contextmanager
def _restore_buffers_afterwards(model: nn.Module) -> Iterator[None]:
    before = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            # Only changed buffers are written: expanded views cannot be written to.
            if buffer is not None and value is not None and not torch.equal(buffer, value):
                with torch.no_grad():
                    buffer.copy_(value)
            module._buffers[name] = buffer


def require_data(score: str, batches: Iterable[object] | None, loss: Loss | None) -> tuple[Iterable[object], Loss]:
    """Return `batches` and `loss`; raise `UsageError` if either is None. `score` is the name of the score."""
    if batches is None or loss is None:
        missing = " and ".join(word for word, value in (("batches", batches), ("a loss", loss)) if value is None)
        raise UsageError(
            f"score {score!r} needs {missing}: give batches= (of training data) and loss=, a function"
            " loss(model, batch) of the mean loss"
        )
    return batches, loss


def call_loss(loss: Loss, model: nn.Module, batch: object) -> Tensor:
    """Call ``loss(model, batch)``; raise `UsageError` for a criterion of torch, which takes outputs and targets."""
    if (getattr(loss, "__module__", None) or "").startswith("torch.nn."):  # its modules and its functional ones
        name = getattr(loss, "__name__", type(loss).__name__)
        raise UsageError(
            f"loss= is called as loss(model, batch), and torch's {name} takes outputs and targets: give a function such"
            " as lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    with restore_callers_defaults():
        return loss(model, copy_inference_tensors(batch))


def no_batch_error() -> UsageError:
    """Return the error for an empty iterable of batches."""
    return UsageError("there is no batch in batches=: an iterator can be read only once; give a list or a loader")


def average_gradients(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[object],
    loss: Loss,
    transform: Callable[[Tensor], Tensor] = lambda gradient: gradient,
) -> dict[str, Tensor]:
    """Return, by parameter name, the mean over batches of ``transform(gradient of the batch's loss)``.

    Every batch counts equally. If several processes train the model (DistributedDataParallel), the mean is over the
    batches of all processes. All processes must call this with the same number of batches, and get the same result.
    """
    total: dict[str, Tensor] = {}
    count = 0
    for count, batch in enumerate(batches, start=1):
        found = _compute_gradients(batch_loss(model, batch, loss, count), weights)
        for name, weight in weights.items():
            gradient = found[name]
            # Promote first: squares of float16 gradients underflow.
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            value = transform(gradient.to(torch.promote_types(gradient.dtype, torch.float32)))
            total[name] = total[name].add_(value) if name in total else value.clone()
    if not count:
        raise no_batch_error()
    return average_over_processes(model, weights, {name: value.div_(count) for name, value in total.items()})


def average_over_processes(
    model: nn.Module, weights: Mapping[str, nn.Parameter], own: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Average the tensors `own`, in place, over the processes that train the model together."""
    for group in process_groups(model, weights.values()):
        import torch.distributed as dist

        for value in own.values():
            dist.all_reduce(value, group=group)
            value.div_(dist.get_world_size(group))
    return own


def hessian_gradient_product(
    score: str,
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batches: Iterable[object],
    loss: Loss,
    at: Mask | None = None,
    *,
    gradient: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return the Hessian-gradient product Hg of the mean loss over the batches, by parameter name.

    H and g are with respect to the given weights only (no bias, no norm). First, g is averaged over all batches. Then
    the derivative of <g, gradient of a batch>, with constant g, is averaged over the same batches. So all batches are
    kept in memory.

    For weights that the mask `at` removes, g is set to 0. H can be multiplied by another vector `gradient` instead.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kept = list(batches)
    try:
        with sdpa_kernel(SDPBackend.MATH):  # fused kernels of attention have no second derivative
            fixed = average_gradients(model, weights, kept, loss) if gradient is None else gradient
            if at is not None:
                fixed = {name: value * at[name].to(value.device) for name, value in fixed.items()}
            total = {name: torch.zeros_like(value) for name, value in fixed.items()}
            for count, batch in enumerate(kept, start=1):
                value = batch_loss(model, batch, loss, count)
                if count == 1:
                    _check_twice_differentiable(value)
                moving = _compute_gradients(value, weights, create_graph=True)
                product = sum((fixed[name] * each).sum() for name, each in moving.items() if each is not None)
                if isinstance(product, Tensor) and product.requires_grad:  # else the gradient is constant and H is 0
                    for name, each in _compute_gradients(product, weights).items():
                        if each is not None:
                            total[name].add_(each)
    except _OnceDifferentiableError as error:
        raise ScoreError(f"score {score!r} needs second derivatives: {error}") from None
    return average_over_processes(model, weights, {name: value.div_(len(kept)) for name, value in total.items()})


def check_scores(score: str, scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `scores`, detached, after a check of their values; `score` is the name of the score."""
    for name, values in scores.items():
        if not bool(torch.isfinite(values).all()):
            raise ScoreError(
                f"score {score!r} of {name!r} is not finite: the gradients overflow; look at the scale of loss, weights"
                " and inputs, or use float64"
            )
    if not any(bool(values.any()) for values in scores.values()):
        raise ScoreError(
            f"score {score!r} is 0 for every weight, so that none is better than another: its gradients vanish (units"
            " that are dead or saturated, weights that are all 0, or a loss that they do not reach)"
        )
    return {name: values.detach() for name, values in scores.items()}


def batch_loss(model: nn.Module, batch: object, loss: Loss, count: int) -> Tensor:
    """Return the loss of the `count`-th batch as a scalar tensor."""
    value = call_loss(loss, model, batch)
    check_loss(value, count)
    return value.reshape(())


def check_loss(value: object, count: int, *, reached: bool = True) -> None:
    """Raise an error unless the loss of the `count`-th batch is a finite scalar and, if `reached`, has a gradient."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(f"a loss is one number in a tensor, the mean over the batch, not {what}")
    if not bool(torch.isfinite(value)):
        raise ScoreError(f"the loss of batch {count} is {float(value.detach()):g}: look at the weights and the inputs")
    if reached and not value.requires_grad:
        raise ScoreError(
            f"the loss of batch {count} does not depend on any parameter in scope: is it detached, or computed from"
            " another model than the one it is given?"
        )


def _compute_gradients(
    value: Tensor, weights: Mapping[str, nn.Parameter], create_graph: bool = False
) -> dict[str, Tensor | None]:
    # autograd.grad does not write to .grad. None: the value does not depend on that weight.
    try:
        found = torch.autograd.grad(value, list(weights.values()), create_graph=create_graph, allow_unused=True)
    except RuntimeError as error:
        text = str(error)
        if not re.search(r"derivative for .* is not implemented|double backward|differentiate twice", text):
            raise
        operation = re.search(r"derivative for '?(?:aten::)?([\w:]+?)'? is not implemented", text)
        raise _OnceDifferentiableError(operation[1] if operation else text.split("\n")[0]) from None
    # Embeddings may have sparse gradients; scores cover all rows.
    dense = [each.to_dense() if each is not None and each.is_sparse else each for each in found]
    return dict(zip(weights, dense, strict=True))


# -- operations without a second derivative ----------------------------------------------------------------------------


def _check_twice_differentiable(value: Tensor) -> None:
    """Raise an error if a loss uses an autograd function whose second derivative may silently be 0."""
    mark = once_differentiable(_check_twice_differentiable).__code__
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function: Any = getattr(node, "_forward_cls", None)
        if getattr(getattr(function, "backward", None), "__code__", None) is mark:
            raise _OnceDifferentiableError(function.__name__)
        waiting += [below for below, _ in node.next_functions]


class _OnceDifferentiableError(ScoreError):
    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation} has no second derivative; use a score that needs first derivatives only (snip, taylor,"
            " fisher; of channels snap, taylor), or another implementation of that operation"
        )


def has_mask_option(score: Score) -> bool:
    """Return whether a score has the option `at`: a mask, to measure the score in the pruned network."""
    return "at" in inspect.signature(score).parameters


def score_pruned_model(
    score: Score, model: nn.Module, scope: Scope, mask: Mask | None, inputs: ScoreInputs
) -> dict[str, Tensor]:
    """Return the scores of the model pruned by `mask`.

    The mask is passed as the score's option `at`. For a score without this option, removed weights are set to 0.
    """
    options = vars(inputs)
    if mask is None:
        return evaluate_score(score, model, scope, **options)
    if has_mask_option(score):
        return evaluate_score(score, model, scope, at=mask, **options)
    with temporarily_pruned(mask, scope.parameters(model)):
        return {name: values.clone() for name, values in evaluate_score(score, model, scope, **options).items()}
