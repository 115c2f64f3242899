"""Profiles of GPUs: estimates against timings, and refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from samples import sample
from ticketry.budgets.model_costs import GPUS, Estimator
from ticketry.core.mask import Mask
from ticketry.core.synthetic_masks import synthetic
from ticketry.errors import CostError, UsageError
from ticketry.tasks.models import build
from ticketry_engine.costs import UnsupportedError

H100 = GPUS["h100-bf16"]


def small() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(256, 64, 32, 32)


@pytest.fixture(scope="module")
def costs(images: torch.Tensor) -> tk.cost.CostModel:
    return tk.cost.model(small(), images, target="h100-bf16", granularities=("weights", "rows:64"))


@pytest.mark.parametrize(
    ("name", "rows", "density", "milliseconds"),
    # Timed on an NVIDIA H100 80GB HBM3: docs/engine-gpu.md.
    sample([("resnet-18", 64, 0.2, 0.543), ("resnet-18", 0, 1.0, 0.983), ("vgg-16", 64, 0.1, 0.321)], 1),
)
def test_estimates_are_what_was_timed(name: str, rows: int, density: float, milliseconds: float) -> None:
    model = build(name, shape=(3, 32, 32), classes=1000).eval()
    estimator = Estimator(model, torch.randn(256, 3, 32, 32), H100)
    mask = synthetic(model, f"groups:{rows}:any", density) if rows else None
    seconds = estimator.dense_seconds if mask is None else estimator.seconds(mask)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=H100.spread)


def test_a_profile_covers_the_whole_call(images: torch.Tensor) -> None:
    estimator = Estimator(small(), images, H100)
    profile = estimator.profile(Mask({name: torch.ones(estimator.shape(name)) == 1 for name in estimator.names}), None)
    assert profile.layers == estimator.dense_profile.layers
    # 2 x 256 x 32 x 32 x 128 x 1152 operations take 103 us at the 750 TFLOP/s of a large convolution
    assert 0.6 * 103e-6 < profile.layers["2.weight"] < 3 * 103e-6
    assert set(profile.others) >= {"inputs and outputs", "global_avg_pool"}


def test_rows_save_time_and_single_weights_do_not(costs: tk.cost.CostModel) -> None:
    assert costs.about["processor"] == "NVIDIA H100 80GB HBM3"
    layer = costs.layers["2.weight"]
    assert layer.curves["weights"].at(0.05) == pytest.approx(layer.dense, rel=0.01)
    assert layer.curves["rows:64"].at(0.05) < 0.6 * layer.dense


def test_other_formats_and_layouts_are_refused(images: torch.Tensor) -> None:
    assert tk.cost.profile("h100-bf16") is H100
    with pytest.raises(CostError, match="is of bf16, and fp16 is asked for"):
        tk.cost.model(small(), images, target="h100-bf16", precision="fp16")
    with pytest.raises(CostError, match="h100-bf16"):
        tk.cost.model(small(), images, target="h100-fp8")
    with pytest.raises(UsageError, match="there is no profile 'abacus': there are h100-bf16"):
        tk.cost.profile("abacus")
    with pytest.raises(UnsupportedError, match="layouts"):
        Estimator(small(), images, H100).profile(tk.prune(small(), 0.5), "pixels")


def test_a_model_in_the_format_of_the_profile_is_not_converted(images: torch.Tensor) -> None:
    whole = Estimator(small(), images, H100).dense_profile.others["inputs and outputs"]
    own = Estimator(small().bfloat16(), images.bfloat16(), H100).dense_profile.others["inputs and outputs"]
    assert own == 0.0
    assert whole > 6 * images.numel() / 4e12  # 4 bytes read and 2 written, at no more than 4 TB/s
