"""Scores of channels, then whole channels up to a density: a structured mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from torch import Tensor, nn

from ticketry.core.costs.bases import EAGER
from ticketry.core.mask import Mask
from ticketry.core.pattern import check_density
from ticketry.core.prune import densities, while_pruning_to
from ticketry.core.scope import Patterns, Scope, as_names
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, ScoreInputs
from ticketry.core.score._measure import kept_batches
from ticketry.core.structure.channel_wise.choice import Choice, out_of_scope
from ticketry.core.structure.channel_wise.path import ChannelOptions
from ticketry.core.structure.channel_wise.ranking import ChannelOrder
from ticketry.core.structure.channel_wise.scores import check_channel_score
from ticketry.core.structure.channel_wise.under_budget import channels_for, check_budget
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Structure
from ticketry.core.structure.dependencies.model_copies import Inputs
from ticketry.core.structure.shrinking.removal_trial import tried_structure
from ticketry.errors import MaskError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def channel_groups(
    model: nn.Module, example_inputs: Inputs, *, spare: Patterns = (), scope: Scope | None = None
) -> tuple[ChannelGroup, ...]:
    """All groups of coupled channels of `model`, those that can be removed and those that stay, with the reason.

    A copy runs on the example inputs while every index of every parameter is followed through each operation:
    additions, concatenations, flattening, grouped convolutions, norms, attention, recurrent layers. Then some channels
    of each group are removed on trial: a group whose removal breaks the model, or makes its outputs other than the
    masked model's, stays. So does one that a weight out of scope makes: `channels` removes the groups that are
    prunable here, and no others.

    Args:
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them; two examples or more.
        spare: names or patterns (``blocks.3``, ``*.router``) of modules that are not looked into: all channels that
            enter or leave them stay. For modules that decide by their activations what to run.
        scope: the weights that `channels` is to choose among, by default `ticketry.scope(model)`.

    Raises:
        ScopeError: if the model has no scope, see `ticketry.scope`.
        UsageError: if a name to spare is that of no module.
        StructureError: if the model does not run on them, or a module looks at its activations to decide what to run:
            says which.

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
    why = {i: group.reason or out_of_scope(group, structure.roles, known) for i, group in enumerate(structure.groups)}
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
    """A mask of whole coupled channels, which `shrink` can take out.

    The mask is of the weights in scope and of all other parameters that channels share (biases, norm scales and
    shifts). Of a removed channel all of them go, and the weights of every layer behind it that reads it, so that it is
    exactly 0 everywhere. Its density is the fraction kept of all these tensors, and is met as closely as whole
    channels, the worst first, permit.

    Args:
        example_inputs: a tensor, a tuple of the model's arguments, or a dictionary of them; or, where the model's
            structure is known, a function that gives it (finding it takes most of the time).
        density: fraction kept, 0 < density <= 1, or "10%".
        sparsity: share removed, instead of density.
        time: latency budget on this machine instead of density: a share of the base's latency (0.5, "50%") or an amount
            ("5ms"). The masked model is compiled and timed, and corrected until it meets the budget. If the unpruned
            model meets it once compiled, no channel goes and a `BudgetWarning` says so.
        base: whose latency a share is of: ``eager``, ``torch.compile``, ``onnxruntime``, ``openvino`` or ``engine``.
        flops: share of the multiplications of the layers in scope, instead of density; at most that is kept.
        bytes: share of the model file that `Compiled.save` writes, or an amount ("2MB"), instead of density. Under
            these budgets channels go by importance per cost that their removal saves.
        score: ``l1``, ``l2`` (norm of a channel's weights, in all layers that share it), ``slimming`` (|scale| of its
            norms; Liu et al. 2017), ``taylor`` (sum of |w dL/dw|; Molchanov et al. 2019), ``snap`` (|dL/dc| of a gate
            c = 1 on the channel; Verdenius et al. 2020), ``crop_gates`` (change of gradient flow by such a gate;
            Rachwan et al. 2022), ``activation``, ``activation_l2`` (mean |value|, root mean square of what the layers
            behind read), ``apoz`` (share of those values that are not 0; Hu et al. 2016), or any score of weights, by
            name or as a function, of which each channel gets the sum. ``inverted:`` or ``shuffled:`` before a name turn
            the scores of channels around, or put those of a group in random places of it: controls. By default ``l1``,
            or under a budget the importance of `prune`: change of the loss, or without one of the outputs.
        reduce: ``mean`` over a channel's weights, or their ``sum``. What is removed is worth the sum but frees as many
            weights as it has: the mean is the worth of each. Gates and activations have no use for it.
        distribution: ``global``: one ranking of all channels; ``uniform``: each group keeps the same share of its own.
        scope: the weights to choose among, by default `ticketry.scope(model)`. Channels that a layer out of scope
            makes all stay.
        within: such a mask to go on from: what it removes stays removed (and counts), scores are of the network that it
            leaves. Where it already has the density, or less, nothing more goes.
        keep_at_least: channels that each group keeps whatever the scores.
        multiple: channels go in blocks, so that each group that loses any keeps a multiple of this number. Processors
            compute in blocks too: with 16 a step in bf16 is nearly as much faster as its FLOPs are fewer.
        iterations: cuts on the way, each by the scores of the network that the one before leaves, on the same batches.
        schedule: densities on the way, exponential or halving: see `iterate.densities`.
        batches, loss, seed: what the score needs, if it needs any. Gradients are taken as in `ticketry.score`: in
            evaluation mode, but with norms that use the batch's statistics.
        spare: modules that are not looked into, see `channel_groups`.

    Raises:
        UsageError: for a density outside (0, 1], an unknown score or option.
        MaskError: if `within` is no such mask.
        ScoreError: if the scores are not finite or all 0, or an operation lacks the derivatives that they need.
        StructureError: if the model cannot be followed or has no channels that can be removed.
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
    if budget := check_budget({"time": time, "flops": flops, "bytes": bytes}, base, density, sparsity):
        if callable(example_inputs) or iterations > 1 or distribution != "global":
            raise UsageError(
                f"{budget[0]} is met in one cut by one ranking of all channels, for a call with example inputs: leave"
                " iterations and distribution out, and give inputs"
            )
        return channels_for(
            model,
            example_inputs,
            *budget,
            base=base,
            score=score,
            scope=scope_of(model) if scope is None else scope,
            within=within,
            inputs=ScoreInputs(batches, loss, seed),
            options=ChannelOptions(order, as_names(spare), partial(tried_structure, model, example_inputs, spare)),
        )
    wanted, score = check_density(density, sparsity), score or "l1"
    known = example_inputs() if callable(example_inputs) else tried_structure(model, example_inputs, spare)
    choice = Choice(model, known, scope_of(model) if scope is None else scope)
    if within is not None:
        choice.check_within(within)
    choice.check_reachable(within, wanted, order)
    initial = 1.0 if within is None else max(within.density, wanted)
    inputs = ScoreInputs(batches, loss, seed)
    if iterations > 1:
        inputs = kept_batches(inputs, model)
    mask = within
    for target in densities(wanted, iterations, schedule, initial=initial):
        scores = choice.scores(mask, inputs, score=score, reduce=reduce)
        with while_pruning_to(target, wanted):
            mask = choice.cut(scores, mask, target, order)
    assert mask is not None
    return mask


def check_channels(
    model: nn.Module,
    structure: Structure,
    density: float,
    *,
    scope: Scope,
    keep_at_least: int = 1,
    multiple: int = 1,
) -> None:
    """Make sure that `channels` can reach a density whatever the scores are; raises what it does if not."""
    order = ChannelOrder("global", keep_at_least, multiple)
    Choice(model, structure, scope).check_reachable(None, check_density(density), order)


def cut_channels(
    model: nn.Module,
    structure: Structure,
    scores: Sequence[Tensor],
    density: float,
    *,
    scope: Scope | None = None,
    keep_at_least: int = 1,
    multiple: int = 1,
) -> Mask:
    """`channels` by scores that are there, one tensor [channels] for each of the groups that may go (`candidates`)."""
    order = ChannelOrder("global", keep_at_least, multiple)
    choice = Choice(model, structure, scope_of(model) if scope is None else scope)
    if (wanted := [group.size for group in choice.groups]) != [len(values) for values in scores]:
        raise MaskError(f"scores are of {[len(values) for values in scores]} channels, and the groups have {wanted}")
    choice.check_numbers(scores)
    return choice.cut(list(scores), None, check_density(density), order)
