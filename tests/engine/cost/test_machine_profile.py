"""Profiles of machines: what is counted of a plan, how coefficients are fitted, files, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import nn

import ticketry as tk
from samples import sample
from ticketry.engine.cost.calibration import Sample, coefficients_of, left_out
from ticketry.engine.cost.estimated import ProcessorEstimator
from ticketry.engine.cost.fitting import fitted, non_negative
from ticketry.engine.cost.machine_profile import MachineProfile, kept_path, names
from ticketry.engine.cost.planned import planned
from ticketry.engine.cost.work import Caches, Work
from ticketry.errors import CostError, UsageError
from ticketry_engine.capture import capture
from ticketry_engine.kernels.target import foreign

CACHES = Caches(2**15, 2**20, 2**24)


def network():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 64, 10)).eval()


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def profile():
    return tk.cost.profile("zen4-avx512")


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_of_at_least_zero(seed):
    source = np.random.default_rng(seed)
    matrix, goal = source.normal(size=(30, 8)), source.normal(size=30)
    np.testing.assert_allclose(non_negative(matrix, goal), nnls(matrix, goal)[0], atol=1e-8)


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
        samples.append(Sample(f"network {number % 4}", works, 4.0, seconds, sum(seconds)))
    found = coefficients_of(samples)["sums"]
    assert found == pytest.approx(truth, rel=1e-3)
    assert max(map(abs, left_out(samples))) < 1e-3


def test_what_is_never_there_has_no_coefficient():
    assert fitted([{"a": 1.0, "b": 0.0}, {"a": 2.0}], [1e-3, 2e-3]) == pytest.approx({"a": 1e-3}, rel=1e-3)


@pytest.mark.parametrize("layout", ["planes", "pixels"])
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_sums_of_a_plan_are_the_multiplications(layout, density):
    """Of padding there are fewer; of the last vector and of blocks of rows that share columns there are more."""
    model = network()
    mask = tk.prune(model, density, distribution="uniform")
    kept = tk.cost.model(model, X, unit="multiplications").estimate(mask).value
    if layout == "pixels" and density < 1:
        return  # of single weights, rows of pixels are added up whole
    found = planned(capture(model, mask, X), len(X), foreign("avx512"), CACHES, "fp32", layout)
    sums = 16 * sum(work.features.get("sum", 0.0) for work in found.works)
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


@pytest.mark.parametrize("name", names())
def test_kernels_that_are_younger_than_a_profile_are_estimated_by_others(name):
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(1, 3, 30, 30)
    mask = tk.prune(model, 0.3, distribution="uniform")
    profile = tk.cost.profile(name)
    found = planned(capture(model, mask, x), 1, profile.target, CACHES, "fp32", "planes")
    kinds = {work.kind for work in found.works}
    assert {"taps", "dots of a position"} <= kinds
    assert all(profile.seconds(work) > 0 for work in found.works)
    kept = tk.cost.model(model, x, unit="multiplications").estimate(mask).value
    sums = profile.lanes * sum(work.features.get("sum", 0.0) for work in found.works)
    assert 0.8 * kept < sums < 2.5 * kept


def test_estimates_rise_with_density_and_batch(profile):
    model = network()
    costs = tk.cost.model(model, X, profile, threads=1)
    assert costs.about["how"] == "estimated by a profile of the machine"
    assert costs.spread == profile.spread
    values = [costs.estimate(tk.prune(model, density, distribution="uniform")).value for density in (0.05, 0.2, 0.5)]
    assert values == sorted(values)
    assert costs.floor < values[0] < values[-1] < costs.dense
    more = tk.cost.model(model, X.repeat(4, 1, 1, 1), profile, threads=1)
    assert 2 * costs.dense < more.dense < 6 * costs.dense
    other = tk.cost.model(model, X, "zen4-avx2", threads=1)
    assert costs.dense / 2 < other.dense < 3 * costs.dense
    assert other.about["vectors"] == "avx2"


def test_an_estimate_is_near_the_plan_of_the_mask_itself(profile):
    model = network()
    costs, estimator = tk.cost.model(model, X, profile, threads=1), ProcessorEstimator(model, X, profile)
    mask = tk.prune(model, 0.2, distribution="uniform")
    assert costs.estimate(mask).value == pytest.approx(estimator.seconds(mask), rel=0.15)


def test_layers_in_torch_are_told(profile):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv3d(2, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.two(self.one(x).mean((2, 3, 4)))

    costs = tk.cost.model(Odd().eval(), torch.randn(2, 2, 6, 6, 6), profile, threads=1)
    assert costs.layers["one.weight"].curves == {}
    assert "in torch, which no mask makes faster: one.weight" in str(costs)


def test_a_file_is_read_as_it_was_written_or_not_at_all(profile, tmp_path):
    path = profile.save(tmp_path / "laptop.json")
    assert tk.cost.profile(path) == profile
    assert tk.cost.model(network(), X, path, threads=1) == tk.cost.model(network(), X, profile, threads=1)
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
        tk.cost.model(network(), X, profile, threads=2)
    with pytest.raises(CostError, match="is of precision fp32, and bf16"):
        tk.cost.model(network(), X, profile, threads=1, precision="bf16")
    with pytest.raises(
        UsageError,
        match=r"there is no profile 'abacus': there are granite-rapids-avx512, zen1-avx2, .*, zen5-avx512, h100-bf16,",
    ):
        tk.cost.profile("abacus")
    with pytest.raises(CostError, match="neither 'this machine'"):
        tk.cost.model(network(), X, "abacus", threads=1)
    with pytest.raises(UsageError, match="no network 'many' to calibrate with, but narrow"):
        tk.cost.calibrate(networks=["many"])
    empty = MachineProfile({}, *(getattr(profile, name) for name in profile.__struct_fields__[1:]))
    with pytest.raises(CostError, match="does not know"):
        tk.cost.model(network(), X, empty, threads=1)


def test_a_machine_that_was_not_calibrated_says_how(profile, monkeypatch, tmp_path):
    monkeypatch.setattr("ticketry.engine.cost.machine_profile.folder", lambda name: tmp_path)
    with pytest.raises(CostError, match=r"tk.cost.calibrate\(\) makes one"):
        tk.cost.model(network(), X, "calibrated", threads=1)
    from ticketry_engine.kernels.target import target

    profile.save(kept_path(target().name, "fp32"))
    here = profile.about["processor"]
    monkeypatch.setattr("ticketry_engine.bench.machine.processor", lambda: (here, set()))
    assert tk.cost.model(network(), X, "calibrated", threads=1) == tk.cost.model(network(), X, profile, threads=1)
    monkeypatch.setattr("ticketry_engine.bench.machine.processor", lambda: ("Abacus 3", set()))
    with pytest.raises(CostError, match="another processor"):
        tk.cost.model(network(), X, "calibrated", threads=1)


@pytest.mark.slow
def test_a_calibrated_machine_estimates_what_it_was_calibrated_with(tmp_path, monkeypatch):
    monkeypatch.setattr("ticketry.engine.cost.machine_profile.folder", lambda name: tmp_path)
    said = []
    made = tk.cost.calibrate(networks=["linear"], say=said.append)
    assert said[0] == "timing the network 'linear'"
    assert tk.cost.profile(next(tmp_path.glob("*.json"))) == made
    model = nn.Sequential(nn.Linear(600, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)).eval()
    x = torch.randn(64, 600)
    measured = tk.cost.model(model, x, threads=1).dense
    assert 0.5 < tk.cost.model(model, x, made, threads=1).dense / measured < 2


@pytest.mark.parametrize("name", sample(names(), 1))
def test_a_layer_that_stays_dense_is_not_far_dearer_than_one_that_nearly_does(name: str) -> None:
    """Of a profile that was fitted to few large values, bytes could cost anything where there are many."""
    model = tk.task("cifar10", model="resnet-20").build().eval()
    costs = tk.cost.model(model, torch.randn(16, 3, 64, 64), target=name)
    for layer in costs.layers.values():
        assert layer.at(1.0) < 10 * layer.at(0.8)
