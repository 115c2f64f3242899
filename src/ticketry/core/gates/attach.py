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
"""Largest absolute init. Papers use -0.3 to 0.3; beyond this bound a new gate is 0 or 1 in float32 and does not
train.
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

    The model's class, parameters, names and state dict do not change and still hold the weights w; whenever the model
    or one of its modules is called, it computes with w * gate. Both w and the gate's logit s get gradients. Attach
    gates after the model is on its device and in its memory layout. A weight that several modules share has one gate,
    which all of them use, including modules outside the scope. A deep or pickled copy of the model is a model without
    gates.

    torch.compile works, but the multiplication by gates stays outside of compiled code, and compiled modules are
    recompiled. DistributedDataParallel ignores `Gates.parameters`: average their gradients yourself. Not supported:
    nn.DataParallel on several devices, TorchScript modules.

    Args:
        model: any module.
        init: s0, the initial value of every s; the larger, the denser the final mask.
        kind: a name of `KINDS`, or a configured kind such as ``Continuous(final=500)``.
        scope: the parameters that get gates; by default `ticketry.scope(model)`, or those of `within`.
        within: a mask of the parameters in scope, in the same pattern; gates of removed weights stay 0.
        pattern: weights that share a gate: each has its own (``unstructured``), ``4x1``, ``16x1`` … (adjacent rows at
            one column) or ``channel`` (a whole row of one layer), see `structure.Pattern`. The mask then has whole
            blocks. The gradient of a block's s is a sum over its weights, so s moves faster than for a single weight.
            ``channel`` concerns one layer: before a batch norm, a soft gate on a filter has no effect except on its
            gradient until it is 0. For gates on coupled channels see `attach_channels`.
        seed: for kinds that draw random numbers.
        charges: the cost of open gates in the penalty, see `Charges`; None: all weights cost the same.

    Raises:
        UsageError: for a `within` that is not a mask, an unknown kind or pattern, one without blocks (2:4), charges for
            other weights, an s0 out of range, or a parameter that has gates already or is sharded over several devices
            (`fully_shard`).
        ScopeError, MaskError: if scope or mask do not fit the model or each other, or the mask retains parts of blocks
            or would make a computed weight (weight_norm) NaN.

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
    """Check that these parameters of `model` can get gates; raises as `attach`."""
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
