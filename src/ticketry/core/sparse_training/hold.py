"""Mask enforcement: keep pruned weights exactly 0 in any training loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ticketry.core.computed_weights import computed_weights
from ticketry.core.mask import Mask
from ticketry.core.scope import name_without_wrappers
from ticketry.core.sharding import check_same_mask, check_shards, is_sharded, local_shard, reshard, shard_like
from ticketry.errors import HoldError, UsageError
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.training_hooks import Listeners, Stepping, is_masked

# State that scales steps and is never 0: Adamax's infinity norm, Rprop's step sizes.
_SCALES = ("exp_inf", "step_size")


class HeldParameter:
    """A parameter whose removed weights are kept at 0, with the hook that masks its gradient."""

    masks_gradients = True
    """Tells the engine that this hook does not change gradients that are masked already."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor, hook: bool) -> None:
        self.parameter, self._mask = parameter, mask
        self._numbers: Tensor | None = None
        self._content = _tensor_identity(parameter)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        if hook:
            trainable = parameter.requires_grad
            parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen while it is held
            if parameter._backward_hooks is not None:  # swap_tensors leaves names of hooks that are no longer called
                parameter._backward_hooks = parameter._backward_hooks or None
            # No gradient flows into a shard: `fully_shard` assigns it, and calls only post-accumulate hooks.
            if is_sharded(parameter):
                self._handle = parameter.register_post_accumulate_grad_hook(self._mask_accumulated_gradient)  # type: ignore[no-untyped-call]
            else:
                self._handle = parameter.register_hook(self._mask_gradient)  # type: ignore[no-untyped-call]
            parameter.requires_grad_(trainable)

    @property
    def mask_as_numbers(self) -> Tensor:
        """The mask as 0 and 1 in the parameter's dtype, memory layout and device.

        For a sharded parameter, this is the mask of this process's shard. The tensor is as large as the weights, so it
        is created only when needed: the kernels of the engine return masked gradients without it.
        """
        own = local_shard(self.parameter.detach())
        if self._numbers is None or self._numbers.device != own.device or self._numbers.dtype != own.dtype:
            with torch.inference_mode(False):  # it outlives the caller's mode
                self._numbers = self._convert_mask_to_numbers(own)
        return self._numbers

    def mask_as_numbers_like(self, tensor: Tensor, *, once: bool = False) -> Tensor:
        """Return the mask as numbers 0 and 1, in the dtype and on the device of `tensor`.

        Args:
            tensor: the parameter, its gradient or a tensor of its optimiser state; for a sharded parameter, the shard
                of this process.
            once: True if the call is not repeated at each step, so that the result is not cached.
        """
        own = local_shard(self.parameter.detach())
        factors = self._convert_mask_to_numbers(own) if once and self._numbers is None else self.mask_as_numbers
        return factors.to(device=tensor.device, dtype=tensor.dtype)

    def _convert_mask_to_numbers(self, own: Tensor) -> Tensor:
        # In the layout of the parameter: elementwise products of mixed layouts (channels_last) are slow.
        return torch.empty_like(own).copy_(shard_like(self._mask, self.parameter))

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the parameter; for a sharded parameter, the shard of this process."""
        return None if self.parameter.grad is None else local_shard(self.parameter.grad)

    def has_hook(self) -> bool:
        """Return whether the gradient hook is still in effect; `torch.utils.swap_tensors` removes it."""
        return _tensor_identity(self.parameter) == self._content

    @torch.no_grad()
    def mask_weight_and_gradient(self) -> None:
        own = local_shard(self.parameter)
        own.masked_fill_(self.mask_as_numbers_like(own, once=True) == 0, 0)
        if is_sharded(self.parameter):
            self._mask_accumulated_gradient(self.parameter)
        elif self.parameter.grad is not None:
            self.parameter.grad = self._mask_gradient(self.parameter.grad)

    def remove_hook(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _mask_gradient(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # a custom function may return none
            return None
        return gradient if is_masked(gradient, self._mask) else gradient * self.mask_as_numbers_like(gradient)

    @torch.no_grad()
    def _mask_accumulated_gradient(self, parameter: Tensor) -> None:
        """Mask the gradient of `parameter` after `fully_shard` has added it up over all processes."""
        if parameter.grad is not None:
            gradient = local_shard(parameter.grad)
            gradient.mul_(self.mask_as_numbers_like(gradient))


class MaskedParameters:
    """The parameters of a model that a mask names, with all names of tied parameters."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self.model = model
        self._shapes = mask.shapes
        masked = {id(parameter): name for name, parameter in mask.parameters(model).items()}
        everything = [
            (name_without_wrappers(name), one) for name, one in model.named_parameters(remove_duplicate=False)
        ]
        self.masked_by = {name: masked[id(one)] for name, one in everything if id(one) in masked}
        """Name of a parameter -> its name in the mask; the two differ only for tied weights."""
        self.masked_by |= {name: name for name in mask}
        self.find_and_cache_parameters()

    def find_and_cache_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the mask names, and remember them and the model's modules for `are_unchanged`."""
        found = self.find_parameters()
        self._path: dict[tuple[int, str], tuple[Mapping[str, object], str, object]] = {}
        for raw, _ in self.model.named_parameters(remove_duplicate=False):
            if name_without_wrappers(raw) in self.masked_by:
                module: nn.Module = self.model
                *path, local = raw.split(".")
                for key in path:
                    inner = module._modules[key]
                    assert inner is not None
                    self._path[id(module), key] = (module._modules, key, inner)
                    module = inner
                self._path[id(module), local] = (module._parameters, local, module._parameters[local])
        return found

    def find_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the model now has under the names of the mask; a tied parameter is listed once."""
        found: dict[str, nn.Parameter] = {}
        for raw, parameter in self.model.named_parameters(remove_duplicate=False):
            name = name_without_wrappers(raw)
            if name in self.masked_by and (name in self._shapes or parameter.shape == self._mask_shape(name)):
                found[name] = parameter
        for name in self._shapes:
            if name not in found or found[name].shape != self._mask_shape(name):
                raise HoldError(
                    f"the mask cannot be held: {type(self.model).__name__} has"
                    f" {'lost' if name not in found else 'another shape of'} its parameter {name!r} since (a module was"
                    " rebuilt, parametrised or resized): leave the block or release() the mask before that, and hold a"
                    " mask of the new model"
                )
        tied = {name: name not in self._shapes and one is found[self.masked_by[name]] for name, one in found.items()}
        return {name: one for name, one in found.items() if not tied[name]}

    def are_unchanged(self, held: Mapping[str, HeldParameter]) -> bool:
        """Return whether the model still has the remembered modules and parameters, and `held` has these parameters."""
        return all(key in entries and entries[key] is value for entries, key, value in self._path.values()) and all(
            each.has_hook() for each in held.values()
        )

    def _mask_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[self.masked_by[name]]


def iterate_state_tensors(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[Tensor]:
    """Yield the tensors in the optimiser state of `parameter` that have one element per weight.

    State that only scales the optimiser's steps is left out. For a sharded parameter, yield this process's shards.
    """
    state: Mapping[str, object] = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if key not in _SCALES:
            yield from (
                local_shard(one) for one in _float_tensors_in(value) if one.shape == parameter.shape and one.dim()
            )


def _float_tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the floating-point and complex tensors in `value`, an entry of an optimiser's state."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _float_tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _float_tensors_in(each)


def _tensor_identity(parameter: nn.Parameter) -> int:
    """Return a number that changes when `torch.utils.swap_tensors` swaps the parameter, which removes its hooks."""
    content: int = parameter._cdata
    return content


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
            model: the model that is trained; it may be wrapped or sharded.
            mask: its removed weights are set to 0 now and stay 0.
            hooks: whether to mask gradients and optimiser state automatically; False for a loop that calls
                `mask_gradients` and `mask_state` itself, which takes less time.
        """
        release_interrupted_trainings(model)
        self._mask, self._hooks, self._is_copy = mask, hooks, False
        reshard(model)
        parameters = mask.parameters(model)
        check_shards(parameters)
        check_same_mask(model, parameters, mask.digest)
        mask.apply_(model)
        self._named = MaskedParameters(model, mask)
        self._held = {
            name: HeldParameter(parameter, mask[self._named.masked_by[name]], hooks)
            for name, parameter in self._named.find_and_cache_parameters().items()
        }
        self._masked_states: weakref.WeakKeyDictionary[Optimizer, object] = weakref.WeakKeyDictionary()
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
        return [held.mask_as_numbers for held in self._held.values()]

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to 0; call this before gradients are clipped and the optimiser steps."""
        self._refuse_copy()
        pairs = [(held.gradient, held) for held in self._held.values()]
        dense = [(gradient, held) for gradient, held in pairs if gradient is not None and not gradient.is_sparse]
        if dense:
            torch._foreach_mul_(
                [gradient for gradient, _ in dense], [held.mask_as_numbers_like(g) for g, held in dense]
            )
        for gradient, held in pairs:
            if gradient is not None and gradient.is_sparse:
                held.parameter.grad = gradient * held.mask_as_numbers_like(gradient)

    @torch.no_grad()
    def mask_state(self, optimizer: Optimizer) -> None:
        """Set the optimiser's state (momentum, moments) for removed weights to 0.

        The history of L-BFGS mixes weights, so the whole history is cleared if it dates from before pruning.
        """
        self._refuse_copy()
        if isinstance(optimizer, LBFGS):
            # Each vector of the history is the concatenation of all parameters. The history is from before pruning if
            # a vector is not 0 at removed weights.
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            factors = {
                id(one.parameter): one.mask_as_numbers_like(one.parameter, once=True) for one in self._held.values()
            }
            removed = torch.cat([(factors.get(id(one), torch.ones_like(one)) == 0).flatten() for one in parameters])
            vectors = (one for state in optimizer.state.values() for one in _float_tensors_in(state))
            if any(vector[removed].any() for vector in vectors if vector.shape == removed.shape):
                optimizer.state.clear()
        for held in self._held.values():
            for tensor in iterate_state_tensors(optimizer, held.parameter):
                tensor.mul_(held.mask_as_numbers_like(tensor, once=True))

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set removed weights to 0."""
        self._refuse_copy()
        parameters: list[Tensor] = [local_shard(held.parameter) for held in self._held.values()]
        factors = [held.mask_as_numbers_like(own) for held, own in zip(self._held.values(), parameters, strict=True)]
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
        now = self._named.find_parameters()
        for name, parameter in now.items():
            removed = self._removed_elements(name, parameter)
            self._require_zero(f"weights of {name!r}", local_shard(parameter.detach()), removed)
            for tensor in iterate_state_tensors(optimizer, parameter) if optimizer else ():
                self._require_zero(f"optimiser state of {name!r}", tensor, removed.to(tensor.device))
        names = {id(parameter): name for name, parameter in now.items()}
        for computed in computed_weights(self._named.model):
            for original in computed.originals:
                if id(original) in names:
                    name = names[id(original)]
                    removed = self._removed_elements(name, original)
                    self._require_zero(f"weights computed from {name!r}", computed.value(), removed)

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
                if self._updates_masked_parameter(optimizer, *self._named.model.parameters()):
                    raise
                return  # the step of another model; the next step of this model, or the check, raises
        # State from before the mask would move removed weights. Loading a state creates a new dictionary.
        if self._masked_states.get(optimizer) is not optimizer.state and self._updates_masked_parameter(optimizer):
            self._masked_states[optimizer] = optimizer.state
            self.mask_state(optimizer)

    def _mask_weights_after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        mine = optimizer in self._masked_states or self._updates_masked_parameter(optimizer)
        if mine and type(optimizer) not in _ELEMENTWISE:
            self.mask_weights()

    def _updates_masked_parameter(self, optimizer: Optimizer, *others: nn.Parameter) -> bool:
        """Return whether `optimizer` updates a parameter that the mask names, or one of the `others`."""
        own = {id(one) for one in (*others, *(held.parameter for held in self._held.values()))}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    @torch.no_grad()
    def _mask_replaced_parameters(self) -> None:
        """Mask parameters that have replaced others of the same name, and enforce the mask on them from now on."""
        now = self._named.find_and_cache_parameters()
        for name, parameter in now.items():
            if name in self._held and is_sharded(parameter) and not is_sharded(self._held[name].parameter):
                raise HoldError(
                    f"{name!r} was held whole and is sharded over several devices now: call fully_shard first, create"
                    " the optimiser, and hold the mask then"
                )
        for name, held in list(self._held.items()):
            if now.get(name) is not held.parameter or not held.has_hook():
                self._held.pop(name).remove_hook()
        for name in now.keys() - self._held.keys():
            held = self._held[name] = HeldParameter(now[name], self._mask[self._named.masked_by[name]], self._hooks)
            held.mask_weight_and_gradient()
        self._masked_states.clear()

    # -- details of the check --------------------------------------------------------------------------------------

    def _removed_elements(self, name: str, parameter: nn.Parameter) -> Tensor:
        held = self._held.get(name)
        if held is not None and held.parameter is parameter:
            return held.mask_as_numbers_like(local_shard(parameter), once=True) == 0
        return ~shard_like(self._mask[self._named.masked_by[name]], parameter).to(parameter.device)

    def _require_zero(self, what: str, tensor: Tensor, removed: Tensor) -> None:
        stray = torch.where(removed, tensor, 0)
        if stray.any():
            cause = "" if stray.isfinite().all() else "the loss or its gradient was not finite, or "
            raise HoldError(
                f"{int(stray.count_nonzero())} of {int(removed.sum())} pruned {what} are not 0 (up to"
                f" {float(stray.abs().max()):.3g}): {cause}something outside the optimiser's step wrote them, such as a"
                " load of weights or an average of models"
            )


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
        HoldError: at the end of the block, if a removed weight is not 0, as after a loss that is not finite. At a
            step of the optimiser, if the model no longer has a parameter of the mask.

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


@dataclass(eq=False)
class Attachment:
    """An entry in the register of all masks and gates that trainings have attached to models."""

    model: nn.Module
    what: str
    """What is attached, as one word for messages, such as "hold"."""
    is_running: Callable[[], bool]
    """Function that returns whether the training still runs."""
    is_active: Callable[[], bool]
    """Function that returns whether the attachment would now change a training step."""
    release: Callable[[], None]
    """Function that takes the attachment off the model, and calls `unregister`."""

    def __post_init__(self) -> None:
        _attachments.add(self)

    def unregister(self) -> None:
        """Delete the attachment from the register, after it was taken off the model; may be called repeatedly."""
        _attachments.remove(self)


def release_interrupted_trainings(model: nn.Module) -> None:
    """Take the masks and gates of interrupted trainings off `model`, and off models that share parameters with it."""
    for one in _find_interrupted_attachments({id(parameter) for parameter in model.parameters()}):
        one.release()


def _find_interrupted_attachments(parameters: set[int]) -> list[Attachment]:
    left = [one for one in _attachments.present if not one.is_running()]
    return [one for one in left if any(id(parameter) in parameters for parameter in one.model.parameters())]


def _release_before_step(optimizer: Optimizer, args: object, kwargs: object) -> None:
    """Before an optimiser steps, take the masks and gates of interrupted trainings off its parameters.

    Raises `HoldError` if these have already changed the gradients of the step.
    """
    if all(one.is_running() for one in _attachments.present):
        return
    left = _find_interrupted_attachments(
        {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    )
    acting = [one.what for one in left if one.is_active()]
    for one in left:
        one.release()
    if acting:
        raise HoldError(
            f"a training of this model broke off, and what its callback put on it ({', '.join(acting)}) still acted in"
            " this step: it is taken off now, so load the weights that you start from and begin anew;"
            " callback.release() takes it off before that"
        )


_attachments = Listeners[Attachment](lambda: Stepping(before=torch.compiler.disable(_release_before_step)))  # type: ignore[no-untyped-call]
