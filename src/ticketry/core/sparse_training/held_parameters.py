"""Find the parameters that a mask names, and the state that an optimiser has for these parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ticketry.core.devices.sharding import is_sharded, local_shard, shard_like
from ticketry.core.mask import Mask
from ticketry.core.scope import normal_name
from ticketry.errors import HoldError
from ticketry_engine.support.training_hooks import is_masked

# State that scales steps and is never 0: Adamax's infinity norm, Rprop's step sizes.
_SCALES = ("exp_inf", "step_size")


class HeldParameter:
    """A parameter whose removed weights are kept at 0, with the hook that masks its gradient."""

    masks_gradients = True
    """Tells the engine that this hook does not change gradients that are masked already."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor, hook: bool) -> None:
        self.parameter, self._mask = parameter, mask
        self._factors: Tensor | None = None
        self._content = _tensor_identity(parameter)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        if hook:
            sharded = is_sharded(parameter)
            function = self._mask_accumulated_gradient if sharded else self._mask_gradient
            self._handle = _register_hook(parameter, function, accumulated=sharded)

    @property
    def factors(self) -> Tensor:
        """The mask as 0 and 1 in the parameter's dtype, memory layout and device.

        For a sharded parameter, this is the mask of this process's shard. The tensor is as large as the weights, so it
        is created only when needed: the kernels of the engine return masked gradients without it.
        """
        own = local_shard(self.parameter.detach())
        if self._factors is None or self._factors.device != own.device or self._factors.dtype != own.dtype:
            with torch.inference_mode(False):  # it outlives the caller's mode
                self._factors = self._compute_factors(own)
        return self._factors

    def factors_like(self, tensor: Tensor, *, once: bool = False) -> Tensor:
        """Return `factors` in the dtype and on the device of `tensor`.

        Args:
            tensor: the parameter, its gradient or a tensor of its optimiser state; for a sharded parameter, the shard
                of this process.
            once: True if the call is not repeated at each step, so that the result is not cached.
        """
        own = local_shard(self.parameter.detach())
        factors = self._compute_factors(own) if once and self._factors is None else self.factors
        return factors.to(device=tensor.device, dtype=tensor.dtype)

    def _compute_factors(self, own: Tensor) -> Tensor:
        # In the layout of the parameter: elementwise products of mixed layouts (channels_last) are slow.
        return torch.empty_like(own).copy_(shard_like(self._mask, self.parameter))

    @property
    def gradient(self) -> Tensor | None:
        """The gradient of the parameter; for a sharded parameter, the shard of this process."""
        return None if self.parameter.grad is None else local_shard(self.parameter.grad)

    def is_held(self, parameter: nn.Parameter | None) -> bool:
        """Return whether `parameter` is the same parameter, with the gradient hook still in effect."""
        return parameter is self.parameter and _tensor_identity(self.parameter) == self._content

    @torch.no_grad()
    def mask_weight_and_gradient(self) -> None:
        own = local_shard(self.parameter)
        own.masked_fill_(self.factors_like(own, once=True) == 0, 0)
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
        return gradient if is_masked(gradient, self._mask) else gradient * self.factors_like(gradient)

    @torch.no_grad()
    def _mask_accumulated_gradient(self, parameter: Tensor) -> None:
        """Mask the gradient of `parameter` after `fully_shard` has added it up over all processes."""
        if parameter.grad is not None:
            gradient = local_shard(parameter.grad)
            gradient.mul_(self.factors_like(gradient))


class MaskedParameters:
    """The parameters of a model that a mask names, with all names of tied parameters."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self.model = model
        self._shapes = mask.shapes
        masked = {id(parameter): name for name, parameter in mask.parameters(model).items()}
        everything = [(normal_name(name), one) for name, one in model.named_parameters(remove_duplicate=False)]
        self.masked_by = {name: masked[id(one)] for name, one in everything if id(one) in masked}
        """The name of each parameter's mask, by the name of the parameter; the names of tied weights differ."""
        self.masked_by |= {name: name for name in mask}
        self.find_and_remember()

    def find_and_remember(self) -> dict[str, nn.Parameter]:
        """Return the result of `find_parameters`, and remember the modules and parameters for `are_unchanged`."""
        found = self.find_parameters()
        self._path: dict[tuple[int, str], tuple[Mapping[str, object], str, object]] = {}
        for raw, _ in self.model.named_parameters(remove_duplicate=False):
            if normal_name(raw) in self.masked_by:
                self._remember_module_path(raw)
        return found

    def find_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the model now has under the names of the mask; a tied parameter is listed once.

        Raises:
            HoldError: if a parameter is missing or has another shape.
        """
        found: dict[str, nn.Parameter] = {}
        for raw, parameter in self.model.named_parameters(remove_duplicate=False):
            name = normal_name(raw)
            if name in self.masked_by and (name in self._shapes or parameter.shape == self._shape(name)):
                found[name] = parameter
        for name in self._shapes:
            if name not in found or found[name].shape != self._shape(name):
                raise HoldError(
                    f"the mask cannot be held: {type(self.model).__name__} has"
                    f" {'lost' if name not in found else 'another shape of'} its parameter {name!r} since (a module was"
                    " rebuilt, parametrised or resized): leave the block or release() the mask before that, and hold a"
                    " mask of the new model"
                )
        tied = {name: name not in self._shapes and one is found[self.masked_by[name]] for name, one in found.items()}
        return {name: one for name, one in found.items() if not tied[name]}

    def are_unchanged(self, held: Mapping[str, HeldParameter]) -> bool:
        """Return whether the model still has the remembered modules and parameters, and `held` has the parameters."""
        return all(key in entries and entries[key] is value for entries, key, value in self._path.values()) and all(
            _tensor_identity(each.parameter) == each._content for each in held.values()
        )

    def has_parameter_of(self, optimizer: Optimizer) -> bool:
        """Return whether `optimizer` updates any parameter of the model."""
        own = {id(parameter) for parameter in self.model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[self.masked_by[name]]

    def _remember_module_path(self, name: str) -> None:
        module: nn.Module = self.model
        *path, local = name.split(".")
        for key in path:
            inner = module._modules[key]
            assert inner is not None
            self._path[id(module), key] = (module._modules, key, inner)
            module = inner
        self._path[id(module), local] = (module._parameters, local, module._parameters[local])


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


@torch.no_grad()
def clear_dense_history(optimizer: Optimizer, held: Mapping[str, HeldParameter]) -> None:
    """Clear the history of L-BFGS if it dates from before pruning.

    Each vector of the history is the concatenation of all parameters; an old history has a vector that is not 0 at
    removed weights.
    """
    if not isinstance(optimizer, LBFGS):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    factors = {id(each.parameter): each.factors_like(each.parameter, once=True) for each in held.values()}
    removed = torch.cat([(factors.get(id(one), torch.ones_like(one)) == 0).flatten() for one in parameters])
    vectors = (
        one for state in optimizer.state.values() for one in _float_tensors_in(state) if one.shape == removed.shape
    )
    if any(vector[removed].any() for vector in vectors):
        optimizer.state.clear()


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


def _register_hook(
    parameter: nn.Parameter, function: object, *, accumulated: bool
) -> torch.utils.hooks.RemovableHandle:
    trainable = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen while it is held
    hooks = parameter._backward_hooks
    if hooks is not None:  # swap_tensors leaves names of hooks that are no longer called
        parameter._backward_hooks = hooks or None
    # No gradient flows into a shard: `fully_shard` assigns it, and calls only post-accumulate hooks.
    register = parameter.register_post_accumulate_grad_hook if accumulated else parameter.register_hook
    handle: torch.utils.hooks.RemovableHandle = register(function)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trainable)
    return handle
