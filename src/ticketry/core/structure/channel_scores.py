"""Scores of channels, computed from weights, norms, gradients, or the activations that later layers read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from ticketry.choices import list_choices
from ticketry.core.computed_weights import effective_weights
from ticketry.core.scope import Scope, is_transposed_linear, named_parameters, unwrapped
from ticketry.core.score import CONTROLS, About, Score, ScoreInputs, get, measurement, names, split_control
from ticketry.core.score.protocol import evaluate_partial_score
from ticketry.core.structure.coupling import ChannelGroup, Member
from ticketry.core.structure.layout import Roles, iterate_layer_parameters
from ticketry.core.structure.model_copies import traceable_operations
from ticketry.errors import UsageError
from ticketry_engine.support.seeds import generator

_INPUT_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": torch.abs,
    "activation_l2": torch.square,
    "apoz": lambda inputs: inputs != 0,
}
"""Name of a score -> function of a layer's inputs; the score of a channel is the mean of its values."""

ACTIVATION_SCORES = tuple(_INPUT_STATISTICS)


def activation_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], scope: Scope, roles: Roles, inputs: ScoreInputs, *, score: str
) -> list[Tensor]:
    """Return, for each group, scores of its channels from the inputs of the layers that read them: float64 [channels].

    At these inputs a channel has passed its norm, nonlinearity, pooling and shortcut. The score ``activation`` is the
    mean |input| over all examples, positions and layers that read the channel; ``activation_l2`` is the root mean
    square. ``apoz`` is the fraction of inputs that are not 0, that is, one minus the average percentage of zeros (Hu,
    Peng, Tai & Tang, "Network Trimming", 2016, arXiv 1607.03250). The paper counts zeros directly after the ReLU,
    before pooling.

    The model runs in evaluation mode, but with batch statistics in norms, see `ticketry.score`. Modes, buffers and
    random state are restored. No gradient is computed: `loss(model, batch)` only runs the model.
    """
    data, run = measurement.require_data(score, inputs.batches, inputs.loss)
    inner = unwrapped(model)
    names = {id(parameter): name for name, parameter in named_parameters(inner).items()}
    wanted = {member.name for group in groups for member in group.within(roles.inputs)}
    readers = [
        _InputStatistics(names[id(parameter)], module, local)
        for module in inner.modules()
        for local, parameter in iterate_layer_parameters(module)
        if names.get(id(parameter)) in wanted and _multiplies_input(module, local)
    ]
    count = 0
    with ExitStack() as stack:
        stack.enter_context(traceable_operations())  # a fused transformer layer does not call its parts
        stack.enter_context(measurement.prepare_for_measurement(model, scope, seed=inputs.seed))
        stack.enter_context(torch.no_grad())
        for reader in readers:
            hook = reader.module.register_forward_pre_hook(reader.create_hook(score), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in data:
            run(model, batch)
            count += 1
    if not count:
        raise measurement.no_batch_error()
    seen: dict[str, list[Tensor]] = {}
    for reader in readers:
        if reader.entries:
            seen.setdefault(reader.name, []).append(reader.mean())
    if score == "apoz" and all(bool((value == 1).all()) for values in seen.values() for value in values):
        raise UsageError("score 'apoz' counts zeros, and no input of any layer is 0: it is for networks with ReLU")
    return [_score_channels_of_group(group, seen, roles, score) for group in groups]


def _score_channels_of_group(
    group: ChannelGroup, seen: Mapping[str, Sequence[Tensor]], roles: Roles, score: str
) -> Tensor:
    read = group.within(roles.inputs)
    found = [value[torch.tensor(member.indices)].mean(1) for member in read for value in seen.get(member.name, ())]
    if not found:
        raise UsageError(
            f"score {score!r} looks at what linear, convolution and recurrent layers read, and none reads the channels"
            f" of {group.name}: leave it out with scope(model, spare=...), or choose another score"
        )
    mean = torch.stack(found).mean(0)
    return mean.sqrt() if score == "activation_l2" else mean


# -- inputs of layers --------------------------------------------------------------------------------------------------


def _multiplies_input(module: nn.Module, local: str) -> bool:
    """Return whether a module multiplies its input by the weight that is its attribute `local`."""
    if isinstance(module, nn.RNNBase):
        return local.startswith("weight_ih_l0")
    return local == "weight" and (isinstance(module, (nn.Linear, _ConvNd)) or is_transposed_linear(module))


class _InputStatistics:
    """Sums a function of a module's inputs, separately for each index of the weight's input dimension."""

    def __init__(self, name: str, module: nn.Module, local: str) -> None:
        self.name, self.module, self.local = name, module, local
        self.total: Tensor | float = 0.0
        self.entries = 0
        """Number of inputs that were summed for each index so far."""

    def create_hook(self, score: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def add_inputs(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            inputs = (inputs.data if isinstance(inputs, PackedSequence) else inputs).detach()
            dim = inputs.dim() - 1
            if isinstance(module, _ConvNd):
                dim -= len(module.kernel_size)
            values = _INPUT_STATISTICS[score](inputs.to(torch.promote_types(inputs.dtype, torch.float32)))
            others = [other for other in range(inputs.dim()) if other != dim]
            summed = values.sum(others, dtype=torch.float64) if others else values.double()
            self.total = self.total + summed.cpu()
            self.entries += inputs.numel() // max(inputs.shape[dim], 1)

        return add_inputs

    def mean(self) -> Tensor:
        """Return the mean over the inputs, for each index of the weight's input dimension, as float64."""
        assert isinstance(self.total, Tensor)
        mean, module = self.total / self.entries, self.module
        if isinstance(module, _ConvNd) and module.groups > 1 and not module.transposed:
            if module.groups == module.in_channels:  # depthwise: dimension 0 is outputs and inputs
                return mean.repeat_interleave(module.out_channels // module.groups)
            return mean.view(module.groups, -1).mean(0)
        return mean


CHANNEL_SCORES = ("l1", "l2", "slimming", "taylor", "snap", "crop_gates", *ACTIVATION_SCORES)
"""Names of the scores of channels; any score of weights (`ticketry.score`) can be used as well."""

REDUCTIONS = ("mean", "sum")


def check_channel_score(score: str | Score, more: Sequence[str] = ()) -> None:
    """Raise `UsageError` if `score` is neither a known score of channels nor among the names in `more`."""
    if not isinstance(score, str):
        return
    plain, known = split_control(score)[1], tuple(dict.fromkeys((*more, *CHANNEL_SCORES, *names())))
    if plain in known:
        return
    owner, _, word = plain.partition(":")
    if word in known:
        raise UsageError(f"{owner!r} is no control of a score: {list_choices(owner, CONTROLS)}")
    if word:
        get(plain)  # user-defined
        return
    raise UsageError(
        f"score {score!r} is not known: {list_choices(plain, known)}; or a control of one, such as inverted:l1 or"
        " shuffled:l1; or a function as in ticketry.score"
    )


def channel_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scope: Scope,
    roles: Roles,
    inputs: ScoreInputs,
    *,
    score: str | Score,
    reduce: str,
) -> list[Tensor]:
    """Return, for each group, the scores of its channels: float64 [channels]; the higher, the more important.

    `roles` says which dimensions of weights compute and read channels. `reduce` says whether the score of a channel
    is the ``mean`` or the ``sum`` over its weights.
    """
    if reduce not in REDUCTIONS:
        raise UsageError(f"reduce is {' or '.join(REDUCTIONS)}, not {reduce!r}")
    check_channel_score(score)
    control, plain = split_control(score) if isinstance(score, str) else ("", score)
    if plain == "slimming":
        parameters = named_parameters(model)
        scales = {name: parameters[name].detach().abs() for name in roles.scales}
        found = [_slimming_scores(scales, group, reduce) for group in groups]
    elif isinstance(plain, str) and plain in ACTIVATION_SCORES:
        found = activation_scores(model, groups, scope, roles, inputs, score=plain)
    elif plain in ("snap", "crop_gates"):
        read = [_find_reading_weights(group, roles) for group in groups]
        names = {member.name for members in read for member in members}
        effects = _channel_gate_terms(model, scope, plain, inputs, also=names, second=plain == "crop_gates")
        found = [sum_over_channels(effects, members).abs() for members in read]
    else:
        values = weight_scores(model, scope, plain, inputs)
        found = [_reduce_to_channels(values, group, reduce, root=plain == "l2") for group in groups]
    return apply_control_to_scores(control, found, inputs.seed)


def apply_control_to_scores(control: str, scores: list[Tensor], seed: int) -> list[Tensor]:
    """Return scores as modified by a control, which is "inverted", "shuffled" or "" (no change).

    "inverted" negates the scores; "shuffled" permutes them within each group.
    """
    if control == "inverted":
        return [-values for values in scores]
    if control == "shuffled":
        orders = [torch.randperm(len(v), generator=generator(seed, "shuffled score", i)) for i, v in enumerate(scores)]
        return [values[order] for values, order in zip(scores, orders, strict=True)]
    return scores


def weight_scores(model: nn.Module, scope: Scope, score: str | Score, inputs: ScoreInputs) -> Mapping[str, Tensor]:
    """Return the score of each weight in scope, by parameter name; a channel's score is the sum of these."""
    if score in ("l1", "l2"):
        power = torch.abs if score == "l1" else torch.square
        return {
            name: power(weight.double()) for name, weight in effective_weights(model, scope.parameters(model)).items()
        }
    if score == "taylor":
        return {name: effect.abs() for name, effect in _channel_gate_terms(model, scope, score, inputs).items()}
    return evaluate_partial_score(get(score), model, scope, **vars(inputs))


def _reduce_to_channels(values: Mapping[str, Tensor], group: ChannelGroup, reduce: str, root: bool) -> Tensor:
    members = [member for member in group.parameters if member.name in values]
    total = sum_over_channels(values, members)
    if reduce == "mean":
        count = sum(values[m.name].numel() // values[m.name].shape[m.dim] * len(m.indices[0]) for m in members)
        total = total / max(count, 1)
    return total.sqrt() if root else total


def sum_over_channels(values: Mapping[str, Tensor], members: Sequence[Member]) -> Tensor:
    """Return, for each channel, the sum of its `values` over the tensors in `members`: float64 [channels]."""
    total = torch.zeros(())
    for member in members:
        value = values[member.name].detach().cpu().double()
        by_index = value.sum([d for d in range(value.dim()) if d != member.dim]) if value.dim() > 1 else value
        total = total + by_index[torch.tensor(member.indices)].sum(1)
    return total


def _slimming_scores(scales: Mapping[str, Tensor], group: ChannelGroup, reduce: str) -> Tensor:
    """Return the absolute scales of the norms of each channel, summed or averaged (Liu et al. 2017, section 3)."""
    members = [member for member in group.parameters if member.name in scales]
    if not members:
        raise UsageError(
            f"score 'slimming' needs a norm with a scale behind every layer: {group.name} has none;"
            " leave it out with scope(model, spare=...), or choose another score"
        )
    total = sum_over_channels(scales, members)
    return total / sum(len(member.indices[0]) for member in members) if reduce == "mean" else total


# -- gradients --------------------------------------------------------------------------------------------------------


def _find_reading_weights(group: ChannelGroup, roles: Roles) -> list[Member]:
    """Return the weights, in scope or not, of the layers that read the channels of a group."""
    found = group.within(roles.inputs)
    if not found:
        raise UsageError(
            f"scores by gates need a layer that reads each channel: {group.name} has none; leave it out with"
            " scope(model, spare=...), or choose another score"
        )
    return found


def _channel_gate_terms(
    model: nn.Module, scope: Scope, score: str, inputs: ScoreInputs, *, also: Collection[str] = (), second: bool = False
) -> dict[str, Tensor]:
    """Return w g for each weight w, where g is the gradient of the mean loss; or, with `second`, g² + w (H g).

    A gate c = 1 on a channel scales all weights of later layers that read the channel. So dL/dc is the sum of w g over
    these weights (SNAP; Verdenius et al. 2020). The derivative of the gradient flow z = <stopgrad(g), g> by c is the
    sum of g² + w (H g) (structured CroP; Rachwan et al. 2022), where H is the Hessian. No gate has to be added to the
    model. The gradient flow z covers the weights in scope. Weights named in `also` that are outside of the scope
    contribute only w (H g).
    """
    batches, loss = measurement.require_data(score, inputs.batches, inputs.loss)
    shapes = dict(scope.shapes)
    shapes |= {name: tuple(p.shape) for name, p in named_parameters(model).items() if name in also}
    with measurement.prepare_for_measurement(model, Scope(shapes, scope.parameters_total), seed=inputs.seed) as weights:
        batches = list(batches) if second else batches
        gradients = measurement.average_gradients(model, weights, batches, loss)
        if not second:
            found = {name: weight.detach() * gradients[name] for name, weight in weights.items()}
        else:
            flow = {name: g if name in scope else torch.zeros_like(g) for name, g in gradients.items()}
            products = measurement.hessian_gradient_product(score, model, weights, batches, loss, gradient=flow)
            found = {name: flow[name].square() + w.detach() * products[name] for name, w in weights.items()}
    return measurement.check_scores(score, found)


@dataclass(frozen=True)
class ChannelScore:
    """Describes, for lists of scores, a score that exists for channels only."""

    description: str
    """One sentence that says what the score is."""
    about: About


CHANNEL_ONLY = {
    "activation": ChannelScore(
        "Mean of |input| where layers read the channel; needs data.", About("Molchanov et al. 2017", "yes", 0, "only")
    ),
    "activation_l2": ChannelScore(
        "Root of the mean of input² where layers read the channel; needs data.",
        About("Chen et al. 2022", "yes", 0, "only"),
    ),
    "apoz": ChannelScore(
        "Share of a channel's inputs to the layers that read it that are not 0: one less the average percentage of"
        " zeros; needs data.",
        About("Hu et al. 2016", "yes", 0, "only"),
    ),
    "crop_gates": ChannelScore(
        "Effect on the gradient flow of a gate on each channel (structured CroP); needs data.",
        About("Rachwan et al. 2022", "yes", 2, "only"),
    ),
    "l1": ChannelScore("L1 norm of all weights of a channel; needs no data.", About("Li et al. 2017", "no", 0, "only")),
    "l2": ChannelScore("L2 norm of all weights of a channel; needs no data.", About("He et al. 2018", "no", 0, "only")),
    "slimming": ChannelScore(
        "|scale| of the norms that a channel passes (network slimming); needs no data.",
        About("Liu et al. 2017", "no", 0, "only"),
    ),
    "snap": ChannelScore(
        "|dL/dgate| of a gate on each channel (SNAP, structured SNIP); needs data.",
        About("Verdenius et al. 2020", "yes", 1, "only"),
    ),
}
