"""How weights start. Each function draws from torch's global random state, layer by layer in order of definition."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


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
