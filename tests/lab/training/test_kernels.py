"""Segments in sparse kernels: which ones are, the same training as in torch, and the same bits however it is done."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norms_task import NormsTask
from ticketry.core.mask import Mask
from ticketry.core.prune import prune
from ticketry.core.scope import scope
from ticketry.errors import CaptureError, EngineError, MissingExtraError, UsageError
from ticketry.lab.costs.step_cost import step_flops, step_memory
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training import kernels as kernels_module
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.kernels import LEAST, compute_mac_shares, name_local_kernels
from ticketry.lab.training.segment import Segment
from ticketry.lab.training.state import initial_state, rebuild_model
from ticketry.lab.training.supervised import evaluate
from ticketry.lab.training.variants import Penalty
from ticketry.search.dynamic import first_batch_gradient
from ticketry.search.gating.gating import Gating
from ticketry.tasks.recipe import Recipe
from ticketry_engine import machine
from ticketry_engine.kernels import target as target_module

pytest.importorskip("llvmlite")

needs_bfloat16 = pytest.mark.skipif(not target_module.target().bf16, reason="the processor does not multiply bfloat16")

RECIPE = Recipe(length="60it", batch=64, lr=0.05, momentum=0.9, weight_decay=1e-4)
MakeLab = Callable[..., Lab]


@pytest.fixture(autouse=True)
def a_processor_of_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests say the same everywhere."""
    monkeypatch.setattr(kernels_module, "PROCESSORS", ("avx512", "avx2", "aarch64", "generic"))


@pytest.fixture
def made(tmp_path: Path) -> MakeLab:
    """A lab with some kernels, each on a store of its own."""
    return lambda kernels, **more: Lab(tmp_path / f"{kernels}-{len(list(tmp_path.iterdir()))}", kernels=kernels, **more)


def mask_of(task: Any, density: float = 0.2, seed: int = 1) -> Mask:
    return prune(rebuild_model(task, initial_state(task, 0)), density, score="random", seed=seed)


def segment_of(lab: Lab, density: float = 0.2, **more: Any) -> Segment:
    task = NormsTask()
    return lab.segment(task, start=0, mask=mask_of(task, density), recipe=RECIPE, **more)


def everything(store: Store, segment: Segment) -> dict[str, object]:
    record = store.load_result(segment.trajectory, segment.last)
    assert record is not None
    return {name: record[name] for name in ("segment", "step", "model", "training", "metrics", "loss")}


# -- which segments ----------------------------------------------------------------------------------------------------


def test_sparse_kernels_are_in_the_key_with_version_and_processor(made):
    segment = segment_of(made("sparse", precision="fp32"))
    told = segment.describe()["arithmetic"]["kernels"]
    assert told == name_local_kernels()
    assert told.split()[2] == target_module.target().name
    assert Segment.from_description(segment.describe(), segment.task) == segment
    for other in ("sparse 0 avx2", "dense"):
        changed = replace(segment, arithmetic=replace(segment.arithmetic, kernels=other))
        assert changed.trajectory != segment.trajectory


DENSITIES = [(0.2, 0.1, 1.0), (0.25, 1.0, 1.0), (0.9, 0.8, 0.7)]


@pytest.mark.parametrize("densities", DENSITIES, ids=str)
def test_auto_takes_what_leaves_out_enough(made, densities, monkeypatch):
    """Products counted by hand: 8x1x3x3 weights on 6x6 pixels, 12x8x3x3 on 4x4, 10x12 on one."""
    monkeypatch.setattr(kernels_module, "DENSE_PROCESSORS", ())
    task = NormsTask()
    products = {"0.weight": 72 * 36, "3.weight": 864 * 16, "8.weight": 120}
    shares = dict(zip(products, densities, strict=True))
    weights = {name: torch.arange(math.prod(shape)).view(shape) for name, shape in mask_of(task).shapes.items()}
    mask = Mask({name: weight < round(shares[name] * weight.numel()) for name, weight in weights.items()})
    # The kernels take no layer above a half, but for those with few weights a row next to one that they take.
    taken = [] if min(densities[:2]) > 0.5 else [*products] if densities[1] <= 0.5 else ["0.weight"]
    kept = {name: round(shares[name] * weight.numel()) / weight.numel() for name, weight in weights.items()}
    share = sum(products[name] * (1 - kept[name]) for name in taken) / sum(products.values())
    found = compute_mac_shares(rebuild_model(task, initial_state(task, 0)), mask, made("dense").course(task).inputs(2))
    assert found["left_out"] == pytest.approx(share, abs=1e-6)
    assert found["inside"] == pytest.approx(sum(products[name] for name in taken) / sum(products.values()), abs=1e-6)
    for kernels, enough in (("auto", share >= LEAST["fp32"]), ("sparse", share > 0)):
        segment = made(kernels, precision="fp32").segment(task, start=0, mask=mask, recipe=RECIPE)
        assert segment.arithmetic.kernels == (name_local_kernels() if enough else "dense")


def test_dense_networks_gates_and_small_networks_stay_dense(made):
    task = NormsTask()
    names = tuple(scope(task.build()))
    for kernels in ("auto", "sparse"):
        lab = made(kernels, precision="fp32")
        whole = mask_of(task, 0.2)
        assert lab.segment(task, start=0).arithmetic.kernels == "dense"
        gates = lab.segment(task, start=0, mask=whole, variants=(Gating(scope=names),))
        assert gates.arithmetic.kernels == "dense"
        assert lab.segment(task, start=0, mask=whole, shrunk=True).arithmetic.kernels == "dense"
        penalty = Penalty(kind="hoyer_square", strength=1e-4, names=names)
        assert lab.segment(task, start=0, mask=whole, variants=(penalty,)).arithmetic.kernels == name_local_kernels()


class DeepTask(NormsTask):
    """Five convolutions in a row, of which the first has 1/20 of the products of all, and the linear layer 1/1000."""

    width = 8

    def key(self) -> Mapping[str, object]:
        return {"name": "deep"}

    def build(self) -> nn.Module:
        width = self.width
        layers = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class WideTask(DeepTask):
    """Whose convolutions may keep their columns sixteen rows together."""

    width = 16

    def key(self) -> Mapping[str, object]:
        return {"name": "wide"}


@pytest.fixture
def dense_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests say the same wherever kernels take dense convolutions."""
    if target_module.target().registers < 32:
        pytest.skip("few registers: dense convolutions run in torch")
    monkeypatch.setattr(kernels_module, "DENSE_PROCESSORS", kernels_module.PROCESSORS)


@pytest.mark.usefixtures("dense_kernels")
@pytest.mark.parametrize("density", [None, 0.8])
def test_auto_takes_dense_networks_that_kernels_do_all_of(made, density):
    task = DeepTask()
    mask = None if density is None else mask_of(task, density)

    def chosen(kernels: str, batch: int) -> str:
        recipe = RECIPE.changed(batch=batch)
        return made(kernels, precision="fp32").segment(task, start=0, mask=mask, recipe=recipe).arithmetic.kernels

    assert chosen("auto", 64) == chosen("auto", 30) == name_local_kernels()
    assert chosen("auto", 8) == "dense"  # half of a block of images would be computed for nothing
    assert chosen("auto", 20) == "dense"
    assert density == 0.8 or chosen("sparse", 64) == "dense"  # the first layer is spared a fifth


@pytest.mark.usefixtures("dense_kernels")
def test_gates_are_not_put_into_a_segment_of_kernels(made):
    whole = made("auto", precision="fp32").segment(DeepTask(), start=0, recipe=RECIPE)
    with pytest.raises(UsageError, match=r"training with gates computes in torch.*Lab\.segment"):
        replace(whole, variants=(Gating(scope=("0.weight",)),))


@pytest.mark.usefixtures("dense_kernels")
def test_a_dense_network_trains_in_kernels_as_in_torch(made):
    found = []
    for kernels in ("dense", "auto"):
        lab = made(kernels, precision="fp32")
        segment = lab.segment(DeepTask(), start=0, recipe=RECIPE, last=50)
        found.append(losses_of(lab, segment))
    dense, auto = found
    assert max(abs(one - other) for one, other in zip(dense, auto, strict=True)) < 1e-3
    assert dense != auto  # by rounding: they were other kernels


def test_a_tied_layer_counts_under_the_name_that_the_mask_has():
    """Products counted by hand: two linear layers of 32 x 200 and 200 x 32, the latter with the embedding's weight."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Embedding(200, 32), nn.Linear(32, 200)
            self.between = nn.Linear(32, 32)
            self.decoder.weight = self.encoder.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decoder(torch.tanh(self.between(self.encoder(tokens))))

    model = Tied()
    mask = Mask(
        {name: torch.arange(math.prod(shape)).view(shape) % 10 == 0 for name, shape in scope(model).shapes.items()}
    )
    assert [*mask] == ["encoder.weight", "between.weight"]
    share = compute_mac_shares(model, mask, torch.zeros(4, 32, dtype=torch.int64))
    assert share["inside"] == 1.0
    kept = math.ceil(32 * 200 / 10) + math.ceil(32 * 32 / 10)
    assert share["left_out"] == pytest.approx(1 - kept / (32 * 200 + 32 * 32), abs=1e-5)


# -- where it cannot be ------------------------------------------------------------------------------------------------


class Picky(nn.Module):
    """Of a few examples it cannot tell anything, and it is followed on sixteen at most."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(288, 10)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < 17:
            raise ValueError("seventeen at least")
        return self.head(self.conv(x).flatten(1))


class PickyTask(NormsTask):
    def key(self) -> Mapping[str, object]:
        return {"name": "picky"}

    def build(self) -> nn.Module:
        return Picky()


def test_unknown_kernels(tmp_path):
    with pytest.raises(UsageError, match="kernels 'fast' is not known: auto, dense, sparse"):
        Lab(tmp_path, kernels="fast")


def test_a_processor_without_bfloat16(made, monkeypatch):
    here = replace(machine(), bf16=False)
    monkeypatch.setattr(kernels_module, "machine", lambda: here)
    with pytest.raises(UsageError, match=r"not multiply bfloat16.*--precision fp32, or --kernels dense"):
        made("sparse", precision="bf16").segment(NormsTask(), start=0)
    assert segment_of(made("auto", precision="bf16")).arithmetic.kernels == "dense"


@needs_bfloat16
def test_bfloat16_has_a_name_of_its_own(made):
    for kernels in ("sparse", "auto"):
        segment = segment_of(made(kernels, precision="bf16"), density=0.1)
        tiles = " amx" if target_module.target().tiles else ""
        assert segment.arithmetic.kernels == name_local_kernels("bf16") == f"{name_local_kernels()} bf16{tiles}"
        assert segment_of(made(kernels, precision="bf16"), density=0.9).arithmetic.kernels == "dense"


@needs_bfloat16
@pytest.mark.parametrize(("tiles", "kernels"), [(False, "sparse"), (True, "dense")])
def test_auto_wants_more_left_out_where_dense_steps_have_tiles(made, monkeypatch, tiles, kernels):
    """Single weights, of which three tenths are kept: groups of sixteen rows gain there all the same."""
    here = replace(machine(), tiles=tiles)
    monkeypatch.setattr(kernels_module, "machine", lambda: here)
    task, lab = WideTask(), made("auto", precision="bf16")
    single = prune(
        rebuild_model(task, initial_state(task, 0)), density=0.3, score="random", distribution="uniform", seed=0
    )
    groups = {name: kept[:1].expand_as(kept) if len(kept) == 16 else kept for name, kept in single.items()}

    def chosen(mask: Mask) -> str:
        return lab.segment(task, start=0, mask=mask, recipe=RECIPE).arithmetic.kernels.partition(" ")[0]

    assert chosen(single) == kernels
    assert chosen(Mask(groups)) == "sparse"


def test_a_gpu(made, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"compute on the CPU.*--device cpu"):
        made("sparse", precision="fp32").segment(NormsTask(), start=0)
    assert segment_of(made("auto", precision="fp32")).arithmetic.kernels == "dense"


def test_a_network_that_cannot_be_followed(made):
    """Said before anything is trained, the dense network too."""
    task = PickyTask()
    with pytest.raises(
        CaptureError, match=r"norms cannot be trained in sparse kernels: the example.*seventeen at least"
    ):
        made("sparse", precision="fp32").segment(task, start=0)
    auto = made("auto", precision="fp32")
    assert auto.segment(task, start=0, mask=mask_of(task)).arithmetic.kernels == "dense"


def test_without_llvmlite(made, monkeypatch):
    def missing() -> None:
        raise MissingExtraError("llvmlite", "engine", "making kernels for this processor")

    monkeypatch.setattr(kernels_module, "machine", missing)
    with pytest.raises(MissingExtraError, match="llvmlite"):
        made("sparse", precision="fp32").segment(NormsTask(), start=0)
    assert segment_of(made("auto", precision="fp32")).arithmetic.kernels == "dense"


def test_a_training_of_another_processor(made):
    lab = made("sparse", precision="fp32")
    segment = segment_of(lab)
    other = replace(segment, arithmetic=replace(segment.arithmetic, kernels="sparse 0 of-another"))
    with pytest.raises(EngineError, match=r"'sparse 0 of-another', and those of this machine are 'sparse"):
        lab.train(other)


@needs_bfloat16
def test_a_training_in_bfloat16(made):
    """Losses as far from those in float32 as autocast's are, weights that are removed at 0, metrics those of torch."""
    lab = made("sparse", precision="bf16")
    segment = segment_of(lab, last=50)
    result = lab.train(segment)
    found = [loss for _, loss in result.record["loss"]]
    autocast = losses_of(other := made("dense", precision="bf16"), segment_of(other, last=50))
    plain = losses_of(other := made("dense", precision="fp32"), segment_of(other, last=50))
    assert len(found) == len(plain) == 50
    assert found != autocast
    far = max(abs(one - other) for one, other in zip(autocast, plain, strict=True))
    assert 0 < max(abs(one - other) for one, other in zip(found, plain, strict=True)) <= max(2 * far, 0.02)
    state, mask = lab.state(result), lab.store.get_mask(segment.mask)
    assert all(state[name].dtype == torch.float32 and not state[name][~kept].any() for name, kept in mask.items())


# -- the same training -------------------------------------------------------------------------------------------------


def losses_of(lab: Lab, segment: Segment) -> list[float]:
    return [loss for _, loss in lab.train(segment).record["loss"]]


def test_training_is_that_of_torch_but_for_rounding(made):
    """Metrics are to the bit what a lab without sparse kernels measures of the weights."""
    dense = losses_of(lab := made("dense"), segment_of(lab, last=50))
    lab = made("sparse", precision="fp32")
    segment = segment_of(lab, last=50)
    result = lab.train(segment)
    sparse = [loss for _, loss in result.record["loss"]]
    assert len(dense) == len(sparse) == 50
    assert max(abs(one - other) for one, other in zip(dense, sparse, strict=True)) < 1e-3
    assert dense != sparse  # by rounding: they were other kernels
    plain = lab.arithmetic(segment.task)
    model = plain.place(rebuild_model(segment.task, lab.state(result)))
    found = evaluate(segment.task, lab.course(segment.task), model, "test", plain)
    assert result.metrics["test"] == {name: round(value, 6) for name, value in found.items()}


def test_removed_weights_stay_at_zero_with_a_penalty_too(made):
    lab = made("sparse", precision="fp32")
    names = tuple(scope(NormsTask().build()))
    segment = segment_of(lab, last=10, variants=(Penalty(kind="hoyer_square", strength=1e-2, names=names),))
    result = lab.train(segment, measure=False)
    state, mask = lab.state(result), lab.store.get_mask(segment.mask)
    assert all(not state[name][~kept].any() for name, kept in mask.items())
    assert result.model != lab.train(segment_of(lab, last=10), measure=False).model


def test_the_gradient_that_masks_grow_by_is_of_removed_weights_too(made):
    lab = made("sparse", precision="fp32")
    segment = segment_of(lab)
    result = lab.train(segment.shortened_to(5), measure=False)
    start = replace(segment.start, seed=None, state=result.model)
    onward = replace(segment, start=start, first=5)
    plain = replace(onward, arithmetic=lab.arithmetic(segment.task))
    mask = lab.store.get_mask(segment.mask)
    found, wanted = (first_batch_gradient(lab, one) for one in (onward, plain))
    for name, kept in mask.items():
        assert found[name][~kept].any()
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)


# -- the same bits -----------------------------------------------------------------------------------------------------


def test_costs_are_told_as_of_torch(made):
    lab = made("sparse", precision="fp32")
    segment = segment_of(lab)
    plain = replace(segment, arithmetic=lab.arithmetic(segment.task))
    assert step_flops(lab, segment) == step_flops(lab, plain)
    assert step_memory(lab, segment) == step_memory(lab, plain)


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from test_kernels import Watch, segment_of, execute
from ticketry.lab.lab import Lab
class KilledAt(Watch):
    def report_progress(self, segment, step):
        if step >= 37:
            os.kill(os.getpid(), signal.SIGKILL)
lab = Lab({store!r}, kernels="sparse", precision={precision!r})
execute(lab.store, None, segment_of(lab), (), KilledAt(checkpoint_seconds=1e-9))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=[needs_bfloat16, pytest.mark.slow])])
def test_killed_and_gone_on_with(made, precision, tmp_path):
    whole = made("sparse", precision=precision)
    segment = segment_of(whole)
    whole.train(segment)
    paths, store = [str(Path(__file__).parent), *sys.path], tmp_path / "killed"
    script = KILLED.format(paths=paths, store=str(store), precision=precision)
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -signal.SIGKILL
    with Lab(store, kernels="sparse", precision=precision) as lab:
        step, _ = lab.store.newest_checkpoint(segment.trajectory, segment.last)
        assert 0 < step <= 37
        assert execute(lab.store, None, segment_of(lab), (), Watch()).steps == segment.last - step
        assert everything(lab.store, segment) == everything(whole.store, segment)
