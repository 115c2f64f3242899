"""Estimates for a GPU that is not here, against what was timed on one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry.core.synthetic_masks import synthetic
from ticketry.engine.cost.on_gpu import GPUS, GpuEstimator
from ticketry.errors import CostError
from ticketry.tasks.models.networks import build
from ticketry_engine.plan.value_axes import UnsupportedError

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
    [
        ("resnet-18", 0, 1.0, 0.983),
        ("resnet-18", 64, 0.2, 0.543),
        ("resnet-18", 128, 0.2, 0.506),
        ("vgg-16", 0, 1.0, 0.620),
        ("vgg-16", 64, 0.1, 0.321),
    ],
)
def test_estimates_are_what_was_timed(name: str, rows: int, density: float, milliseconds: float) -> None:
    model = build(name, shape=(3, 32, 32), classes=1000).eval()
    estimator = GpuEstimator(model, torch.randn(256, 3, 32, 32), H100)
    mask = synthetic(model, f"groups:{rows}:any", density) if rows else None
    seconds = estimator.dense_seconds if mask is None else estimator.seconds(mask)
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=H100.spread)


def test_what_is_booked_is_the_whole_call(images: torch.Tensor) -> None:
    estimator = GpuEstimator(small(), images, H100)
    profile = estimator.profile(Mask({name: torch.ones(estimator.shape(name)) == 1 for name in estimator.names}), None)
    assert profile.layers == estimator.dense_profile.layers
    # 2 x 256 x 32 x 32 x 128 x 1152 operations take 103 us at the 750 TFLOP/s of a large convolution
    assert 0.6 * 103e-6 < profile.layers["2.weight"] < 3 * 103e-6
    assert set(profile.others) >= {"inputs and outputs", "global_avg_pool"}


def test_a_model_of_the_profiles_own_format_converts_nothing(images: torch.Tensor) -> None:
    whole = GpuEstimator(small(), images, H100).dense_profile.others["inputs and outputs"]
    own = GpuEstimator(small().bfloat16(), images.bfloat16(), H100).dense_profile.others["inputs and outputs"]
    assert own == 0.0
    assert whole > 6 * images.numel() / 4e12  # 4 bytes read and 2 written, at no more than 4 TB/s


def test_single_weights_save_nothing_and_rows_do(costs: tk.cost.CostModel) -> None:
    layer = costs.layers["2.weight"]
    assert layer.curves["weights"].at(0.05) == pytest.approx(layer.dense, rel=0.01)
    assert layer.curves["rows:64"].at(0.05) < 0.6 * layer.dense


@pytest.mark.slow
def test_a_mask_for_a_time_there(costs: tk.cost.CostModel, images: torch.Tensor) -> None:
    model = small()
    budget = 0.8 * costs.dense
    with pytest.warns(UserWarning, match="estimated and not measured: the costs are of another machine"):
        mask = tk.prune(model, time=0.8, base="engine", structure="rows:64", cost=costs, example_inputs=images)
    assert costs.estimate(mask).value == pytest.approx(budget, rel=0.05)
    found = GpuEstimator(model, images, H100).seconds(mask)
    assert found == pytest.approx(budget, rel=H100.spread)


def test_costs_are_kept_in_a_file(costs: tk.cost.CostModel, tmp_path) -> None:
    assert tk.cost.load(costs.save(tmp_path / "costs.json")) == costs
    assert costs.about["processor"] == "NVIDIA H100 80GB HBM3"
    assert costs.spread == H100.spread


def test_what_cannot_be(images: torch.Tensor) -> None:
    with pytest.raises(CostError, match="is of bf16, and fp16 is asked for"):
        tk.cost.model(small(), images, target="h100-bf16", precision="fp16")
    with pytest.raises(CostError, match="h100-bf16"):
        tk.cost.model(small(), images, target="h100-fp8")
    with pytest.raises(UnsupportedError, match="layouts"):
        GpuEstimator(small(), images, H100).profile(tk.prune(small(), 0.5), "pixels")


def test_its_name_is_known_beside_those_of_processors() -> None:
    assert tk.cost.profile("h100-bf16") is H100
    assert "NVIDIA H100 80GB HBM3, bf16; an estimate is within 20 %" in str(H100)
