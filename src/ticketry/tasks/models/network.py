"""What all networks here have in common: how one is made, and how its weights start.

The functions draw weights from torch's global random state, layer by layer in order of definition.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ticketry.errors import UsageError


@dataclass(frozen=True)
class Network:
    """A network that a name stands for."""

    make: Callable[..., nn.Module]
    """Of shape, classes and, by name, `scale`: what becomes of a hidden width."""
    smallest: int = 1
    """Height and width, in pixels, below which its poolings and strides leave less than one."""
    scales: bool = True
    """Whether `make` takes `scale`, so that there are forms of any width."""

    @classmethod
    def of(cls, name: str, found: object) -> Network:
        """That of a registry: a `Network`, or a class or function of shape and classes.

        Raises:
            UsageError: if it is none of them.
        """
        if isinstance(found, Network):
            return found
        try:
            parameters = inspect.signature(found).parameters if callable(found) else {}
        except ValueError:  # of a function written in C
            parameters = {}
        if not callable(found) or not {"shape", "classes"} <= set(parameters):
            raise UsageError(f"{found!r} is no class or function of shape and classes that gives a network")
        return cls(found, scales="scale" in parameters)


def glorot_normal(model: nn.Module) -> None:
    """N(0, 2 / (fan_in + fan_out)), biases 0 (Glorot and Bengio 2010): Frankle and Carbin's 2019 initialisation."""
    _draw(model, nn.init.xavier_normal_)


def kaiming_normal(model: nn.Module) -> None:
    """N(0, 2 / fan_in), biases 0 (He et al. 2015): open_lth's default, as far as weights go."""
    _draw(model, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))


def caffe_xavier(model: nn.Module) -> None:
    """U(-a, a) with a = sqrt(3 / fan_in), biases 0: what Caffe calls xavier."""
    _draw(model, lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="linear"))


def _draw(model: nn.Module, draw: Callable[[Tensor], object]) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
