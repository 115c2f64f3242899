"""Prune a model: compute scores, then a mask that has a density or meets a budget, in one step or in several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ticketry.budgets.allocation import allocate_multiplications, check_multiplications, parse_flops_share
from ticketry.budgets.cost_model import CostModel
from ticketry.budgets.layer_choice import allocate_by_layer_value
from ticketry.budgets.request import Request, default_structure, default_structure_of_latency, score_finder
from ticketry.budgets.units import EAGER, ENGINE, NONE, retains_whole_blocks
from ticketry.choices import check_choice
from ticketry.core.allocate import allocate, allocate_sharded_magnitudes, check_layer_minimum
from ticketry.core.computed_weights import computed_weights
from ticketry.core.mask import Mask
from ticketry.core.model_calls import count_multiplications
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs, get
from ticketry.core.score.measurement import cache_batches, has_mask_option, score_pruned_model
from ticketry.core.score.weight_scores import magnitude
from ticketry.core.sharding import is_sharded, reshard
from ticketry.core.structure.layout import layouts
from ticketry.core.structure.pattern import Pattern, check_density, check_layer_minimum_option, parse_layer_minimum
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point

SCHEDULES = ("exponential", "halving")


def densities(density: float, steps: int, schedule: str = "exponential", *, initial: float = 1.0) -> tuple[float, ...]:
    """Return the density after each of `steps` pruning steps, which lead from `initial` (not included) to `density`.

    Args:
        schedule: ``exponential``: each step retains the same share of the weights, so the densities are
            density^(k/steps) for k = 1 … steps (SynFlow: Tanaka et al. 2020; Iter-SNIP and FORCE: de Jorge et al.
            2021). ``halving``: the first step leads to a sparsity of 0.5 (0.25 if the final sparsity is not above 0.5).
            Each further step halves the distance to the final sparsity k: the sparsities are k - (k - 0.5) * 0.5^i for
            i = 0 … steps - 2, and finally k (published code of EarlyCroP, with 7 steps: Rachwan et al. 2022).

    Examples:
        >>> densities(0.01, 4)
        (0.316227766017, 0.1, 0.0316227766017, 0.01)
        >>> densities(0.1, 4, "halving")
        (0.5, 0.3, 0.2, 0.1)
    """
    if steps < 1:
        raise UsageError(f"a score is iterated at least once, not {steps} times (iterations=)")
    check_choice("schedule", schedule, SCHEDULES)
    if check_density(density) > check_density(initial):
        raise UsageError(f"density {density:g} is above the {initial:g} that pruning begins with: masks only shrink")
    share = density / initial
    if schedule == "exponential":
        shares = [share ** (step / steps) for step in range(1, steps)]
    else:
        first = 0.5 if share < 0.5 else 0.75
        shares = [share + max(first - share, 0) * 0.5**index for index in range(steps - 1)]
    return (*(float(f"{initial * each:.12g}") for each in shares), density)


@contextmanager
def name_final_target_in_errors(target: float, wanted: float, what: str = "density") -> Iterator[None]:
    """Within the block, start the message of a LayerCollapseError with "on the way to density `wanted`".

    The message is unchanged if the pruning step's own density, `target`, equals `wanted`. `what` replaces "density".
    """
    try:
        yield
    except LayerCollapseError as error:
        if target == wanted:
            raise
        raise error.with_prefix(f"on the way to {what} {wanted:g}") from None


@entry_point(Need(python=False, floats=False))
def prune(
    model: nn.Module,
    density: float | str | None = None,
    *,
    sparsity: float | str | None = None,
    flops: float | str | None = None,
    time: float | str | None = None,
    base: str = EAGER,
    bytes: float | str | None = None,
    example_inputs: Any = None,
    cost: CostModel | None = None,
    structure: str | None = None,
    score: str | Score | None = None,
    scope: Scope | None = None,
    distribution: str = "global",
    within: Mask | None = None,
    half_rate: tuple[str, ...] = (),
    collapse: str = "raise",
    keep_at_least: int = 0,
    pattern: str | Pattern = "unstructured",
    iterations: int = 1,
    schedule: str = "exponential",
    regrow: bool = False,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> Mask:
    """Return the mask that retains a fraction `density` of the weights of `model`, chosen by `score`.

    The model is not changed; use `Mask.apply_` or `hold` to prune it. If the model is sharded over several devices
    (`fully_shard`), all processes must call this function; each gets the mask of the whole model, which is not
    gathered.

    Args:
        model: any module.
        density: fraction of the scope to retain, 0 < density <= 1 or "10%". The number of weights is exact; with a
            pattern of blocks, it is as close as whole blocks permit. With N:M, the density is at most N/M, which is the
            default.
        sparsity: fraction to remove, instead of density.
        flops: fraction of the MACs of the layers in scope to retain, instead of density. Single weights of all layers
            are pruned together in one step. Without a score, no layer is left empty. With a score, the weights with
            the highest score per MAC are retained, see `budgets.allocation`. With plain magnitudes, early layers of
            deep networks may then be left empty; this raises an error that names the lowest sufficient fraction.
            `keep_at_least` avoids the error by retaining the best weights of each layer.
        time: latency budget on this machine, instead of density: a fraction of the latency of `base`, 0 < time <= 1 or
            "50%", or an amount ("5ms"). The masked model is compiled and timed, and the mask corrected, until the
            budget is met. If the compiled unpruned model meets the budget, nothing is pruned and a `BudgetWarning` is
            given. `ticketry.cost.meet` does the same and returns all measurements. The options `cost` and `structure`,
            and all options that `flops` permits, can be given too.
        base: the implementation whose latency `time` is a fraction of: ``eager`` (the uncompiled model),
            ``torch.compile``, ``onnxruntime``, ``openvino``, or ``engine`` (compiled by ticketry without pruning).
        bytes: budget for the model file that `Compiled.save` writes, instead of density: a fraction of the dense
            model's file, or an amount ("2MB").
        example_inputs: inputs of a call. Required for flops, time and bytes. Also required for a pattern if weights
            such as stacked experts do not belong to a layer of torch: the call shows their input dimension.
        cost: for time and bytes: the cost model, from `ticketry.cost.model`; by default it is measured now.
        structure: for time: ``auto`` chooses single weights or groups of rows for each layer; ``weights`` or
            ``rows:16`` (any size) is the same granularity for all layers; ``channels`` removes whole channels; ``none``
            retains the single weights with the highest score per latency. By default, masks by ``auto``, ``weights``
            and ``channels`` are made to meet the budget, and the mask that retains most importance is returned. With a
            score, the default is ``none``; with `cost` or `within`, it is ``weights``.
        score: a name of `ticketry.score`, or a function of that form; by default magnitude. With a structure, time or
            flops, the default is `kfac` if batches and a loss are given, else the change of the outputs by removing
            each weight.
        scope: the parameters that may be pruned; by default `ticketry.scope(model)`, or the parameters in `within`.
        distribution, within, half_rate, collapse, keep_at_least: see `allocate`. A score with the option `at` (scores
            that need data, and synflow) is computed in the network that `within` leaves.
        pattern: which weights are retained or removed together: ``unstructured``, ``4x1``, ``16x1``, ``channel``,
            ``2:4`` …, see `structure.pattern.Pattern`. Blocks are chosen by the mean score of their weights.
        iterations: number of pruning steps. Each step computes scores in the network that the previous step left, on
            the same batches. SynFlow uses 100 steps; Iter-SNIP is several steps with ``snip``; CroPit and EarlyCroP are
            7 steps with ``crop`` and the schedule ``halving``.
        schedule: intermediate densities, exponential or halving, see `densities`.
        regrow: whether removed weights may return at a later pruning step (FORCE; de Jorge et al. 2021).
        batches, loss, seed: inputs of the score, if the score needs any (magnitude, the default, does not). Several
            iterations, and scores with second derivatives, store the batches in memory.

    Raises:
        UsageError: for contradictory arguments, if a score lacks batches or a loss, or if these are given without a
            score. Also if several iterations with N:M begin above a density of N/M, or if a sharded model is pruned
            otherwise than by magnitude, unstructured, in one step.
        ScoreError: if all scores are 0, or are not real numbers in the shapes of the parameters in scope.
        LayerCollapseError: if a layer would be left empty, in an intermediate step or at the end.
        MaskError: if `within` does not fit the model, or retains fewer weights than requested.
        ScopeError: see `ticketry.scope`.
        StructureError: for a pattern, if the input dimension of a weight is unknown: see `ticketry.structure.layouts`.
        CostError, EngineError, MissingExtraError: for time and bytes, see `ticketry.cost.model`.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
        >>> mask = tk.prune(model, density=0.1)
        >>> mask.kept, mask.total
        (51, 512)
        >>> mask["0.weight"].sum() + mask["2.weight"].sum()
        tensor(51)
        >>> tk.prune(model, sparsity="95%", score="random").kept
        26
        >>> tk.prune(model, density=0.25, pattern="4x1").density
        0.25
        >>> x, y = torch.randn(8, 16), torch.arange(8)
        >>> def loss(model, batch):
        ...     return nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> tk.prune(model, 0.2, score="snip", batches=[(x, y)], loss=loss, iterations=5).kept
        102
        >>> tk.prune(model, flops=0.25, example_inputs=x).density
        0.25
    """
    reshard(model)
    if scope is None:
        scope = scope_of(model) if within is None else scope_of_shapes(model, within.shapes)
    function = get(score or magnitude)
    if regrow and not has_mask_option(function):
        raise UsageError(
            "regrow needs a score that rates removed weights, by the option `at`: such as snip, taylor, fisher, crop,"
            " grasp or synflow"
        )
    pattern = Pattern.parse(pattern)
    if base != EAGER and time is None:
        raise UsageError(f"base={base!r} says what a share of the latency is of: give time= too, or leave base out")
    budgets = {"flops": flops, "time": time, "bytes": bytes}
    if requested := [(name, amount) for name, amount in budgets.items() if amount is not None]:
        name, amount = requested[0]
        others = {
            **{other: True for other, _ in requested[1:]},
            "density": density is not None,
            "sparsity": sparsity is not None,
            "pattern": not pattern.unstructured,
            "distribution": distribution != "global",
            "iterations": iterations != 1,
            "regrow": regrow,
            "half_rate": bool(half_rate),
            "collapse": collapse != "raise",
        }
        if wrong := [other for other, is_given in others.items() if is_given]:
            raise UsageError(
                f"{name} takes the place of density, and chooses single weights over all layers in one cut: leave"
                f" {' and '.join(wrong)} out"
            )
        if example_inputs is None:
            raise UsageError(f"{name} is of a call, in which it is counted: prune(..., example_inputs=x)")
        if name == "flops":
            _require_no_costs(cost, structure)
        if name == "time":
            by = default_structure_of_latency(structure, score, cost, within)
        else:
            by = structure or NONE if name == "bytes" else default_structure(structure, score)
        find = score_finder(score, model, scope, within, ScoreInputs(batches, loss, seed), by, example_inputs)
        if name == "flops":
            # If no mask can meet the share, an error is raised before weights are scored.
            share, least = parse_flops_share(amount), check_layer_minimum_option(keep_at_least)
            prices = count_multiplications(model, scope, example_inputs)
            check_multiplications(scope.shapes, prices, share, within=within, least=least)
            allocated = allocate_by_layer_value if retains_whole_blocks(by) else allocate_multiplications
            return allocated(find(), prices, share, within=within, keep_at_least=least)
        request = Request(
            model=model,
            example_inputs=example_inputs,
            scope=scope,
            unit="seconds" if name == "time" else "bytes",
            amount=amount,
            scores=find,
            structure=by,
            within=within,
            keep_at_least=keep_at_least,
            cost=cost,
            base=base if name == "time" else ENGINE,
        )
        from ticketry.budgets.latency import mask_for_budget

        return mask_for_budget(request)
    _require_no_costs(cost, structure)
    if example_inputs is not None and pattern.unstructured:
        raise UsageError("example_inputs are for flops, time, bytes and patterns: give one of these, or leave them out")
    if density is None and sparsity is None and not pattern.m:
        raise UsageError(
            "give either density= (fraction kept) or sparsity= (fraction removed), or a budget in their place: flops=,"
            " time= or bytes="
        )
    if score is None and (batches is not None or loss is not None):
        raise UsageError(
            "without a score, magnitudes decide, and they look at no batches and no loss: name the score that is meant,"
            " such as score='snip', or leave batches and loss out"
        )
    wanted = pattern.check_density(density, sparsity)
    if any(map(is_sharded, scope.parameters(model).values())):
        _check_sharded_request(model, function, pattern, iterations)
        return allocate_sharded_magnitudes(
            scope.parameters(model),
            wanted,
            distribution=distribution,
            within=within,
            half_rate=half_rate,
            collapse=collapse,
            keep_at_least=keep_at_least,
        )
    # `within` may already have the density, up to rounding to whole weights.
    initial = max(within.density, wanted) if within is not None and iterations > 1 else 1.0
    known = None if pattern.unstructured else layouts(model, scope, example_inputs)
    least = parse_layer_minimum(collapse, keep_at_least)
    check_layer_minimum(scope.shapes, wanted, least, pattern=pattern, layouts=known, within=within)
    inputs = ScoreInputs(batches, loss, seed)
    if iterations > 1:
        inputs = cache_batches(inputs, model)
    mask = within
    for target in densities(wanted, iterations, schedule, initial=initial):
        # In the first iteration, a score without `at` sees the model unchanged.
        seen = None if mask is within and not has_mask_option(function) else mask
        scores = score_pruned_model(function, model, scope, seen, inputs)
        with name_final_target_in_errors(target, wanted):
            mask = allocate(
                scores,
                target,
                distribution=distribution,
                within=within if regrow else mask,
                half_rate=half_rate,
                collapse=collapse,
                keep_at_least=keep_at_least,
                pattern=pattern,
                layouts=known,
            )
    assert mask is not None
    return mask


def _require_no_costs(cost: CostModel | None, structure: str | None) -> None:
    """Raise `UsageError` if `cost` or `structure` is given, which only budgets of latency and size permit."""
    if cost is not None or structure not in (None, NONE):
        raise UsageError("cost and structure are for time and bytes: leave them out")


def _check_sharded_request(model: nn.Module, score: Score, pattern: Pattern, iterations: int) -> None:
    """Raise `UsageError` if an option of `prune` is not supported for sharded models."""
    if score is not magnitude:
        wrong = "scores other than magnitude are"
    elif not pattern.unstructured:
        wrong = f"the pattern {pattern} is"
    elif iterations > 1:
        wrong = "several iterations are"
    elif next(computed_weights(model), None) is not None:
        wrong = "layers that compute their weights (weight_norm, a parametrisation) are"
    else:
        return
    raise UsageError(
        f"the parameters of {type(model).__name__} are sharded over several devices (fully_shard), and {wrong} not"
        " supported there: prune before fully_shard, when the model is whole, and hold that mask"
    )
