"""Scores, then a mask: in one call, or iterated, a little at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ticketry.choices import check_choice
from ticketry.core.allocate import allocate
from ticketry.core.budget import allocate_multiplications, allocate_worth, check_multiplications, checked_flops, uses
from ticketry.core.computed_weights import computed_weights
from ticketry.core.costs.bases import EAGER, ENGINE
from ticketry.core.costs.budgets import METERS, Request
from ticketry.core.costs.cost_model import CostModel
from ticketry.core.costs.granularity import FINEST
from ticketry.core.costs.least import check_least_of
from ticketry.core.costs.saliency import output_change
from ticketry.core.devices.parts import put_back
from ticketry.core.devices.pruning import any_spread, largest_magnitudes
from ticketry.core.layout import layouts
from ticketry.core.mask import Mask
from ticketry.core.pattern import Pattern, check_at_least, check_collapse, check_density
from ticketry.core.scope import Scope, scope_of_shapes
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs, get
from ticketry.core.score._asked import asked
from ticketry.core.score._measure import kept_batches, pruned_to
from ticketry.core.score.kfac import kfac
from ticketry.core.score.magnitude import magnitude
from ticketry.core.structuring import BY_MEASUREMENT, NONE, adds_scores, in_blocks
from ticketry.errors import LayerCollapseError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point

SCHEDULES = ("exponential", "halving")


def densities(density: float, steps: int, schedule: str = "exponential", *, initial: float = 1.0) -> tuple[float, ...]:
    """The density after each of `steps` cuts, from `initial` (not in the result) to `density` (its last).

    Args:
        schedule: ``exponential``: each cut keeps the same share, density^(k/steps) for k = 1 … steps (SynFlow: Tanaka
            et al. 2020; Iter-SNIP and FORCE: de Jorge et al. 2021). ``halving``: the first cut goes to a sparsity of
            0.5 (0.25 if the last is not above 0.5), then each halves the way to the last, k - (k - 0.5) * 0.5^i, where
            k is the sparsity wanted and i = 0 … steps - 2; the last cut is to k itself (published code of EarlyCroP,
            with 7 steps: Rachwan et al. 2022).

        >>> densities(0.01, 4)
        (0.316227766017, 0.1, 0.0316227766017, 0.01)
        >>> densities(0.1, 4, "halving")
        (0.5, 0.3, 0.2, 0.1)

    Raises:
        UsageError: for less than one step, an unknown schedule, or densities that are not 0 < density <= initial <= 1.
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


def iterated(
    score: str | Score, steps: int = 100, schedule: str = "exponential", *, regrow: bool = False
) -> Callable[..., Mask]:
    """A score iterated, as a function of the model and the density: ``iterated(…)(model, density, …) -> Mask``.

    It takes what `prune` takes besides, and is `prune` with these iterations:

    - SynFlow (Tanaka et al. 2020): ``iterated("synflow", 100)``
    - Iter-SNIP (de Jorge et al. 2021): ``iterated("snip", steps)``
    - FORCE (de Jorge et al. 2021): ``iterated("snip", steps, regrow=True)``
    - CroPit, EarlyCroP (Rachwan et al. 2022): ``iterated("crop", 7, "halving")``
    """

    return partial(prune, score=score, iterations=steps, schedule=schedule, regrow=regrow)


@contextmanager
def on_the_way(target: float, wanted: float, what: str = "density") -> Iterator[None]:
    """Tell of a layer that a cut to `target` empties that this is on the way to what was asked for."""
    try:
        yield
    except LayerCollapseError as error:
        if target == wanted:
            raise
        raise error.with_prefix(f"on the way to {what} {wanted:g}") from None


def measures_at_mask(score: Score) -> bool:
    """Whether a score takes the option `at`."""
    return "at" in inspect.signature(score).parameters


def structure_by_default(structure: str | None, score: str | Score | None) -> str:
    """That of a budget of time or multiplications: if neither it nor a score is said, single weights by their value."""
    return structure or (NONE if score is not None else FINEST)


def structure_of_time(
    structure: str | None, score: str | Score | None, cost: CostModel | None, within: Mask | None
) -> str:
    """Return the structure of a latency budget, where none is named by measurement.

    Costs and candidates that are given leave nothing to measure other structures by: then it is single weights.
    """
    if structure is None and score is None and cost is None and within is None:
        return BY_MEASUREMENT
    return structure_by_default(structure, score)


def finder(
    score: str | Score | None, model: nn.Module, scope: Scope, within: Mask | None, inputs: ScoreInputs, structure: str
) -> Callable[[], dict[str, Tensor]] | None:
    """What finds the scores of a budget; None for what the outputs change by without weights, see `costs.saliency`.

    Where each layer has a granularity, scores are added up over blocks and compared between layers. If none is said it
    is kfac, or without any batches None; elsewhere magnitude.

    Raises:
        UsageError: for magnitudes there, which cannot be added up.
    """
    if score is None and adds_scores(structure):
        if inputs.batches is None:
            return None
        score = kfac
    function = get(score or magnitude)
    if function is magnitude and adds_scores(structure):
        raise UsageError(
            f"structure {structure} adds scores up and compares layers by them, which magnitudes cannot be: leave the"
            " score out, or take another, such as fisher"
        )
    seen = within if measures_at_mask(function) else None
    return partial(scores_in, function, model, scope, seen, inputs)


def budget_scores(
    score: str | Score | None,
    model: nn.Module,
    scope: Scope,
    within: Mask | None,
    inputs: ScoreInputs,
    structure: str,
    example_inputs: Any,
) -> Callable[[], dict[str, Tensor]]:
    """What finds the scores of a budget, where there are example inputs. Raises what `finder` does."""
    found = finder(score, model, scope, within, inputs, structure)
    return found or partial(output_change, model, scope, example_inputs)


def scores_in(
    score: Score, model: nn.Module, scope: Scope, mask: Mask | None, inputs: ScoreInputs
) -> dict[str, Tensor]:
    """A score of the network that a mask leaves of `model`: by the option `at`, or else with weights set to 0."""
    given = vars(inputs)
    if mask is None:
        return asked(score, model, scope, **given)
    if measures_at_mask(score):
        return asked(score, model, scope, at=mask, **given)
    with pruned_to(mask, scope.parameters(model)):
        return {name: values.clone() for name, values in asked(score, model, scope, **given).items()}


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
    """The mask that keeps a share `density` of the weights of `model`, chosen by `score`.

    The model itself is not changed: see `Mask.apply_` and `hold`. Of a model that lies in parts on several devices
    (`fully_shard`) the mask is that of the whole model, found without gathering it; every process calls this.

    Args:
        density: share of the scope that is kept, 0 < density <= 1 or "10%", met to the element (with a pattern of
            blocks, as closely as whole ones permit; with N:M at most N/M, which it is if left out).
        sparsity: share removed, instead of density.
        flops: share of the multiplications of the layers in scope, instead of density, in one cut, of single weights,
            over all layers together. Without a score no layer is left empty; with one, kept are the weights with the
            most of it a multiplication, see `core.budget`. Plain magnitudes leave early layers of deep networks empty
            (an untrained ResNet-50 at 0.25), which is raised with the least share that does not (0.8526):
            `keep_at_least` keeps the best weights of each.
        time: latency budget on this machine instead of density: a share of the base's latency, 0 < time <= 1 or "50%",
            or an amount ("5ms"). The mask is compiled, timed and corrected until it meets the budget. If the unpruned
            model meets it once it is compiled, nothing is pruned and a `BudgetWarning` says so. `ticketry.cost.meet`
            does the same and returns all measurements. Goes with what flops goes with, cost and structure.
        base: whose latency a share is of, timed once beside the compiled model: ``eager`` (the model as it runs today),
            ``torch.compile``, ``onnxruntime``, ``openvino``, or ``engine`` (compiled by ticketry without pruning).
        bytes: share of the dense model file that `Compiled.save` writes, or an amount ("2MB"), instead of density.
        example_inputs: of a call: flops, time and bytes need them, and a pattern of weights that no layer of torch's
            holds, such as stacked experts: from the call is seen which dimension has their inputs.
        cost: of time and bytes: what the model costs, by `ticketry.cost.model`; measured now if left out.
        structure: of time: ``auto`` chooses for each layer among single weights and groups of rows; ``weights`` or
            ``rows:16`` (of any size) is one granularity for all; ``channels`` removes whole channels; ``none`` keeps
            the single weights with the most score for their time. By default ``auto``, ``weights`` and ``channels``
            are each met by measurement, and the one that retains most importance is returned. With a score the default
            is ``none``, with costs or ``within`` it is ``weights``.
        score: a name of `ticketry.score`, or a function of that form; magnitude by default. With a structure, and of a
            time, the default is `kfac` if there are batches and a loss, and what the outputs change by without each
            weight if not; so it is of flops.
        scope: the parameters to choose among; by default `ticketry.scope(model)`, or those of `within`.
        distribution, within, half_rate, collapse, keep_at_least: see `allocate`. A score with the option `at` (those
            that need data, and synflow) measures the network that `within` leaves.
        pattern: what is kept or removed together: ``unstructured``, ``4x1``, ``16x1``, ``channel``, ``2:4`` …, see
            `core.pattern.Pattern`. Blocks are chosen by the mean score of their weights.
        iterations: cuts on the way, each by the scores of the network that the one before leaves, on the same batches.
        schedule: densities on the way, exponential or halving: see `iterate.densities`.
        regrow: whether weights removed on the way may return (FORCE; de Jorge et al. 2021), or only those still kept
            are candidates.
        batches, loss, seed: what the score needs, if it needs any (magnitude, the default, does not). Several
            iterations, and scores with second derivatives, keep the batches in memory.

    Raises:
        UsageError: for a request that cannot be meant, a score that lacks batches or loss, or these beside a density
            and no score. With N:M several iterations must begin at N/M or below. Of a model in parts only magnitude,
            unstructured, in one cut.
        ScoreError: if the scores say nothing, or are not real numbers in the shapes of the parameters in scope.
        LayerCollapseError: if a layer would be left empty, on the way or at the end.
        MaskError: if `within` does not fit the model, or keeps fewer weights than are asked for.
        ScopeError: see `ticketry.scope`.
        StructureError: for a pattern, if it is unknown where a weight has its inputs: see `ticketry.structure.layouts`.
        CostError, EngineError, MissingExtraError: of time and bytes, see `ticketry.cost.model`.

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
    put_back(model)
    if scope is None:
        scope = scope_of(model) if within is None else scope_of_shapes(model, within.shapes)
    function = get(score or magnitude)
    if regrow and not measures_at_mask(function):
        raise UsageError(
            "regrow needs a score that tells what removed weights would be worth, by the option `at`: such as snip,"
            " taylor, fisher, crop, grasp or synflow"
        )
    pattern = Pattern.parse(pattern)
    if base != EAGER and time is None:
        raise UsageError(f"base={base!r} says what a share of the latency is of: give time= too, or leave base out")
    asked = {"flops": flops, "time": time, "bytes": bytes}
    if given := [(name, amount) for name, amount in asked.items() if amount is not None]:
        name, amount = given[0]
        others = {
            **{other: True for other, _ in given[1:]},
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
            _refuse_costs(cost, structure)
        if name == "time":
            by = structure_of_time(structure, score, cost, within)
        else:
            by = structure or NONE if name == "bytes" else structure_by_default(structure, score)
        find = budget_scores(score, model, scope, within, ScoreInputs(batches, loss, seed), by, example_inputs)
        if name == "flops":
            return _to_multiplications(model, scope, amount, example_inputs, find, by, within, keep_at_least)
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
        return METERS.get("engine")(request)
    _refuse_costs(cost, structure)
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
    if any_spread(scope.parameters(model)):
        _require_spread(model, function, pattern, iterations)
        return largest_magnitudes(
            scope.parameters(model),
            wanted,
            distribution=distribution,
            within=within,
            half_rate=half_rate,
            collapse=collapse,
            keep_at_least=keep_at_least,
        )
    # A mask that has the density already, but for the rounding to whole weights, is one to go on from.
    initial = max(within.density, wanted) if within is not None and iterations > 1 else 1.0
    known = None if pattern.unstructured else layouts(model, scope, example_inputs)
    least = max(check_at_least(keep_at_least), 1 if check_collapse(collapse) == "keep" else 0)
    check_least_of(scope.shapes, wanted, least, pattern=pattern, layouts=known, within=within)
    inputs = ScoreInputs(batches, loss, seed)
    if iterations > 1:
        inputs = kept_batches(inputs, model)
    mask = within
    for target in densities(wanted, iterations, schedule, initial=initial):
        # The first time, a score without `at` sees the model as the caller gave it.
        seen = None if mask is within and not measures_at_mask(function) else mask
        scores = scores_in(function, model, scope, seen, inputs)
        with on_the_way(target, wanted):
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


def _to_multiplications(
    model: nn.Module,
    scope: Scope,
    amount: float | str,
    example_inputs: Any,
    find: Callable[[], dict[str, Tensor]],
    structure: str,
    within: Mask | None,
    keep_at_least: int,
) -> Mask:
    """The mask of a share of the multiplications; what cannot be is told before anything is scored."""
    share, prices, least = checked_flops(amount), uses(model, scope, example_inputs), check_at_least(keep_at_least)
    check_multiplications(scope.shapes, prices, share, within=within, least=least)
    allocated = allocate_worth if in_blocks(structure) else allocate_multiplications
    return allocated(find(), prices, share, within=within, keep_at_least=least)


def _refuse_costs(cost: CostModel | None, structure: str | None) -> None:
    """Raises `UsageError` for options of a time where none is asked for."""
    if cost is not None or structure not in (None, NONE):
        raise UsageError("cost and structure are for time and bytes: leave them out")


def _require_spread(model: nn.Module, score: Score, pattern: Pattern, iterations: int) -> None:
    """Raises `UsageError` for what is not done to a model that lies in parts on several devices."""
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
        f"the parameters of {type(model).__name__} lie in parts on several devices (fully_shard), and {wrong} not"
        " supported there: prune before fully_shard, when the model is whole, and hold that mask"
    )
