"""Profiles of processors and GPUs: work of kernels, fitted coefficients, estimates, files, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import nn

import ticketry as tk
from samples import sample
from ticketry.budgets.calibration import Sample, cross_validate, fit, fit_coefficients, solve_non_negative
from ticketry.budgets.profiles import GPUS, Estimator, MachineProfile, cached_path, processor_names
from ticketry.core.mask import Mask
from ticketry.core.synthetic_masks import synthetic
from ticketry.errors import CostError, UsageError
from ticketry.tasks.models.networks import build
from ticketry_engine.costs.kernel_work import Caches, Processor, TimedOperations, Work, plan_work
from ticketry_engine.costs.masked_model import MaskedModel, UnsupportedError

AVX512 = Processor("avx512", 16, 32, True, Caches(2**15, 2**20, 2**24))


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 64, 10)).eval()


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def profile():
    return tk.cost.profile("zen4-avx512")


def test_non_negative_least_squares():
    source = np.random.default_rng(0)
    matrix, goal = source.normal(size=(30, 8)), source.normal(size=30)
    np.testing.assert_allclose(solve_non_negative(matrix, goal), nnls(matrix, goal)[0], atol=1e-8)


def test_coefficients_are_found_again():
    truth = {"sum": 2e-9, "load": 5e-10, "op": 3e-7}
    source = np.random.default_rng(0)
    samples = []
    for number in range(40):
        works = [
            Work("a", "sums", {"sum": 1e4 * float(source.random()), "load": 1e5 * float(source.random()), "op": 1.0})
            for _ in range(3)
        ]
        seconds = tuple(4 * sum(truth[name] * value for name, value in work.features.items()) for work in works)
        samples.append(Sample(f"network {number % 4}", TimedOperations(works, 4.0, seconds, sum(seconds))))
    found = fit_coefficients(samples)["sums"]
    assert found == pytest.approx(truth, rel=1e-3)
    assert max(map(abs, cross_validate(samples))) < 1e-3


def test_features_that_never_occur_have_no_coefficient():
    assert fit([{"a": 1.0, "b": 0.0}, {"a": 2.0}], [1e-3, 2e-3]) == pytest.approx({"a": 1e-3}, rel=1e-3)


@pytest.mark.parametrize(("layout", "density"), [("planes", 0.1), ("planes", 1.0), ("pixels", 1.0)])
def test_sums_of_a_plan_are_the_multiplications(layout, density):
    """Fewer with padding; more in partial vectors and in blocks of rows that share columns."""
    model = network()
    mask = tk.prune(model, density, distribution="uniform")
    kept = tk.cost.model(model, IMAGES, unit="multiplications").estimate(mask).value

    found = plan_work(MaskedModel(model, IMAGES, mask), mask, AVX512, layout=layout)
    sums = 16 * sum(work.features.get("sum", 0.0) for work in found.native)
    assert 0.8 * kept < sums < 2 * kept
    assert found.torch == []


class Gated(nn.Module):
    """A depthwise convolution and a gate over its channels."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 48, 3, 2, 1), nn.Conv2d(48, 48, 5, 1, 2, groups=48)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(48, 24, 1), nn.SiLU(), nn.Conv2d(24, 48, 1))

    def forward(self, x):
        y = self.depthwise(self.stem(x))
        return y * self.gate(y).sigmoid()


@pytest.mark.parametrize("name", sample(processor_names(), 1))
def test_kernels_that_a_profile_lacks_are_estimated_by_others(name):
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(1, 3, 30, 30)
    mask = tk.prune(model, 0.3, distribution="uniform")
    profile = tk.cost.profile(name)
    found = plan_work(MaskedModel(model, x, mask), mask, profile.processor, layout="planes")
    kinds = {work.kind for work in found.native}
    assert {"taps", "dots of a position"} <= kinds
    assert all(profile.seconds(work) > 0 for work in found.native)
    kept = tk.cost.model(model, x, unit="multiplications").estimate(mask).value
    sums = profile.lanes * sum(work.features.get("sum", 0.0) for work in found.native)
    assert 0.8 * kept < sums < 2.5 * kept


def test_estimates_rise_with_density_and_batch(profile):
    model = network()
    costs = tk.cost.model(model, IMAGES, profile, threads=1)
    assert costs.about["how"] == "estimated by a profile of the machine"
    assert costs.spread == profile.spread
    values = [costs.estimate(tk.prune(model, density, distribution="uniform")).value for density in (0.05, 0.2, 0.5)]
    assert values == sorted(values)
    assert costs.floor < values[0] < values[-1] < costs.dense
    more = tk.cost.model(model, IMAGES.repeat(4, 1, 1, 1), profile, threads=1)
    assert 2 * costs.dense < more.dense < 6 * costs.dense
    other = tk.cost.model(model, IMAGES, "zen4-avx2", threads=1)
    assert costs.dense / 2 < other.dense < 3 * costs.dense
    assert other.about["vectors"] == "avx2"


def test_an_estimate_is_near_the_plan_of_the_mask_itself(profile):
    model = network()
    costs, estimator = tk.cost.model(model, IMAGES, profile, threads=1), Estimator(model, IMAGES, profile)
    mask = tk.prune(model, 0.2, distribution="uniform")
    assert costs.estimate(mask).value == pytest.approx(estimator.seconds(mask), rel=0.15)


def test_a_changed_file_is_refused(profile, tmp_path):
    path = profile.save(tmp_path / "laptop.json")
    assert tk.cost.profile(path) == profile
    assert tk.cost.model(network(), IMAGES, path, threads=1) == tk.cost.model(network(), IMAGES, profile, threads=1)
    path.write_text(path.read_text().replace('"lanes": 16', '"lanes": 8'))
    with pytest.raises(CostError, match="damaged"):
        tk.cost.profile(path)
    path.write_text(json.dumps({"kind": "something"}))
    with pytest.raises(CostError, match="no profile of a machine"):
        tk.cost.profile(path)
    with pytest.raises(CostError, match="cannot be read"):
        tk.cost.profile(tmp_path / "none.json")


def test_other_threads_names_and_kernels_are_refused(profile):
    with pytest.raises(CostError, match="is of threads 1, and 2 is asked"):
        tk.cost.model(network(), IMAGES, profile, threads=2)
    with pytest.raises(CostError, match="is of precision fp32, and bf16"):
        tk.cost.model(network(), IMAGES, profile, threads=1, precision="bf16")
    with pytest.raises(
        UsageError,
        match=r"there is no profile 'abacus': there are granite-rapids-avx512, zen1-avx2, .*, zen5-avx512, h100-bf16,",
    ):
        tk.cost.profile("abacus")
    with pytest.raises(CostError, match="neither 'this machine'"):
        tk.cost.model(network(), IMAGES, "abacus", threads=1)
    with pytest.raises(UsageError, match="no network 'many' to calibrate with, but narrow"):
        tk.cost.calibrate(networks=["many"])
    empty = MachineProfile({}, *(getattr(profile, name) for name in profile.__struct_fields__[1:]))
    with pytest.raises(CostError, match="does not know"):
        tk.cost.model(network(), IMAGES, empty, threads=1)


def test_calibrated_machines(profile, monkeypatch, tmp_path):
    monkeypatch.setattr("ticketry.budgets.profiles.folder", lambda name: tmp_path)
    with pytest.raises(CostError, match=r"tk.cost.calibrate\(\) makes one"):
        tk.cost.model(network(), IMAGES, "calibrated", threads=1)
    from ticketry_engine.kernels.target import target

    profile.save(cached_path(target().name, "fp32"))
    here = profile.about["processor"]
    monkeypatch.setattr("ticketry_engine.bench.machine.processor", lambda: (here, set()))
    assert tk.cost.model(network(), IMAGES, "calibrated", threads=1) == tk.cost.model(
        network(), IMAGES, profile, threads=1
    )
    monkeypatch.setattr("ticketry_engine.bench.machine.processor", lambda: ("Abacus 3", set()))
    with pytest.raises(CostError, match="another processor"):
        tk.cost.model(network(), IMAGES, "calibrated", threads=1)


@pytest.mark.slow
def test_a_calibrated_machine_estimates_similar_networks(tmp_path, monkeypatch):
    monkeypatch.setattr("ticketry.budgets.profiles.folder", lambda name: tmp_path)
    said = []
    made = tk.cost.calibrate(networks=["linear"], say=said.append)
    assert said[0] == "timing the network 'linear'"
    assert tk.cost.profile(next(tmp_path.glob("*.json"))) == made
    model = nn.Sequential(nn.Linear(600, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)).eval()
    x = torch.randn(64, 600)
    measured = tk.cost.model(model, x, threads=1).dense
    assert 0.5 < tk.cost.model(model, x, made, threads=1).dense / measured < 2


@pytest.mark.parametrize("name", sample(processor_names(), 1))
def test_a_dense_layer_costs_about_as_much_as_a_nearly_dense_one(name: str) -> None:
    """Even where a layer has many more bytes than those that the profile was fitted to."""
    model = tk.task("cifar10", model="resnet-20").build().eval()
    costs = tk.cost.model(model, torch.randn(16, 3, 64, 64), target=name)
    for layer in costs.layers.values():
        assert layer.at(1.0) < 10 * layer.at(0.8)


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


def test_a_model_in_the_format_of_the_profile_is_not_converted(images: torch.Tensor) -> None:
    whole = Estimator(small(), images, H100).dense_profile.others["inputs and outputs"]
    own = Estimator(small().bfloat16(), images.bfloat16(), H100).dense_profile.others["inputs and outputs"]
    assert own == 0.0
    assert whole > 6 * images.numel() / 4e12  # 4 bytes read and 2 written, at no more than 4 TB/s


def test_rows_save_time_and_single_weights_do_not(costs: tk.cost.CostModel) -> None:
    assert costs.about["processor"] == "NVIDIA H100 80GB HBM3"
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
    found = Estimator(model, images, H100).seconds(mask)
    assert found == pytest.approx(budget, rel=H100.spread)


def test_other_formats_and_layouts_are_refused(images: torch.Tensor) -> None:
    assert tk.cost.profile("h100-bf16") is H100
    with pytest.raises(CostError, match="is of bf16, and fp16 is asked for"):
        tk.cost.model(small(), images, target="h100-bf16", precision="fp16")
    with pytest.raises(CostError, match="h100-bf16"):
        tk.cost.model(small(), images, target="h100-fp8")
    with pytest.raises(UnsupportedError, match="layouts"):
        Estimator(small(), images, H100).profile(tk.prune(small(), 0.5), "pixels")
