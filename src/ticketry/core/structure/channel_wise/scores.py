"""How much each channel is worth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ticketry.choices import list_choices
from ticketry.core.computed_weights import weights_in_use
from ticketry.core.layout import Roles
from ticketry.core.scope import Scope, named_parameters
from ticketry.core.score import CONTROLS, About, Score, ScoreInputs, get, names, split_control
from ticketry.core.score._asked import asked_of_some
from ticketry.core.score._measure import average, checked, given, hessian_gradient, measuring
from ticketry.core.structure.channel_wise.activation_scores import ACTIVATION_SCORES, activation_scores
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Member
from ticketry.errors import UsageError
from ticketry_engine.support.seeds import generator

CHANNEL_SCORES = ("l1", "l2", "slimming", "taylor", "snap", "crop_gates", *ACTIVATION_SCORES)
"""Scores of channels; any score of weights (`ticketry.score`) will do as well."""

REDUCTIONS = ("mean", "sum")


def check_channel_score(score: str | Score, more: Sequence[str] = ()) -> None:
    """Raises `UsageError` for a word that is no score of channels; `more` are known besides."""
    if not isinstance(score, str):
        return
    plain, known = split_control(score)[1], tuple(dict.fromkeys((*more, *CHANNEL_SCORES, *names())))
    if plain in known:
        return
    owner, _, word = plain.partition(":")
    if word in known:
        raise UsageError(f"{owner!r} is no control of a score: {list_choices(owner, CONTROLS)}")
    if word:
        get(plain)  # one's own
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
    """For each group a score of each of its channels, float64 [size]; the higher, the more worth keeping."""
    if reduce not in REDUCTIONS:
        raise UsageError(f"reduce is {' or '.join(REDUCTIONS)}, not {reduce!r}")
    check_channel_score(score)
    control, plain = split_control(score) if isinstance(score, str) else ("", score)
    if plain == "slimming":
        parameters = named_parameters(model)
        scales = {name: parameters[name].detach().abs() for name in roles.scales}
        found = [_slimming(scales, group, reduce) for group in groups]
    elif isinstance(plain, str) and plain in ACTIVATION_SCORES:
        found = activation_scores(model, groups, scope, roles, inputs, score=plain)
    elif plain in ("snap", "crop_gates"):
        read = [_consumers(group, roles) for group in groups]
        names = {member.name for members in read for member in members}
        effects = _effects(model, scope, plain, inputs, also=names, second=plain == "crop_gates")
        found = [gathered(effects, members).abs() for members in read]
    else:
        values = weight_scores(model, scope, plain, inputs)
        found = [_reduced(values, group, reduce, root=plain == "l2") for group in groups]
    return controlled(control, found, inputs.seed)


def controlled(control: str, scores: list[Tensor], seed: int) -> list[Tensor]:
    """The scores of each group turned around ("inverted"), in random places of it ("shuffled"), or as they are."""
    if control == "inverted":
        return [-values for values in scores]
    if control == "shuffled":
        orders = [torch.randperm(len(v), generator=generator(seed, "shuffled score", i)) for i, v in enumerate(scores)]
        return [values[order] for values, order in zip(scores, orders, strict=True)]
    return scores


def weight_scores(model: nn.Module, scope: Scope, score: str | Score, inputs: ScoreInputs) -> Mapping[str, Tensor]:
    """A score of every weight in scope, that those of channels are sums of."""
    if score in ("l1", "l2"):
        power = torch.abs if score == "l1" else torch.square
        return {name: power(weight.double()) for name, weight in weights_in_use(model, scope.parameters(model)).items()}
    if score == "taylor":
        return {name: effect.abs() for name, effect in _effects(model, scope, score, inputs).items()}
    return asked_of_some(get(score), model, scope, **vars(inputs))


def _reduced(values: Mapping[str, Tensor], group: ChannelGroup, reduce: str, root: bool) -> Tensor:
    members = [member for member in group.parameters if member.name in values]
    total = gathered(values, members)
    if reduce == "mean":
        count = sum(values[m.name].numel() // values[m.name].shape[m.dim] * len(m.indices[0]) for m in members)
        total = total / max(count, 1)
    return total.sqrt() if root else total


def gathered(values: Mapping[str, Tensor], members: Sequence[Member]) -> Tensor:
    """Sum over all that each channel has in these members, float64 [channels]."""
    total = torch.zeros(())
    for member in members:
        value = values[member.name].detach().cpu().double()
        by_index = value.sum([d for d in range(value.dim()) if d != member.dim]) if value.dim() > 1 else value
        total = total + by_index[torch.tensor(member.indices)].sum(1)
    return total


def _slimming(scales: Mapping[str, Tensor], group: ChannelGroup, reduce: str) -> Tensor:
    """|scale| of the norms that a channel passes (Liu et al. 2017, section 3)."""
    members = [member for member in group.parameters if member.name in scales]
    if not members:
        raise UsageError(
            f"score 'slimming' needs a norm with a scale behind every layer: {group.name} has none;"
            " leave it out with scope(model, spare=...), or choose another score"
        )
    total = gathered(scales, members)
    return total / sum(len(member.indices[0]) for member in members) if reduce == "mean" else total


# -- gradients --------------------------------------------------------------------------------------------------------


def _consumers(group: ChannelGroup, roles: Roles) -> list[Member]:
    """The weights of the layers that read a group, in scope or not."""
    found = group.within(roles.inputs)
    if not found:
        raise UsageError(
            f"scores by gates need a layer that reads each channel: {group.name} has none; leave it out with"
            " scope(model, spare=...), or choose another score"
        )
    return found


def _effects(
    model: nn.Module,
    scope: Scope,
    score: str,
    inputs: ScoreInputs,
    *,
    also: Collection[str] = (),
    second: bool = False,
) -> dict[str, Tensor]:
    """For each weight w, with g the gradient of the mean loss: w g, or (`second`) g² + w (H g).

    A gate c = 1 on what a channel gives to the layers behind it scales all their weights for it. So dL/dc is the sum
    of w g over those (SNAP; Verdenius et al. 2020), and d/dc of z = <stopgrad(g), g> is the sum of g² + w (H g)
    (structured CroP; Rachwan et al. 2022): no gate has to be built in. The gradient flow z is that of the weights in
    scope; a weight outside, for which `also` asks, scales it all the same: w (H g), as no g² of its own is in z.
    """
    batches, loss = given(score, inputs.batches, inputs.loss)
    shapes = dict(scope.shapes)
    shapes |= {name: tuple(p.shape) for name, p in named_parameters(model).items() if name in also}
    with measuring(model, Scope(shapes, scope.parameters_total), seed=inputs.seed) as weights:
        batches = list(batches) if second else batches
        gradients = average(model, weights, batches, loss)
        if not second:
            found = {name: weight.detach() * gradients[name] for name, weight in weights.items()}
        else:
            flow = {name: g if name in scope else torch.zeros_like(g) for name, g in gradients.items()}
            products = hessian_gradient(score, model, weights, batches, loss, gradient=flow)
            found = {name: flow[name].square() + w.detach() * products[name] for name, w in weights.items()}
    return checked(score, found)


@dataclass(frozen=True)
class ChannelScore:
    """What a score of `structure.channels` that is none of single weights says of itself, for lists."""

    description: str
    """One sentence."""
    about: About


def _only(description: str, paper: str, *, data: str = "yes", order: int = 0) -> ChannelScore:
    return ChannelScore(description, About(paper, data, order, "only"))


CHANNEL_ONLY = {
    "activation": _only("Mean of |input| where layers read the channel; needs data.", "Molchanov et al. 2017"),
    "activation_l2": _only("Root of the mean of input² where layers read the channel; needs data.", "Chen et al. 2022"),
    "apoz": _only(
        "Share of a channel's inputs to the layers that read it that are not 0: one less the average percentage of"
        " zeros; needs data.",
        "Hu et al. 2016",
    ),
    "crop_gates": _only(
        "Effect on the gradient flow of a gate on each channel (structured CroP); needs data.",
        "Rachwan et al. 2022",
        order=2,
    ),
    "l1": _only("L1 norm of all weights of a channel; needs no data.", "Li et al. 2017", data="no"),
    "l2": _only("L2 norm of all weights of a channel; needs no data.", "He et al. 2018", data="no"),
    "slimming": _only(
        "|scale| of the norms that a channel passes (network slimming); needs no data.", "Liu et al. 2017", data="no"
    ),
    "snap": _only(
        "|dL/dgate| of a gate on each channel (SNAP, structured SNIP); needs data.", "Verdenius et al. 2020", order=1
    ),
}
