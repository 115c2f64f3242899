"""Mask enforcement: keep pruned weights exactly 0 in any training loop."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.computed_weights import computed_weights
from ticketry.core.devices.sharding import (
    check_same_mask,
    check_shards,
    is_sharded,
    local_shard,
    reshard,
    shard_like,
)
from ticketry.core.mask import Mask
from ticketry.core.sparse_training.held_parameters import (
    HeldParameter,
    MaskedParameters,
    clear_dense_history,
    iterate_state_tensors,
)
from ticketry.core.sparse_training.leftovers import release_leftovers
from ticketry.errors import HoldError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.training_hooks import Stepping

# Optimisers whose step is elementwise and maps (weight 0, gradient 0, state 0) to weight 0. After a step of any other
# optimiser the weights are masked again.
_ELEMENTWISE: tuple[type[Optimizer], ...] = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
)


class Hold:
    """Enforces a mask on a model while it trains: removed weights stay exactly 0. See `hold`.

    Examples:
        >>> model = nn.Linear(10, 5)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> held = tk.Hold(model, tk.prune(model, density=0.2), hooks=False)  # the loop below masks explicitly
        >>> model(torch.randn(8, 10)).square().mean().backward()
        >>> held.mask_gradients()
        >>> model.weight.grad.count_nonzero()
        tensor(10)
        >>> optimizer.step()
        >>> held.mask_state(optimizer)
        >>> held.mask_weights()
        >>> held.check(optimizer)
        >>> held.tensors[0].sum()
        tensor(10.)
        >>> held.release()
    """

    @entry_point(Need(python=False, floats=False, training=True))
    def __init__(self, model: nn.Module, mask: Mask, *, hooks: bool = True) -> None:
        """Start enforcing a mask.

        Args:
            model: see `hold`.
            mask: see `hold`.
            hooks: whether to mask gradients and optimiser state automatically; False for a loop that calls
                `mask_gradients` and `mask_state` itself, which takes less time.
        """
        release_leftovers(model)
        self._mask, self._hooks, self._is_copy = mask, hooks, False
        reshard(model)
        parameters = mask.parameters(model)
        check_shards(parameters)
        check_same_mask(model, parameters, mask)
        mask.apply_(model)
        self._named = MaskedParameters(model, mask)
        self._held = {
            name: HeldParameter(parameter, mask[self._named.masked_by[name]], hooks)
            for name, parameter in self._named.find_and_remember().items()
        }
        self._masked_states: weakref.WeakKeyDictionary[Optimizer, object] = weakref.WeakKeyDictionary()
        self._non_finite_search = _FirstNonFiniteStep(self._held)
        self.mask_gradients()  # of a backward pass before the mask was held
        self._listener: Stepping | None = None
        if hooks:
            # Not compiled into a compiled step: they read the model's modules, which may be compiled as well.
            before, after = map(torch.compiler.disable, (self._mask_state_before_step, self._mask_weights_after_step))
            self._listener = Stepping(before=before, after=after)

    # -- for custom loops ------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The mask as numbers 0 and 1: one tensor per parameter, in the parameter's dtype."""
        self._refuse_copy()
        return [held.factors for held in self._held.values()]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to 0; call this before gradients are clipped and the optimiser steps."""
        self._refuse_copy()
        pairs = [(held.gradient, held) for held in self._held.values()]
        dense = [(gradient, held) for gradient, held in pairs if gradient is not None and not gradient.is_sparse]
        if dense:
            torch._foreach_mul_([gradient for gradient, _ in dense], [held.factors_like(g) for g, held in dense])
        for gradient, held in pairs:
            if gradient is not None and gradient.is_sparse:
                held.parameter.grad = gradient * held.factors_like(gradient)

    @torch.no_grad()
    def mask_state(self, optimizer: Optimizer) -> None:
        """Set the optimiser's state (momentum, moments) for removed weights to 0.

        The history of L-BFGS mixes weights, so the whole history is cleared if it dates from before pruning.
        """
        self._refuse_copy()
        clear_dense_history(optimizer, self._held)
        for held in self._held.values():
            for tensor in iterate_state_tensors(optimizer, held.parameter):
                tensor.mul_(held.factors_like(tensor, once=True))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set removed weights to 0."""
        self._refuse_copy()
        parameters: list[Tensor] = [local_shard(held.parameter) for held in self._held.values()]
        factors = [held.factors_like(own) for held, own in zip(self._held.values(), parameters, strict=True)]
        torch._foreach_mul_(parameters, factors)
        torch.clear_autocast_cache()  # it holds the weights from before

    # -- checks ----------------------------------------------------------------------------------------------------

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Check that removed weights, and the optimiser's state for them, are exactly 0 now.

        Raises:
            HoldError: if a removed weight or its state is not 0, or if the model no longer has a parameter of the mask.
                The message names the parameter, the number of removed weights that are not 0, and the largest of them.
        """
        self._refuse_copy()
        reshard(self._named.model)
        for name, parameter in self._named.find_parameters().items():
            removed = self._removed_elements(name, parameter)
            self._require_zero(f"weights of {name!r}", local_shard(parameter.detach()), removed)
            for tensor in iterate_state_tensors(optimizer, parameter) if optimizer else ():
                self._require_zero(f"optimiser state of {name!r}", tensor, removed.to(tensor.device))
        self._check_computed_weights()

    def release(self) -> None:
        """Stop enforcing the mask. The weights do not change."""
        if self._listener is not None:
            self._listener.remove()
            self._listener = None
        for held in self._held.values():
            held.remove_hook()

    def __enter__(self) -> Hold:
        self._refuse_copy()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if kind is None:
            self.check()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy of this object; a copy does not enforce the mask on any model."""
        return {"_is_copy": True, "_held": {}, "_listener": None}

    def _refuse_copy(self) -> None:
        """Raise `UsageError` if this object is a copy: its mask is not enforced on any model."""
        if self._is_copy:
            raise UsageError(
                "this is a copy of a held mask, and copies hold no weights: hold the mask on the copied model, with"
                " tk.hold(model, mask)"
            )

    # -- steps of optimisers ---------------------------------------------------------------------------------------

    def _mask_state_before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if not self._named.are_unchanged(self._held):
            reshard(self._named.model)
            try:
                self._mask_replaced_parameters()
            except HoldError:
                if self._steps_held_parameter(optimizer) or self._named.has_parameter_of(optimizer):
                    raise
                return  # the step of another model; the next step of this model, or the check, raises
        # State from before the mask would move removed weights. Loading a state creates a new dictionary.
        if self._masked_states.get(optimizer) is not optimizer.state and self._steps_held_parameter(optimizer):
            self._masked_states[optimizer] = optimizer.state
            self.mask_state(optimizer)

    def _mask_weights_after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if optimizer not in self._masked_states and not self._steps_held_parameter(optimizer):
            return
        if type(optimizer) not in _ELEMENTWISE:
            self.mask_weights()
        self._non_finite_search.record_step(optimizer)

    def _steps_held_parameter(self, optimizer: Optimizer) -> bool:
        """Return whether `optimizer` updates a parameter that the mask names."""
        own = {id(held.parameter) for held in self._held.values()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    @torch.no_grad()
    def _mask_replaced_parameters(self) -> None:
        """Find parameters that replaced others under the same name; mask these and enforce the mask on them."""
        now = self._named.find_and_remember()
        for name, parameter in now.items():
            if name in self._held and is_sharded(parameter) and not is_sharded(self._held[name].parameter):
                raise HoldError(
                    f"{name!r} was held whole and is sharded over several devices now: call fully_shard first, create"
                    " the optimiser, and hold the mask then"
                )
        for name in [name for name, held in self._held.items() if not held.is_held(now.get(name))]:
            self._held.pop(name).remove_hook()
        for name in now.keys() - self._held.keys():
            held = self._held[name] = HeldParameter(now[name], self._mask[self._named.masked_by[name]], self._hooks)
            held.mask_weight_and_gradient()
        self._masked_states.clear()
        self._non_finite_search.watch_smallest(self._held)

    # -- details of the check --------------------------------------------------------------------------------------

    def _removed_elements(self, name: str, parameter: nn.Parameter) -> Tensor:
        held = self._held.get(name)
        if held is not None and held.parameter is parameter:
            return held.factors_like(local_shard(parameter), once=True) == 0
        return ~shard_like(self._mask[self._named.masked_by[name]], parameter).to(parameter.device)

    def _check_computed_weights(self) -> None:
        names = {id(parameter): name for name, parameter in self._named.find_parameters().items()}
        for computed in computed_weights(self._named.model):
            for original in computed.originals:
                if id(original) in names:
                    name = names[id(original)]
                    removed = self._removed_elements(name, original)
                    self._require_zero(f"weights computed from {name!r}", computed.value(), removed)

    def _require_zero(self, what: str, tensor: Tensor, removed: Tensor) -> None:
        stray = torch.where(removed, tensor, 0)
        if stray.any():
            raise HoldError(
                f"{int(stray.count_nonzero())} of {int(removed.sum())} pruned {what} are not 0 (up to"
                f" {float(stray.abs().max()):.3g}): {self._explain_nonzero_weights(bool(stray.isfinite().all()))}"
            )

    def _explain_nonzero_weights(self, finite: bool) -> str:
        outside = "something outside the optimiser's step wrote them, such as a load of weights or an average of models"
        if finite or (self._hooks and not self._non_finite_search.count):
            return outside
        first = self._non_finite_search.find_first()
        if first is None:
            return f"the loss or its gradient was not finite, or {outside}"
        return (
            f"the loss or its gradient was not finite at step {first} of the optimiser, counted from where the mask was"
            " held: lower the learning rate, clip gradients or look at that batch"
        )


class _FirstNonFiniteStep:
    """Finds the first optimiser step after which a weight is infinite or NaN.

    After a loss that is not finite, every weight is and stays NaN or infinite. So it suffices to record, after each
    step, the sum of the smallest parameter. Sums are read many at a time, so that steps do not wait for a GPU.
    """

    _BATCH = 64

    def __init__(self, held: dict[str, HeldParameter]) -> None:
        self.count = 0
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._finite = torch.zeros((), dtype=torch.long)
        self._sums: list[Tensor] = []
        self.watch_smallest(held)

    def watch_smallest(self, held: dict[str, HeldParameter]) -> None:
        """From now on, record the sum of the smallest parameter in `held`."""
        self._probe = min((each.parameter for each in held.values()), key=lambda parameter: parameter.numel())

    def record_step(self, optimizer: Optimizer) -> None:
        # Only one optimiser's steps count: another may step inside it (SAM), or beside it.
        if self._optimizer is None or self._optimizer() is None:
            self._optimizer = weakref.ref(optimizer)
        if self._optimizer() is not optimizer:
            return
        self.count += 1
        total = local_shard(self._probe.detach()).sum()
        if self._sums and (len(self._sums) == self._BATCH or total.device != self._sums[0].device):
            self._read_sums()
        self._sums.append(total)

    def find_first(self) -> int | None:
        """Return the number, from 1, of the first step after which a weight is not finite; None if all are finite."""
        self._read_sums()
        finite = int(self._finite)
        return finite + 1 if finite < self.count else None

    def _read_sums(self) -> None:
        if self._sums:
            finite = torch.stack(self._sums).isfinite().sum()
            self._finite = finite + self._finite.to(finite.device)
            self._sums = []


def hold(model: nn.Module, mask: Mask) -> Hold:
    """Keep the weights that `mask` removes at exactly 0 while `model` trains, in any training loop.

    First, removed weights are set to 0. From then on, their gradients are set to 0 whenever gradients are accumulated.
    So clipping and gradient norms use the masked gradient, and SGD (with momentum and weight decay) and the Adam family
    leave removed weights at 0. Earlier momentum of removed weights and the history of L-BFGS are cleared. Optimisers
    that mix weights (Muon, L-BFGS, custom ones) could change removed weights, so weights are also masked after each
    step. At the end of the block, removed weights are checked to be 0.

    The mask applies to parameter names: a parameter that replaces another of the same name (a load with
    ``assign=True``, a layer that is rebuilt) is masked from the optimiser's next step on. docs/optimisers.md has a
    table of optimisers and wrappers.

    Args:
        model: any module; it keeps its class, names and state dict.
        mask: a mask of parameters of this model.

    Raises:
        MaskError: if the mask does not fit the model. If several processes train the model (DistributedDataParallel,
            `fully_shard`), all of them must call this, and the error is also raised if their masks differ.
        UsageError: if `mask` is not a `Mask`, or sharded parameters have no values yet or are not sharded evenly.
        HoldError: at the end of the block, if a removed weight is not 0; if a loss was not finite, the message names
            the step. At an optimiser step, if the model no longer has a parameter of the mask.

    Examples:
        >>> model = nn.Linear(10, 5)
        >>> mask = tk.prune(model, density=0.2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tk.hold(model, mask):
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.randn(8, 10)).square().mean().backward()
        ...         optimizer.step()
        >>> model.weight.count_nonzero(), mask.kept
        (tensor(10), 10)
    """
    return Hold(model, mask)
