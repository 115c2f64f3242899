"""Masks that remove whole coupled channels, to reach a density or to meet a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from ticketry.budgets.allocation import parse_flops_share
from ticketry.budgets.request import Request, score_finder
from ticketry.budgets.units import CHANNELS, EAGER, ENGINE
from ticketry.core.mask import Mask
from ticketry.core.model_calls import countable_parameters, multiplications_per_weight
from ticketry.core.prune import densities, name_final_target_in_errors
from ticketry.core.scope import Patterns, Scope, to_name_tuple
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs
from ticketry.core.score.measurement import cache_batches
from ticketry.core.structure.channel_choice import (
    ChannelChoice,
    ChannelOptions,
    ChannelOrder,
    ChannelPath,
    explain_out_of_scope,
)
from ticketry.core.structure.channel_scores import check_channel_score
from ticketry.core.structure.coupling import ChannelGroup, Structure
from ticketry.core.structure.model_copies import Inputs
from ticketry.core.structure.pattern import check_density
from ticketry.core.structure.removal_trial import tried_structure
from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.entry_points import entry_point


def channels_within_budget(
    model: nn.Module,
    example_inputs: Any,
    unit: str,
    amount: float | str,
    *,
    base: str,
    score: str | Score | None,
    scope: Scope,
    within: Mask | None,
    inputs: ScoreInputs,
    options: ChannelOptions,
) -> Mask:
    """Return the mask of whole channels that meets a budget.

    Args:
        unit: what is limited: ``time``, ``bytes`` or ``flops``.
        amount: the budget: a fraction of the unpruned model's cost (for time, of the latency of `base`), or an absolute
            amount.
        score: score of weights or channels; by default the change of the loss if there is a loss, else of the outputs.
    """

    def weight_importance() -> dict[str, Tensor]:
        if options.scores is not None:
            return {}
        return score_finder(None, model, scope, within, inputs, CHANNELS, example_inputs)()

    if score is not None:

        def score_channels(choice: ChannelChoice) -> list[Tensor]:
            return choice.score_channels(within, inputs, score=score, reduce="sum")

        options = ChannelOptions(options.order, options.spare, options.known, score_channels)
    if unit == "flops":
        share, parameters = parse_flops_share(amount), scope.parameters(model)
        counted = {name: parameters[name] for name in countable_parameters(model, scope)}
        prices = multiplications_per_weight(model, counted, example_inputs)
        assert options.known is not None
        choice = ChannelChoice(model, options.known(), scope)
        if within is not None:
            choice.check_whole_channel_mask(within)
        scores = options.scores(choice) if options.scores else choice.sum_weight_scores(weight_importance())
        path = ChannelPath(choice, scores, prices, options.order, within)
        return path.mask(path.first_step_within(share * path.dense))
    from ticketry.budgets.latency import mask_for_budget

    request = Request(
        model=model,
        example_inputs=example_inputs,
        scope=scope,
        unit="seconds" if unit == "time" else "bytes",
        amount=amount,
        scores=weight_importance,
        structure=CHANNELS,
        within=within,
        base=base if unit == "time" else ENGINE,
        channels=options,
    )
    return mask_for_budget(request)


@entry_point()
def channel_groups(
    model: nn.Module, example_inputs: Inputs, *, spare: Patterns = (), scope: Scope | None = None
) -> tuple[ChannelGroup, ...]:
    """Return all groups of coupled channels of `model`, each with a reason if its channels cannot be removed.

    A copy of the model runs on the example inputs, while every index of every parameter is traced through all
    operations: additions, concatenations, flattening, grouped convolutions, norms, attention, recurrent layers. Then
    half the channels of each group are removed as a trial. A group is not prunable if the trial breaks the model or
    changes its outputs, or if a weight outside of the scope produces the channels. The function `channels` removes
    channels of exactly the prunable groups.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them; two examples or more.
        spare: names or patterns (``blocks.3``, ``*.router``) of modules that are not traced, for modules whose control
            flow depends on activations. All channels that enter or leave these modules are retained.
        scope: the weights that `channels` may prune, by default `ticketry.scope(model)`.

    Raises:
        ScopeError: if the model has no scope, see `ticketry.scope`.
        UsageError: if a pattern of `spare` matches no module.
        StructureError: if the model does not run on the inputs, or the control flow of a module depends on activations.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3))
        >>> for group in tk.structure.channel_groups(model, torch.randn(2, 3, 8, 8)):
        ...     print(group.name, group.size, group.prunable, group.reason)
        0 16 True
        0 (inputs) 3 False it meets a width that stays, as that of inputs (in 0)
        3 8 False it is an output of the model
    """
    structure = tried_structure(model, example_inputs, spare)
    known = scope_of(model) if scope is None else scope
    why = {
        i: group.reason or explain_out_of_scope(group, structure.roles, known)
        for i, group in enumerate(structure.groups)
    }
    return structure.staying(why).groups


@entry_point()
def channels(
    model: nn.Module,
    example_inputs: Inputs | Callable[[], Structure],
    density: float | str | None = None,
    *,
    sparsity: float | str | None = None,
    time: float | str | None = None,
    base: str = EAGER,
    flops: float | str | None = None,
    bytes: float | str | None = None,
    score: str | Score | None = None,
    reduce: str = "mean",
    distribution: str = "global",
    scope: Scope | None = None,
    within: Mask | None = None,
    keep_at_least: int = 1,
    multiple: int = 1,
    iterations: int = 1,
    schedule: str = "exponential",
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    spare: Patterns = (),
) -> Mask:
    """Return a mask that removes whole coupled channels, which `shrink` can take out of the model.

    The mask contains the weights in scope and all other parameters with entries for channels (biases, norm scales and
    shifts). A channel is removed from all these parameters and from the weights of all later layers that read it, so
    that it is exactly 0 everywhere. The density refers to all tensors in the mask, and is met as closely as whole
    channels permit.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them. Or a function without
            arguments that returns the model's `Structure`; finding the structure takes most of the time.
        density: fraction retained, 0 < density <= 1, or "10%".
        sparsity: fraction removed, instead of density.
        time: latency budget on this machine, instead of density: a fraction of the latency of `base` (0.5, "50%") or an
            amount ("5ms"). The masked model is compiled and timed, and the mask corrected, until the budget is met. If
            the compiled unpruned model meets the budget, no channel is removed and a `BudgetWarning` says so.
        base: the implementation whose latency `time` is a fraction of: ``eager``, ``torch.compile``, ``onnxruntime``,
            ``openvino`` or ``engine``.
        flops: largest fraction of the MACs of the layers in scope, instead of density.
        bytes: largest size of the model file that `Compiled.save` writes, instead of density: a fraction of the
            unpruned model's file, or an amount ("2MB"). For all three budgets, the channels with the lowest importance
            per cost saved are removed.
        score: ``l1``, ``l2`` (norm of a channel's weights, in all layers that share it), ``slimming`` (|scale| of its
            norms; Liu et al. 2017), ``taylor`` (sum of |w dL/dw|; Molchanov et al. 2019), ``snap`` (|dL/dc| of a gate
            c = 1 on the channel; Verdenius et al. 2020), ``crop_gates`` (change of gradient flow by such a gate;
            Rachwan et al. 2022), ``activation``, ``activation_l2`` (mean |value|, root mean square of the inputs of
            later layers), ``apoz`` (fraction of these inputs that are not 0; Hu et al. 2016), or any score of weights,
            by name or as a function, summed over each channel. The prefixes ``inverted:`` and ``shuffled:`` negate or
            permute the scores within groups, as controls. By default ``l1``, or under a budget the importance used by
            `prune`: change of the loss, or of the outputs without a loss.
        reduce: whether a channel's score is the ``mean`` or the ``sum`` over its weights. Scores by gates (``snap``,
            ``crop_gates``) and activations ignore it.
        distribution: ``global``: one ranking of all channels; ``uniform``: each group retains the same fraction.
        scope: weights that may be pruned, by default `ticketry.scope(model)`. Channels that are produced by a layer
            outside of the scope are retained.
        within: a mask of whole channels to continue from. The channels that it removes stay removed, and count as
            removed. Scores are measured in the network pruned by this mask. If the mask has the density already, it is
            returned unchanged.
        keep_at_least: smallest number of channels that each group retains.
        multiple: channels are removed in blocks, so that each group that loses channels retains a multiple of this
            number. Processors compute in blocks too: with 16, a step in bf16 saves nearly as much time as FLOPs.
        iterations: number of pruning steps. Each step uses scores of the network that the previous step left, on the
            same batches.
        schedule: densities after the steps, exponential or halving, see `prune.densities`.
        batches, loss, seed: inputs of the score, if the score needs any. Gradients are computed as in `ticketry.score`:
            in evaluation mode, but with batch statistics in norms.
        spare: modules that are not traced, see `channel_groups`.

    Raises:
        UsageError: for a density outside (0, 1], an unknown score or option.
        MaskError: if `within` is not a mask of whole channels of this model.
        ScoreError: if the scores are not finite or all 0, or an operation lacks the derivatives that they need.
        StructureError: if the model cannot be traced or has no channels that can be removed.
        LayerCollapseError: if the density cannot be reached with `keep_at_least` channels in each group, before
            anything is scored.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = tk.structure.channels(model, torch.randn(2, 4), density=0.5)
        >>> mask["0.weight"].any(dim=1).sum(), mask["0.bias"].sum()
        (tensor(4), tensor(4))
        >>> mask.kept, mask.total
        (28, 56)
    """
    order = ChannelOrder(distribution, keep_at_least, multiple)
    if score is not None:
        check_channel_score(score)
    given = {"time": time, "flops": flops, "bytes": bytes, "density": density, "sparsity": sparsity}
    amounts = {name: amount for name, amount in given.items() if amount is not None}
    if base != EAGER and time is None:
        raise UsageError(f"base={base!r} says what a share of the latency is of: give time= too, or leave base out")
    budget = next(((name, amount) for name, amount in amounts.items() if name not in ("density", "sparsity")), None)
    if budget:
        if len(amounts) > 1:
            raise UsageError(f"give one of density, sparsity, time, flops and bytes, not {' and '.join(amounts)}")
        if callable(example_inputs) or iterations > 1 or distribution != "global":
            raise UsageError(
                f"{budget[0]} is met in one cut by one ranking of all channels, for a call with example inputs: leave"
                " iterations and distribution out, and give inputs"
            )
        return channels_within_budget(
            model,
            example_inputs,
            *budget,
            base=base,
            score=score,
            scope=scope_of(model) if scope is None else scope,
            within=within,
            inputs=ScoreInputs(batches, loss, seed),
            options=ChannelOptions(order, to_name_tuple(spare), partial(tried_structure, model, example_inputs, spare)),
        )
    wanted, score = check_density(density, sparsity), score or "l1"
    known = example_inputs() if callable(example_inputs) else tried_structure(model, example_inputs, spare)
    choice = ChannelChoice(model, known, scope_of(model) if scope is None else scope)
    if within is not None:
        choice.check_whole_channel_mask(within)
    choice.check_reachable(within, wanted, order)
    initial = 1.0 if within is None else max(within.density, wanted)
    inputs = ScoreInputs(batches, loss, seed)
    if iterations > 1:
        inputs = cache_batches(inputs, model)
    mask = within
    for target in densities(wanted, iterations, schedule, initial=initial):
        scores = choice.score_channels(mask, inputs, score=score, reduce=reduce)
        with name_final_target_in_errors(target, wanted):
            mask = choice.prune_to_density(scores, mask, target, order)
    assert mask is not None
    return mask


def check_channel_density(
    model: nn.Module, structure: Structure, density: float, *, scope: Scope, keep_at_least: int = 1, multiple: int = 1
) -> None:
    """Raise `LayerCollapseError` if no choice of channels to remove can reach the density.

    Each group must retain `keep_at_least` channels, and a group that loses channels a multiple of `multiple`.
    """
    order = ChannelOrder("global", keep_at_least, multiple)
    ChannelChoice(model, structure, scope).check_reachable(None, check_density(density), order)


def prune_channels_by_scores(
    model: nn.Module,
    structure: Structure,
    scores: Sequence[Tensor],
    density: float,
    *,
    scope: Scope | None = None,
    keep_at_least: int = 1,
    multiple: int = 1,
) -> Mask:
    """Return a mask that removes the channels with the lowest scores until the density is met.

    `scores` contains, for each channel group that can be removed in `scope`, the score of each channel. For the other
    arguments see `channels`.
    """
    order = ChannelOrder("global", keep_at_least, multiple)
    choice = ChannelChoice(model, structure, scope_of(model) if scope is None else scope)
    if (wanted := [group.size for group in choice.groups]) != [len(values) for values in scores]:
        raise MaskError(f"scores are of {[len(values) for values in scores]} channels, and the groups have {wanted}")
    choice.check_no_nan(scores)
    return choice.prune_to_density(list(scores), None, check_density(density), order)
