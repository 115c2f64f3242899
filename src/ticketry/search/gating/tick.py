"""A tick, the phase of Gate Decorators that ranks channels: it trains gates on norms for a few steps.

You, Yan, Ye, Ma & Wang, "Gate Decorator" (2019, arXiv 1909.08174), section 3: each channel of a norm is multiplied by a
gate phi, behind scale and shift. While gates are trained at a small learning rate, the importance of each is the sum
over steps of |phi dL/dphi|: to first order, the change of the loss without the channel.

No gate is added to the network. As in the authors' code phi begins as the scale and replaces it: with r = shift / scale
at the start of the tick, the norm's output is phi (x + r), so that its scale is phi, its shift is phi r, and dL/dphi =
dL/dscale + r dL/dshift. The network's function and the names of parameters are unchanged. |r| is limited to 10, as in
the code. Where the limit applies, the code changes the function; here the shift moves by r times the change of its
scale instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.scope import NORMS, named_parameters
from ticketry.errors import ScopeError, UsageError
from ticketry.lab.training.state import Trainable
from ticketry.lab.training.variant import Effect, InTraining, Surroundings, Variant
from ticketry.tasks.recipe import Recipe

IMPORTANCE = "worth"
"""Name of the entry, in a tick's stored state, with the importance of a norm's channels."""
_RATIO = "ratio"
_LARGEST_RATIO = 10.0


@dataclass(frozen=True, kw_only=True)
class Tick(Variant):
    """Variant of training that trains only norm scales and the last linear layer, and sums channel importance."""

    name = "tick"
    norms: tuple[tuple[str, str], ...]
    """For each norm with gates, the names of its scale and of its shift ("" if it has no shift)."""
    head: tuple[str, ...] = ()
    """Names of the parameters that are trained together with the gates: those of the last linear layer."""
    lr: float = 1e-3
    """Constant learning rate of the tick, which uses SGD without weight decay."""
    momentum: float = 0.9

    def __post_init__(self) -> None:
        for name in ("lr", "momentum"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 1 and 1.0 have one key
        if not self.norms:
            raise UsageError("a tick trains the gates of norms, and none is named")
        if self.lr < 0 or not 0 <= self.momentum < 1:
            raise UsageError(
                f"a tick has a learning rate of at least 0 and 0 <= momentum < 1, not {self.lr:g} and {self.momentum:g}"
            )

    @property
    def scale_names(self) -> tuple[str, ...]:
        """Names of the norms' scale parameters, which serve as gates of channels during this training."""
        return tuple(scale for scale, _ in self.norms)

    @classmethod
    def from_description(cls, values: Mapping[str, Any]) -> Tick:
        norms = tuple((scale, shift) for scale, shift in values["norms"])
        return cls(**{**values, "norms": norms, "head": tuple(values.get("head", ()))})

    def conflict(self, other: Variant) -> str | None:
        if other.masked_by() is not None:
            return None
        return (
            "a tick trains the gates of one network and nothing else: without a penalty, without gates on weights"
            f" ({other.name})"
        )

    def effect(self, around: Surroundings) -> TickEffect:
        return TickEffect(around, self)

    def flops_key(self) -> bool:
        return True

    @classmethod
    def for_model(cls, model: nn.Module, **values: float) -> Tick:
        """Return the variant for all norms of a model that have a scale; `values` are further fields."""
        names = {id(parameter): name for name, parameter in named_parameters(model).items()}
        norms: list[tuple[str, str]] = []
        head: tuple[str, ...] = ()
        for module in model.modules():
            own = {local: names[id(value)] for local, value in module._parameters.items() if value is not None}
            if isinstance(module, NORMS) and "weight" in own:
                norms.append((own["weight"], own.get("bias", "")))
            if isinstance(module, nn.Linear):
                head = tuple(own.values())
        if not norms:
            raise ScopeError(
                f"Gate Decorators are gates on norms, and {type(model).__name__} has no norm with a scale: choose a"
                " network with batch norm, such as resnet-20 or vgg-16"
            )
        return cls(norms=tuple(norms), head=head, **values)


class TickEffect(Effect):
    """Effect of a `Tick` on a training: train only norm scales and the last linear layer, and sum channel importance.

    The network is in training mode, so running statistics are updated. This training has an optimiser of its own. For
    each scale, the stored state has the entries ``scale/worth`` (importance of its channels so far, float64) and
    ``scale/ratio`` (shift / scale).
    """

    def __init__(self, around: Surroundings, tick: Tick) -> None:
        super().__init__(around)
        self._tick = tick

    def recipe(self, recipe: Recipe) -> Recipe:
        own = {"lr": self._tick.lr, "momentum": self._tick.momentum, "nesterov": False, "weight_decay": 0.0}
        return recipe.changed(optimizer="sgd", schedule="constant", warmup="0it", **own)

    def trained(self, model: nn.Module) -> Trainable:
        gates = _ParameterSubset(model, {*self._tick.scale_names, *self._tick.head})
        shifts = {shift for _, shift in self._tick.norms}
        for name, parameter in named_parameters(model).items():
            parameter.requires_grad_(name in gates.names or name in shifts)
        return gates

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        known = named_parameters(training.model)
        self._norms = [(known[scale], known[shift] if shift else None) for scale, shift in self._tick.norms]
        self._importance, self._ratios = [], []
        for name, (scale, shift) in zip(self._tick.scale_names, self._norms, strict=True):
            importance, ratio = (carried.get(f"{name}/{entry}") for entry in (IMPORTANCE, _RATIO))
            zeros = torch.zeros(scale.shape, dtype=torch.float64)
            importance = zeros if importance is None else importance.clone()
            self._importance.append(importance.to(scale.device))
            self._ratios.append(_shift_per_scale(scale, shift) if ratio is None else ratio.to(scale.device))

    def before_step(self) -> None:
        self._before = [scale.detach().clone() for scale, _ in self._norms]

    def after_backward(self) -> None:
        for (scale, shift), ratio, importance in zip(self._norms, self._ratios, self._importance, strict=True):
            if scale.grad is None:
                continue
            if shift is not None and shift.grad is not None:
                scale.grad.addcmul_(ratio, shift.grad)
                shift.grad = None
            importance += (scale.detach() * scale.grad).abs()

    def after_step(self) -> None:
        with torch.no_grad():
            for (scale, shift), ratio, old in zip(self._norms, self._ratios, self._before, strict=True):
                if shift is not None:
                    shift.addcmul_(ratio, scale - old)

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, importance, ratio in zip(self._tick.scale_names, self._importance, self._ratios, strict=True):
            found |= {f"{name}/{IMPORTANCE}": importance.cpu().clone(), f"{name}/{_RATIO}": ratio.cpu().clone()}
        return found

    def lasting(self, name: str) -> bool:
        return name.endswith(f"/{IMPORTANCE}")


def _shift_per_scale(scale: Tensor, shift: Tensor | None) -> Tensor:
    """Return shift / scale, limited to -10 … 10; 0 where the scale is 0 or there is no shift."""
    if shift is None:
        return torch.zeros_like(scale, requires_grad=False)
    ratio = shift.detach() / scale.detach()
    return torch.where(scale.detach() == 0, 0.0, ratio).clamp_(-_LARGEST_RATIO, _LARGEST_RATIO)


class _ParameterSubset:
    """View of a model that shows an optimiser only the parameters `names`."""

    def __init__(self, model: nn.Module, names: set[str]) -> None:
        known = named_parameters(model)
        if unknown := sorted(names - known.keys()):
            raise ScopeError(f"a tick is to train {unknown[0]!r}, which {type(model).__name__} does not have")
        self.names = names
        self._chosen = [(name, parameter) for name, parameter in known.items() if name in names]

    def parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for _, parameter in self._chosen)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(self._chosen)
