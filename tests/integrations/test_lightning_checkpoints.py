"""Lengths and checkpoints in Lightning: a schedule fits its training; mask, gates and weights are of one step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ticketry as tk
from ticketry.errors import MaskError, TicketError, UsageError

L = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ticketry[lightning]'")
from lightning.pytorch.callbacks import (  # noqa: E402
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)

from ticketry.integrations.lightning import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

torch.manual_seed(1)
DATA = TensorDataset(torch.randn(96, 6), torch.randint(0, 3, (96,)))
BATCHES = 12


class Small(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("value", float(-self.current_epoch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([DATA[index] for index in range(len(DATA))])


def loader(data: Any = DATA) -> Any:
    return DataLoader(data, batch_size=8)


def trainer(*callbacks: Any, **more: Any) -> Any:
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saves = any(isinstance(one, ModelCheckpoint) for one in callbacks)
    return L.Trainer(**{**usual, "enable_checkpointing": saves, "callbacks": [*callbacks], **more})


def fit(callback: Any, data: Any = None, others: Any = (), ckpt: Path | None = None, **settings: Any) -> Any:
    """Train a new module; return it and its trainer."""
    module, run = Small(), trainer(callback, *others, **settings)
    validated = any(isinstance(one, ModelCheckpoint) and one.monitor for one in others)
    data = loader() if data is None else data
    run.fit(module, data, loader() if validated else None, ckpt_path=ckpt, weights_only=False)
    return module, run


def every(folder: Path) -> Any:
    return ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1)


def copied(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


MAKE = {
    "gradual": lambda: GradualCallback(density=0.2, begin="10%", end="70%", distribution="layerwise"),
    "gates": lambda: GatesCallback(init=0.02, optimizer=lambda gates: torch.optim.SGD(gates, lr=20.0, momentum=0.9)),
    "hold": lambda: HoldCallback(tk.prune(Small(), density=0.3, distribution="layerwise")),
}


# -- lengths -----------------------------------------------------------------------------------------------------------


def gradual() -> Any:
    return GradualCallback(density=0.2, begin="0%", end="60%", frequency="10%", distribution="layerwise")


def require_complete(callback: Any, module: Any) -> None:
    """Check that the job reached the requested density, or the last temperature."""
    if isinstance(callback, GradualCallback):
        assert callback.mask.kept == pytest.approx(0.2 * callback.mask.total, abs=1)
    if isinstance(callback, GatesCallback):
        assert callback.gates.progress == 1
    for name, parameter in callback.mask.parameters(module).items():
        assert not parameter.detach()[~callback.mask[name]].any()


def make(name: str) -> Any:
    return gradual() if name == "gradual" else GatesCallback(init=0.1)


KNOWN: list[tuple[str, dict[str, Any], int]] = [
    ("gates", {"max_epochs": 1, "max_time": "00:01:00:00"}, 12),
    ("gradual", {"max_steps": 30, "max_epochs": 1}, 12),
    ("gradual", {"max_epochs": 2, "limit_train_batches": 0.5}, 12),
    ("gradual", {"max_epochs": 2, "accumulate_grad_batches": 5}, 6),
    ("gates", {"max_steps": 5, "accumulate_grad_batches": 4}, 5),
    ("gates", {"fast_dev_run": 3}, 3),
    ("gradual", {"max_epochs": 4, "schedule": {0: 4, 2: 2}}, 18),
    ("gradual", {"max_epochs": 2, "limit_train_batches": 6, "stream": True}, 12),
]


@pytest.mark.parametrize(("name", "settings", "expected"), KNOWN)
def test_known_length_is_computed(
    name: str, settings: dict[str, Any], expected: int, recwarn: pytest.WarningsRecorder
) -> None:
    given, callback = dict(settings), make(name)
    data = loader(Stream()) if given.pop("stream", False) else None
    schedule = given.pop("schedule", None)
    module, run = fit(callback, data, [GradientAccumulationScheduler(schedule)] if schedule else [], **given)
    assert run.global_step == expected
    assert not [one for one in recwarn if "left" in str(one.message)]
    require_complete(callback, module)


def test_trial_run_reads_the_schedule() -> None:
    with pytest.raises(UsageError, match="'soon' is not a point in training"):
        fit(GradualCallback(0.2, begin="soon"), fast_dev_run=True)
    callback = GradualCallback(sparsity=0.8, begin="500it", end="900it", distribution="layerwise")
    require_complete(callback, fit(callback, fast_dev_run=True)[0])


@pytest.mark.parametrize(
    ("name", "settings", "stream"),
    [("gates", {"max_time": {"seconds": 1}}, False), ("gradual", {"max_epochs": 3}, True)],
)
def test_unknown_length_needs_max_steps(name: str, settings: dict[str, Any], stream: bool) -> None:
    data, callback = loader(Stream()) if stream else loader(), make(name)
    with pytest.raises(UsageError, match=r"no end that is known beforehand.*max_steps"):
        fit(make(name), data, **settings)
    module, run = fit(callback, data, **settings, max_steps=10)
    assert run.global_step == 10
    require_complete(callback, module)
    hold = MAKE["hold"]()
    require_complete(hold, fit(hold, data, max_epochs=-1, max_time={"seconds": 0.2})[0])


def test_too_few_steps_are_refused() -> None:
    for settings in ({"limit_train_batches": 0}, {"max_steps": 0}):
        with pytest.raises(UsageError, match="this training has no steps"):
            fit(gradual(), **{"max_epochs": 2, **settings})
    with pytest.raises(UsageError, match=r"begins at 25%, step 0 of 1.* or train for more steps|of 1, which leaves"):
        fit(GradualCallback(0.2), max_epochs=1, limit_train_batches=1)


class StopSoon(EarlyStopping):
    """Stops after two epochs."""

    def __init__(self) -> None:
        super().__init__("loss", check_on_train_epoch_end=True)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def test_early_stop_warns() -> None:
    for name, said in (("gradual", "left at density"), ("gates", r"gates are left after 24 of 120 steps")):
        with pytest.warns(UserWarning, match=f"{said}.*EarlyStopping.*max_steps"):
            fit(make(name), others=[StopSoon()], max_epochs=10, min_epochs=1)


# -- an earlier checkpoint after training ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ways"), [("gradual", ("validate", "load")), ("gates", ("test", "predict"))])
def test_ticket_with_weights_of_an_earlier_checkpoint_is_refused(
    tmp_path: Path, name: str, ways: tuple[str, ...]
) -> None:
    callback, first = MAKE[name](), ModelCheckpoint(tmp_path, "best", monitor="value", mode="max")
    early = copied(Small())
    module, run = fit(callback, others=[first], max_epochs=3)
    ticket = callback.ticket(early)
    for way in ways:
        if way == "load":
            module.load_state_dict(torch.load(first.best_model_path, weights_only=False)["state_dict"])
        else:
            more = {} if way == "predict" else {"verbose": False}
            getattr(run, way)(module, loader(), ckpt_path="best", weights_only=False, **more)
        with pytest.raises(TicketError, match=r"weights and the mask are of different moments.*before other weights"):
            callback.ticket(early)
        module.load_state_dict(ticket.trained)
        again = callback.ticket(early)
        assert again.mask == ticket.mask
        assert all(torch.equal(again.trained[one], value) for one, value in ticket.trained.items())


@pytest.mark.parametrize(("name", "epoch"), [("gradual", 3), ("hold", 0)])
def test_ticket_of_a_checkpoint_with_the_same_mask_has_its_weights(tmp_path: Path, name: str, epoch: int) -> None:
    callback = MAKE[name]()
    module, run = fit(callback, others=[every(tmp_path)], max_epochs=5)
    end, path = copied(module), tmp_path / f"epoch={epoch}.ckpt"
    run.test(module, loader(), ckpt_path=path, verbose=False, weights_only=False)
    ticket, stored = callback.ticket(copied(Small())), torch.load(path, weights_only=False)["state_dict"]
    assert all(torch.equal(ticket.trained[one], value) for one, value in stored.items())
    assert any(not torch.equal(ticket.trained[one], value) for one, value in end.items())


def test_no_ticket_while_gates_train() -> None:
    class Ask(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            with pytest.raises(TicketError, match="training has not ended"):
                callback.ticket(copied(module))

    callback = MAKE["gates"]()
    fit(callback, others=[Ask()], max_epochs=1)


@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_checkpoint_written_after_training_is_complete(tmp_path: Path, name: str) -> None:
    """Gates are in its weights, and must not be applied again."""
    callback, again = MAKE[name](), MAKE[name]()
    module, run = fit(callback, max_epochs=2)
    run.save_checkpoint(tmp_path / "end.ckpt")
    fresh, _ = fit(again, ckpt=tmp_path / "end.ckpt", max_epochs=2)
    assert same(fresh, module)
    assert not any(one._forward_pre_hooks for one in fresh.modules())
    one, other = again.ticket(copied(Small())), callback.ticket(copied(Small()))
    assert one.mask == other.mask == again.mask
    assert all(map(torch.equal, one.trained.values(), other.trained.values()))
    if name == "gates":
        with pytest.raises(MaskError, match=r"this training would continue at step 24 of 60"):
            fit(MAKE[name](), ckpt=tmp_path / "end.ckpt", max_epochs=5)
