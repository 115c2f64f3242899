"""Keeps pruned weights at exactly zero, in any training loop."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ticketry.core.mask import Mask
from ticketry.errors import HoldError

# Optimisers whose step treats every weight by itself and maps (weight 0, gradient 0, state 0) to weight 0: SGD with
# momentum and weight decay, the Adam family, … . For any other, the weights are masked again after each step.
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

# State that scales steps and is never 0: Adamax's infinity norm, Rprop's step sizes.
_SCALES = ("exp_inf", "step_size")


class Hold:
    """Holds a mask over a model while it trains: removed weights stay exactly 0. See `hold`."""

    def __init__(self, model: nn.Module, mask: Mask, *, hooks: bool = True) -> None:
        """`hooks=False` is for a loop that calls `mask_gradients` and `mask_state` itself, which costs less."""
        self._parameters = mask.parameters(model)
        mask.apply_(model)
        # In the layout of the parameter: elementwise products of mixed layouts (channels_last) are slow.
        self._kept = {name: _like(parameter, mask[name]) for name, parameter in self._parameters.items()}
        self._known: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._handles = [_hook(self, name) for name in self._parameters] if hooks else []
        self.mask_gradients()  # those of a backward pass before the mask came
        if hooks:
            self._handles.append(register_optimizer_step_pre_hook(self._before_step))
            self._handles.append(register_optimizer_step_post_hook(self._after_step))

    # -- for a loop of one's own -----------------------------------------------------------------------------------

    @property
    def tensors(self) -> list[Tensor]:
        """The mask as it is held in memory: 0 and 1 in the type of the weights."""
        return list(self._kept.values())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to 0, before clipping and stepping."""
        pairs = [(parameter.grad, self._kept[name]) for name, parameter in self._parameters.items()]
        gradients = [gradient for gradient, _ in pairs if gradient is not None]
        if gradients:
            torch._foreach_mul_(gradients, [kept for gradient, kept in pairs if gradient is not None])

    @torch.no_grad()
    def mask_state(self, optimizer: Optimizer) -> None:
        """Set the optimiser's state (momentum, moments) of removed weights to 0."""
        for name, tensor in self._states(optimizer):
            tensor.mul_(self._kept[name])

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set removed weights to 0."""
        torch._foreach_mul_(list(self._parameters.values()), list(self._kept.values()))

    # -- the promise -----------------------------------------------------------------------------------------------

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Make sure that removed weights, and the optimiser's state for them, are exactly 0.

        Raises:
            HoldError: naming the parameter, how many of its weights are not 0, and the largest.
        """
        for name, parameter in self._parameters.items():
            self._require_zero(f"weights of {name!r}", name, parameter.detach())
        for name, tensor in self._states(optimizer) if optimizer else ():
            self._require_zero(f"optimiser state of {name!r}", name, tensor)

    def release(self) -> None:
        """Stop holding. The weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
        if kind is None:
            self.check()

    # -- inside ----------------------------------------------------------------------------------------------------

    def _masked_gradient(self, name: str, gradient: Tensor) -> Tensor:
        kept = self._kept[name]
        if kept.device != gradient.device or kept.dtype != gradient.dtype:  # the model moved since
            kept = self._kept[name] = kept.to(device=gradient.device, dtype=gradient.dtype)
        return gradient * kept

    def _before_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        # An optimiser that has trained before the mask came carries momentum that would move removed weights.
        if optimizer not in self._known and self._concerns(optimizer):
            self._known.add(optimizer)
            self.mask_state(optimizer)

    def _after_step(self, optimizer: Optimizer, args: object, kwargs: object) -> None:
        if type(optimizer) not in _ELEMENTWISE and self._concerns(optimizer):
            self.mask_weights()

    def _concerns(self, optimizer: Optimizer) -> bool:
        mine = {id(parameter) for parameter in self._parameters.values()}
        return any(id(parameter) in mine for group in optimizer.param_groups for parameter in group["params"])

    def _states(self, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
        """(name, state) of every state tensor that has an element for each weight and can move it."""
        return [
            (name, value)
            for name, parameter in self._parameters.items()
            for key, value in _state_of(optimizer, parameter).items()
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() and key not in _SCALES
        ]

    def _require_zero(self, what: str, name: str, tensor: Tensor) -> None:
        removed = self._kept[name].to(tensor.device) == 0
        stray = torch.where(removed, tensor, 0)
        if stray.any():
            raise HoldError(
                f"{int(stray.count_nonzero())} of {int(removed.sum())} pruned {what} are not 0 (up to"
                f" {float(stray.abs().max()):.3g}):"
                " something outside the optimiser's step wrote them, such as a load of weights or an average of models"
            )


def hold(model: nn.Module, mask: Mask) -> Hold:
    """Keep the weights that `mask` removes at exactly 0 while `model` trains, in any loop.

    Removed weights are set to 0 once; from then on their gradients are set to 0 as they are accumulated, so that
    clipping and gradient norms see the masked gradient, and SGD (momentum, weight decay) and the Adam family leave
    them at 0. Momentum from before is cleared. For optimisers that mix weights (Muon, LBFGS, one's own) the weights
    are masked after each step as well. Leaving the block checks that it held.

    Args:
        model: any module; it keeps its class, names and state dict.
        mask: of parameters of this model.

    Raises:
        MaskError: if the mask does not fit the model.
        HoldError: on leaving the block, if a removed weight is not 0.

        >>> with hold(model, mask):  # doctest: +SKIP
        ...     train(model)
    """
    return Hold(model, mask)


def _like(parameter: nn.Parameter, mask: Tensor) -> Tensor:
    """The mask as 0 and 1 in the type, layout and place of `parameter`."""
    return torch.empty_like(parameter, requires_grad=False).copy_(mask)


def _hook(holder: Hold, name: str) -> torch.utils.hooks.RemovableHandle:
    parameter = holder._parameters[name]
    trainable = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen while it is held
    handle: torch.utils.hooks.RemovableHandle = parameter.register_hook(  # type: ignore[no-untyped-call]
        lambda gradient: holder._masked_gradient(name, gradient)
    )
    parameter.requires_grad_(trainable)
    return handle


def _state_of(optimizer: Optimizer, parameter: nn.Parameter) -> Mapping[str, object]:
    state: Mapping[str, object] = optimizer.state.get(parameter, {})
    return state
