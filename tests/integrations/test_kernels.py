"""Callbacks with sparse kernels: the same training as without, in kernels, in the trainers and without one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import ticketry as tk
from ticketry.errors import EngineError, UsageError
from ticketry.integrations.jobs import GradualJob, HoldJob, Kernels, check_training_setup
from ticketry_engine.kernels.target import target
from ticketry_engine.training.region_step import RegionStep

pytest.importorskip("llvmlite")

STEPS = 12


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def data(count: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.randint(0, 10, (count,), generator=generator)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each region that runs in kernels."""
    found: list[int] = []
    run = RegionStep.__call__

    def counted(self: RegionStep, *args: Any) -> Any:
        found.append(len(found))
        return run(self, *args)

    monkeypatch.setattr(RegionStep, "__call__", counted)
    return found


def sparse(precision: str = "fp32") -> Kernels:
    return Kernels("sparse", data()[0][:2], precision)


def trained(job: Any, *, autocast: bool = False) -> tuple[list[float], nn.Module]:
    """Losses of some steps as a trainer has them, under autocast to bfloat16 or not, and the model."""
    model, (x, y), losses = network(), data(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    job.start(model.train(), STEPS)
    job.resume(0)
    for step in range(STEPS):
        job.before_step(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = cross_entropy(model(x), y)
        loss.backward()
        job.before_update(None)
        optimizer.step()
        job.after_update(step + 1)
        losses.append(loss.item())
    job.finish()
    return losses, model


def test_a_held_mask(calls: list[int]) -> None:
    mask = tk.prune(network(), density=0.2, score="random")
    dense, _ = trained(HoldJob(mask))
    assert not calls
    losses, model = trained(HoldJob(mask, sparse()))
    assert len(calls) == STEPS
    assert losses == pytest.approx(dense, abs=1e-3)
    assert not any(dict(model.named_parameters())[name][~kept].any() for name, kept in mask.items())
    model(data()[0])  # in training mode, and in torch again
    assert len(calls) == STEPS


@pytest.mark.skipif(not target("host").bf16, reason="this processor does not multiply bfloat16")
def test_in_bfloat16(calls: list[int]) -> None:
    """As near to float32 as autocast is, and not in float32: the losses are others."""
    mask = tk.prune(network(), density=0.2, score="random")
    exact, _ = trained(HoldJob(mask))
    rounded, _ = trained(HoldJob(mask), autocast=True)
    losses, model = trained(HoldJob(mask, sparse("bf16")), autocast=True)
    assert len(calls) == STEPS
    assert losses == pytest.approx(rounded, abs=0.02)
    assert max(abs(one - other) for one, other in zip(losses, exact, strict=True)) > 1e-5
    assert not any(dict(model.named_parameters())[name][~kept].any() for name, kept in mask.items())
    by_itself, _ = trained(HoldJob(mask, sparse("bf16")))
    assert by_itself == pytest.approx(losses, abs=0.02)


def test_a_mask_that_gets_smaller(calls: list[int]) -> None:
    options: Any = {"begin": "2it", "end": "8it", "frequency": "2it"}
    dense, _ = trained(GradualJob(0.1, options))
    job = GradualJob(0.1, options, sparse())
    losses, _ = trained(job)
    assert 0 < len(calls) < STEPS  # as soon as layers are sparse enough
    assert losses == pytest.approx(dense, abs=1e-3)
    assert job.mask.density == pytest.approx(0.1, abs=0.01)


def test_training_that_breaks_off_leaves_the_model_as_it_was() -> None:
    job = HoldJob(tk.prune(network(), density=0.2, score="random"), sparse())
    model = network().train()
    job.start(model, STEPS)
    job.before_step(0)
    assert "forward" in vars(model)
    job.release()
    assert "forward" not in vars(model)


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="kernels 'fast' is not known: dense, sparse"):
        Kernels("fast", None)
    for kernels, example in (("sparse", None), ("dense", torch.zeros(1))):
        with pytest.raises(UsageError, match="together"):
            Kernels(kernels, example)
    with pytest.raises(UsageError, match="precision is that of sparse kernels"):
        Kernels("dense", None, "bf16")
    with pytest.raises(UsageError, match="precision 'half' is not known: fp32, bf16"):
        Kernels("sparse", torch.zeros(1), "half")
    job = HoldJob(tk.prune(network(), density=0.2), sparse())
    with pytest.raises(UsageError, match="trains in one process so far, and this training has 2"):
        check_training_setup(job, optimizers=1, processes=2)
    with pytest.raises(EngineError, match="computes in float32 on the CPU"):
        job.start(network().double(), STEPS)


@pytest.mark.parametrize("half", [False, True])
def test_in_lightning(tmp_path: Path, calls: list[int], half: bool, example: Callable[[str], str]) -> None:
    L = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ticketry[lightning]'")
    if half and not target("host").bf16:
        pytest.skip("this processor does not multiply bfloat16")
    from ticketry.integrations.lightning import HoldCallback

    class Module(L.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = network(), []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = cross_entropy(self.net(batch[0]), batch[1])
            self.seen.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    mask = tk.prune(network(), density=0.2, score="random")
    found = []
    told: dict[str, Any] = {"mask": mask, "images": data()[0]}
    exec(example("Steps in sparse kernels"), told)  # of docs/trainers.md
    fast = told["callback"]
    if half:
        example_inputs = data()[0][:2]
        fast = HoldCallback(mask, module="net", kernels="sparse", example_inputs=example_inputs, precision="bf16")
    for callback in (HoldCallback(mask, module="net"), fast):
        module = Module()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = L.Trainer(
                max_steps=STEPS,
                accelerator="cpu",
                callbacks=[callback],
                enable_checkpointing=False,
                default_root_dir=tmp_path,
                precision="bf16-mixed" if half else "32-true",
                **quiet,
            )
            trainer.fit(
                module, torch.utils.data.DataLoader([(x, y) for x, y in zip(*data(), strict=True)], batch_size=8)
            )
        found.append(module.seen)
    assert len(calls) == STEPS
    assert found[1] == pytest.approx(found[0], abs=0.02 if half else 1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_in_transformers(tmp_path: Path, calls: list[int], half: bool) -> None:
    T = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate")
    if half and not target("host").bf16:
        pytest.skip("this processor does not multiply bfloat16")
    from ticketry.integrations.transformers import HoldCallback

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
            scores = self.net(x)
            return {"loss": cross_entropy(scores, labels), "logits": scores}

    mask = tk.prune(network(), density=0.2, score="random")
    x, y = data()
    rows = [{"x": one, "labels": label} for one, label in zip(x, y, strict=True)]
    found = []
    precision = "bf16" if half else "fp32"
    for more in ({}, {"kernels": "sparse", "example_inputs": x[:2], "precision": precision}):
        model = Told()
        arguments = T.TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=STEPS,
            per_device_train_batch_size=8,
            use_cpu=True,
            bf16=half,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            seed=3,
        )
        T.Trainer(model, arguments, train_dataset=rows, callbacks=[HoldCallback(mask, module="net", **more)]).train()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert len(calls) == STEPS
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0 if half else 1e-3, atol=5e-3 if half else 1e-4)
