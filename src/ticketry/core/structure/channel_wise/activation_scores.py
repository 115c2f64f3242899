"""Scores of channels by what they give to the layers that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence

from ticketry.core.layout import Roles, held_parameters
from ticketry.core.scope import Scope, is_transposed_linear, named_parameters, unwrapped
from ticketry.core.score import ScoreInputs
from ticketry.core.score._measure import given, measuring, no_batch
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup
from ticketry.core.structure.dependencies.model_copies import plain_operations
from ticketry.errors import UsageError

LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": torch.abs,
    "activation_l2": torch.square,
    "apoz": lambda inputs: inputs != 0,
}
"""What is averaged of the inputs."""

ACTIVATION_SCORES = tuple(LOOKS)


def activation_scores(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scope: Scope,
    roles: Roles,
    inputs: ScoreInputs,
    *,
    score: str,
) -> list[Tensor]:
    """For each group a score of each of its channels, float64 [size], by the inputs of the layers that read them.

    There a channel has passed its norm, its nonlinearity and its pooling, whatever they are, and where it is added to a
    shortcut, the sum. ``activation`` is the mean of |input| over all examples, positions and layers that read the
    channel, ``activation_l2`` the root of the mean of input² over the same. ``apoz`` is the share of inputs that are
    not 0: one less the average percentage of zeros (Hu, Peng, Tai & Tang, "Network Trimming", 2016, arXiv 1607.03250),
    which takes zeros right behind the ReLU, before pooling.

    All layers are in evaluation mode, but norms take the statistics of the batch, see `ticketry.score`; modes, buffers
    and random state are afterwards as before. No gradient is computed: `loss(model, batch)` runs the model on a batch.

    Raises:
        UsageError: if batches or loss are missing, if a group is read by no linear, convolution or recurrent layer, or
            if no input is ever 0 and `score` is ``apoz``.
    """
    data, run = given(score, inputs.batches, inputs.loss)
    inner = unwrapped(model)
    names = {id(parameter): name for name, parameter in named_parameters(inner).items()}
    wanted = {member.name for group in groups for member in group.within(roles.inputs)}
    readers = [
        _Reader(names[id(parameter)], module, local)
        for module in inner.modules()
        for local, parameter in held_parameters(module)
        if names.get(id(parameter)) in wanted and _readable(module, local)
    ]
    count = 0
    with ExitStack() as stack:
        stack.enter_context(plain_operations())  # a fused transformer layer would not call those inside it
        stack.enter_context(measuring(model, scope, seed=inputs.seed))
        stack.enter_context(torch.no_grad())
        for reader in readers:
            hook = reader.module.register_forward_pre_hook(reader.look(score), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in data:
            run(model, batch)
            count += 1
    if not count:
        raise no_batch()
    seen: dict[str, list[Tensor]] = {}
    for reader in readers:
        if reader.entries:
            seen.setdefault(reader.name, []).append(reader.mean())
    if score == "apoz" and all(bool((value == 1).all()) for values in seen.values() for value in values):
        raise UsageError("score 'apoz' counts zeros, and no input of any layer is 0: it is for networks with ReLU")
    return [_of_group(group, seen, roles, score) for group in groups]


def _of_group(group: ChannelGroup, seen: Mapping[str, Sequence[Tensor]], roles: Roles, score: str) -> Tensor:
    read = group.within(roles.inputs)
    found = [value[torch.tensor(member.indices)].mean(1) for member in read for value in seen.get(member.name, ())]
    if not found:
        raise UsageError(
            f"score {score!r} looks at what linear, convolution and recurrent layers read, and none reads the channels"
            f" of {group.name}: leave it out with scope(model, spare=...), or choose another score"
        )
    mean = torch.stack(found).mean(0)
    return mean.sqrt() if score == "activation_l2" else mean


# -- what a layer reads -----------------------------------------------------------------------------------------------


def _readable(module: nn.Module, local: str) -> bool:
    """Whether the module's input is what this weight of it is multiplied by."""
    if isinstance(module, nn.RNNBase):
        return local.startswith("weight_ih_l0")
    return local == "weight" and (isinstance(module, (nn.Linear, _ConvNd)) or is_transposed_linear(module))


class _Reader:
    """The inputs of one module, added up by the index of its weight's input dimension."""

    def __init__(self, name: str, module: nn.Module, local: str) -> None:
        self.name, self.module, self.local = name, module, local
        self.total: Tensor | float = 0.0
        self.entries = 0
        """Inputs of each index so far."""

    def look(self, score: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs = args[0] if args else next(iter(kwargs.values()))
            inputs = (inputs.data if isinstance(inputs, PackedSequence) else inputs).detach()
            dim = inputs.dim() - 1
            if isinstance(module, _ConvNd):
                dim -= len(module.kernel_size)
            values = LOOKS[score](inputs.to(torch.promote_types(inputs.dtype, torch.float32)))  # float16 ends at 65504
            others = [other for other in range(inputs.dim()) if other != dim]
            summed = values.sum(others, dtype=torch.float64) if others else values.double()
            self.total = self.total + summed.cpu()
            self.entries += inputs.numel() // max(inputs.shape[dim], 1)

        return hook

    def mean(self) -> Tensor:
        """float64, for each index along the input dimension of the weight."""
        assert isinstance(self.total, Tensor)
        mean, module = self.total / self.entries, self.module
        if isinstance(module, _ConvNd) and module.groups > 1 and not module.transposed:
            if module.groups == module.in_channels:  # of a depthwise one, dimension 0 is outputs and inputs at once
                return mean.repeat_interleave(module.out_channels // module.groups)
            return mean.view(module.groups, -1).mean(0)
        return mean
