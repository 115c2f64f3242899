"""Attach gates to the weights of a model."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import nn

from ticketry.core.computed_weights import check_computed_removed
from ticketry.core.devices.sharding import is_sharded
from ticketry.core.gates.block_gates import BlockGates
from ticketry.core.gates.charges import Charges
from ticketry.core.gates.gates import Gates
from ticketry.core.gates.kinds import Kind, make_kind
from ticketry.core.gates.parameter_swap import find_gated_parameters
from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.scope import scope as scope_of
from ticketry.core.sparse_training.leftovers import release_leftovers
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import MaskError, ScopeError, UsageError
from ticketry_engine.support.entry_points import CHANGES, entry_point


class GateOptions(TypedDict, total=False):
    """Keyword arguments of `attach`."""

    init: float
    kind: str | Kind
    scope: Scope | None
    within: Mask | None
    pattern: str | Pattern
    seed: int
    charges: Charges | None


LARGEST_INIT = 50
"""Largest accepted absolute value of `init`. Papers use -0.3 to 0.3. Beyond 50, the gradient of a new gate vanishes in
float32, so the gate does not train.
"""


@entry_point(CHANGES)
def attach(
    model: nn.Module,
    *,
    init: float = 0.0,
    kind: str | Kind = "continuous",
    scope: Scope | None = None,
    within: Mask | None = None,
    pattern: str | Pattern = "unstructured",
    seed: int = 0,
    charges: Charges | None = None,
) -> Gates:
    """Multiply weights of `model` by trainable gates, until `Gates.detach`.

    Each gate is computed from a trainable number s, its logit. Whenever the model or one of its modules is called, it
    computes with w * gate instead of the weight w; both w and s get gradients. The model's class, its parameters, their
    names and its state dict do not change, and hold w. Attach gates after the model is on its device and in its memory
    layout. A weight that several modules share has one gate, which all these modules use, also those outside the scope.
    A deep or pickled copy of the model has no gates.

    torch.compile works, but the multiplication by gates is not compiled, and modules compiled earlier are recompiled.
    DistributedDataParallel ignores `Gates.parameters`: average their gradients yourself. nn.DataParallel on several
    devices and TorchScript modules are not supported.

    Args:
        model: any module.
        init: s0, the initial value of every s; a larger s0 gives a denser final mask.
        kind: a name of `KINDS`, or a configured kind such as ``Continuous(final=500)``.
        scope: the parameters that get gates; by default the parameters of `within`, or else `ticketry.scope(model)`.
        within: a mask of the parameters in scope, in the same pattern; gates of weights that it removes stay 0.
        pattern: the blocks of weights that share a gate: ``unstructured`` (each weight has its own gate), ``4x1``,
            ``16x1`` … (4 or 16 adjacent rows at one column) or ``channel`` (a whole row of one layer), see
            `structure.Pattern`. The mask then retains or removes whole blocks. The gradient of a block's s is a sum
            over the block's weights, so s moves faster than for a single weight. With ``channel``, a batch norm after
            the layer cancels a soft gate on a filter, except in the filter's gradient, until the gate is 0.
            `attach_channels` avoids this: it gates channels where the next layers read them.
        seed: seed of the random numbers, for kinds of gates that are random.
        charges: what each open gate costs in the penalty, see `Charges`; None: all weights cost the same.

    Raises:
        UsageError: if `within` is not a mask; if the kind or pattern is unknown; if the pattern has no blocks (2:4);
            if `charges` are for other weights; if `init` is out of range; or if a parameter already has gates or is
            sharded over several devices (`fully_shard`).
        ScopeError, MaskError: if scope or mask do not fit the model or each other, or if the mask retains parts of
            blocks or would make a computed weight (weight_norm) NaN.

    Examples:
        >>> model = nn.Linear(4, 3)
        >>> gates = tk.gates.attach(model, init=0.0)
        >>> gates.penalty(0.1)  # 0.1 * 12 gates, each half open
        tensor(0.6000, grad_fn=<_WeightedSumBackward>)
        >>> optimizer = torch.optim.SGD([*model.parameters(), *gates.parameters()], lr=0.1)
        >>> x, y = torch.randn(16, 4), torch.arange(16) % 3
        >>> for step in range(10):
        ...     gates.anneal(tk.gates.by_step(step, 10))
        ...     optimizer.zero_grad()
        ...     (nn.functional.cross_entropy(model(x), y) + gates.penalty(0.01)).backward()
        ...     optimizer.step()
        >>> with gates.hardened():
        ...     y = model(x)  # with the mask that the gates give now
        >>> with gates.lifted():
        ...     y = model(x)  # without gates
        >>> mask = gates.harden(collapse="keep")
        >>> gates.detach()
        >>> sorted(mask), mask.total
        (['weight'], 12)
        >>> other = tk.gates.attach(nn.Linear(4, 3), kind="stochastic", init=0.0)
        >>> other.set_step(10)
        >>> state = other.state_dict()
        >>> state["kind"], state["step"] == other.step, round(other.soft_density(), 2)
        ('stochastic', True, 0.5)
        >>> other.load_state_dict(state)
        >>> other.hard()
        >>> with other.drawing():
        ...     pass  # draws gates in eval mode too: to train them over frozen weights
    """
    check_init(init)
    if scope is not None:
        parameters = scope.parameters(model)
    else:
        parameters = scope_of(model).parameters(model) if within is None else within.parameters(model)
    if within is not None and within.shapes != {name: tuple(p.shape) for name, p in parameters.items()}:
        raise MaskError("the mask that gates are to stay within is not of the parameters in scope")
    check_attachable(model, parameters)
    if within is not None:
        check_computed_removed(model, parameters, within)
    if charges is not None and charges.sizes != tuple(parameter.numel() for parameter in parameters.values()):
        raise UsageError("the charges are of gates on other weights: make them of the parameters in scope, in order")
    pattern = Pattern.parse(pattern)
    if pattern.unstructured:
        found = Gates(model, parameters, make_kind(kind), init, within, seed)
    else:
        found = BlockGates(model, parameters, pattern, make_kind(kind), init, within, seed)
    found.charges = charges
    return found


def check_init(init: float) -> None:
    """Raise `UsageError` if the initial logit s0 is out of range."""
    if not -LARGEST_INIT <= init <= LARGEST_INIT:
        raise UsageError(
            f"init is the value that all s begin with, a number from {-LARGEST_INIT} to {LARGEST_INIT}, not {init!r}"
        )


def check_attachable(model: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Check that these parameters of `model` can get gates; raise the errors of `attach`."""
    release_leftovers(model)
    taken = find_gated_parameters(model)
    for name, parameter in parameters.items():
        if id(parameter) in taken:
            raise UsageError(f"{name!r} has gates already: detach them first")
        if not parameter.is_floating_point():
            raise ScopeError(f"{name!r} holds {parameter.dtype}, and gates are for floating-point weights: spare it")
        if is_sharded(parameter):
            raise UsageError(
                f"{name!r} is sharded over several devices, and gates need whole weights: attach them to a model"
                " that each device has whole, under DistributedDataParallel"
            )
    _retain_freed_memory()


def _retain_freed_memory() -> None:
    # glibc returns large freed blocks to the system, and getting them back costs a millisecond per step of a LeNet,
    # until a block of up to 32 MiB has been freed. This one is never touched, so it costs nothing.
    torch.empty(31 << 20, dtype=torch.uint8)
