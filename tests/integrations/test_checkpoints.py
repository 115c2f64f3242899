"""Checkpoints loaded in Lightning and transformers: mask, gates and weights are of one moment, or that is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ticketry as tk
from ticketry.errors import MaskError, TicketError, UsageError

L = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ticketry[lightning]'")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from ticketry.integrations.jobs import GradualJob  # noqa: E402
from ticketry.integrations.lightning import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

torch.manual_seed(1)
DATA = TensorDataset(torch.randn(96, 6), torch.randint(0, 3, (96,)))
BATCHES = 12


class Small(L.LightningModule):
    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("value", float(-self.current_epoch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0])

    def configure_optimizers(self) -> Any:
        found = [torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9) for _ in range(self.count)]
        return found[0] if self.count == 1 else found


def loader() -> Any:
    return DataLoader(DATA, batch_size=8)


def trainer(folder: Path, *callbacks: Any, **more: Any) -> Any:
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(**{**usual, "max_epochs": 3, "default_root_dir": folder, "callbacks": [*callbacks], **more})


def best(folder: Path, mode: str = "max") -> Any:
    """Keeps the checkpoint of the first epoch, or with ``min`` that of the last."""
    return ModelCheckpoint(folder, "best", monitor="value", mode=mode)


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


# -- an earlier checkpoint after training ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["validate", "test", "predict", "load_state_dict"])
@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_a_ticket_with_the_weights_of_an_earlier_checkpoint_is_refused(tmp_path: Path, name: str, how: str) -> None:
    module, callback, keeps = Small(), MAKE[name](), best(tmp_path)
    early = copied(module)
    run = trainer(tmp_path, callback, keeps)
    run.fit(module, loader(), loader())
    ticket = callback.ticket(early)
    if how == "load_state_dict":
        module.load_state_dict(torch.load(keeps.best_model_path, weights_only=False)["state_dict"])
    elif how == "predict":
        run.predict(module, loader(), ckpt_path="best", weights_only=False)
    else:
        getattr(run, how)(module, loader(), ckpt_path="best", verbose=False, weights_only=False)
    with pytest.raises(TicketError, match=r"weights and the mask are of different moments.*before other weights"):
        callback.ticket(early)
    module.load_state_dict(ticket.trained)  # the advice: those of the mask
    again = callback.ticket(early)
    assert again.mask == ticket.mask
    assert all(torch.equal(again.trained[one], value) for one, value in ticket.trained.items())


def test_a_ticket_of_a_checkpoint_with_the_same_mask_has_its_weights(tmp_path: Path) -> None:
    """After the last cut the mask stays, and any of those checkpoints goes with it; under hold all do."""
    for name, epoch in (("gradual", 2), ("hold", 0)):
        module, callback = Small(), MAKE[name]()
        early = copied(module)
        run = trainer(tmp_path, callback, every(tmp_path / name), max_epochs=5)
        run.fit(module, loader(), loader())
        end, path = copied(module), tmp_path / name / f"epoch={epoch + 1 if name == 'gradual' else epoch}.ckpt"
        run.test(module, loader(), ckpt_path=path, verbose=False, weights_only=False)
        ticket, stored = callback.ticket(early), torch.load(path, weights_only=False)["state_dict"]
        assert all(torch.equal(ticket.trained[one], value) for one, value in stored.items())
        assert any(not torch.equal(ticket.trained[one], value) for one, value in end.items())


def test_no_ticket_while_gates_are_not_in_the_weights(tmp_path: Path) -> None:
    class Ask(L.Callback):
        def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
            with pytest.raises(TicketError, match="training has not ended"):
                callback.ticket(copied(module))

    callback = MAKE["gates"]()
    trainer(tmp_path, callback, Ask(), enable_checkpointing=False).fit(Small(), loader())


# -- resumed in a training of another length ---------------------------------------------------------------------------


def test_gradual_resumed_for_longer_keeps_its_schedule(tmp_path: Path) -> None:
    whole = Small()
    trainer(tmp_path, MAKE["gradual"](), every(tmp_path)).fit(whole, loader())
    for epoch in (0, 2):  # on the way, and finished
        module, callback = Small(), MAKE["gradual"]()
        run = trainer(tmp_path / "longer", callback, max_epochs=6)
        run.fit(module, loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=False)
        assert run.global_step == 6 * BATCHES
        assert callback.mask.kept == pytest.approx(0.2 * callback.mask.total, abs=1)
        assert max(callback.job._gradual.cuts) == 25  # 70 % of 36 steps, and not of 72
        callback.ticket(copied(Small()))


def test_gradual_resumed_for_shorter_than_its_schedule_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, MAKE["gradual"](), every(tmp_path)).fit(Small(), loader())
    with pytest.raises(MaskError, match=r"cuts at steps \d+ to 25, and this training has only 24 steps"):
        trainer(tmp_path / "x", MAKE["gradual"](), max_epochs=2).fit(
            Small(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=False
        )


def test_gates_resumed_for_longer_keep_their_temperature(tmp_path: Path) -> None:
    """It never falls back; at the end of the first schedule the gates are those of a training of that length."""
    whole = MAKE["gates"]()
    trainer(tmp_path, whole, every(tmp_path)).fit(Small(), loader())
    for epoch in (0, 2):
        seen: list[float] = []

        class Watch(L.Callback):
            def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
                seen.append(callback.gates.progress)  # noqa: B023
                if trainer.global_step == 3 * BATCHES:
                    reached.append(callback.gates.harden())  # noqa: B023

        callback, reached = MAKE["gates"](), []
        run = trainer(tmp_path / "longer", callback, Watch(), max_epochs=5, enable_checkpointing=False)
        with pytest.warns(UserWarning, match=r"annealed for a training of 36 steps, and this training has 60"):
            run.fit(Small(), loader(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", weights_only=False)
        done = (epoch + 1) * BATCHES
        assert seen == [min(step / 36, 1.0) for step in range(done, 60)]
        if epoch == 0:
            assert reached == [whole.mask]


def test_gates_resumed_for_shorter_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path, MAKE["gates"](), every(tmp_path)).fit(Small(), loader())
    with pytest.raises(MaskError, match=r"training of 36 steps, of which 12 are done, and this training has only 24"):
        trainer(tmp_path / "x", MAKE["gates"](), max_epochs=2).fit(
            Small(), loader(), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=False
        )


def test_gates_of_older_checkpoints_do_not_cool_backwards(tmp_path: Path) -> None:
    """They do not know the length of their training, but how far they had come."""
    callback = MAKE["gates"]()
    trainer(tmp_path, callback, every(tmp_path)).fit(Small(), loader())
    stored = torch.load(tmp_path / "epoch=1.ckpt", weights_only=False)
    for entry in ("total", "done", "applied"):
        del stored["callbacks"][callback.state_key][entry]
    torch.save(stored, tmp_path / "older.ckpt")
    again = MAKE["gates"]()
    trainer(tmp_path / "x", again).fit(Small(), loader(), ckpt_path=tmp_path / "older.ckpt", weights_only=False)
    assert again.mask == callback.mask
    with pytest.raises(MaskError, match=r"at step 24 of 72, where their temperature would fall back"):
        trainer(tmp_path / "x", MAKE["gates"](), max_epochs=6).fit(
            Small(), loader(), ckpt_path=tmp_path / "older.ckpt", weights_only=False
        )


# -- checkpoints written at other moments than after a batch -----------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_a_checkpoint_written_after_training_has_ended(tmp_path: Path, name: str) -> None:
    """Gates are in its weights, and must not be applied again."""
    module, callback, again = Small(), MAKE[name](), MAKE[name]()
    run = trainer(tmp_path, callback, enable_checkpointing=False)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    fresh = Small()
    resumed = trainer(tmp_path / "x", again, enable_checkpointing=False)
    resumed.fit(fresh, loader(), ckpt_path=tmp_path / "end.ckpt", weights_only=False)
    assert same(fresh, module)
    assert again.mask == callback.mask
    assert not any(one._forward_pre_hooks for one in fresh.modules())
    assert same_ticket(again.ticket(copied(Small())), callback.ticket(copied(Small())))
    resumed.save_checkpoint(tmp_path / "again.ckpt")
    third = trainer(tmp_path / "x", MAKE[name](), enable_checkpointing=False)
    third.fit(fresh, loader(), ckpt_path=tmp_path / "again.ckpt", weights_only=False)
    assert same(fresh, module)
    if name == "gates":
        with pytest.raises(MaskError, match=r"after training had ended, .*step 36 of 60: train on .* HoldCallback"):
            trainer(tmp_path / "x", MAKE[name](), max_epochs=5).fit(
                Small(), loader(), ckpt_path=tmp_path / "end.ckpt", weights_only=False
            )


def same_ticket(one: tk.Ticket, other: tk.Ticket) -> bool:
    return one.mask == other.mask and all(map(torch.equal, one.trained.values(), other.trained.values()))


@pytest.mark.parametrize("within", [6, 7, 8])
def test_a_state_written_after_the_optimizers_step_and_before_its_pruning_step(within: int) -> None:
    """As by a callback that stands before ours: the pruning step is made where training resumes."""

    def job(until: int) -> GradualJob:
        model = Small().net
        made = GradualJob(0.2, {"begin": "1it", "end": "19it", "frequency": "3it", "distribution": "layerwise"})
        made.begin(model, 36)
        made.after_update(until)
        return made

    truth, stored, resumed = job(within), job(within - 1), job(0)
    resumed.model.load_state_dict(stored.model.state_dict())
    resumed.load(stored.state())
    resumed.resume(within)
    assert resumed.mask == truth.mask
    resumed.after_update(30)
    assert resumed.mask.kept == pytest.approx(0.2 * resumed.mask.total, abs=1)


def test_weights_and_state_of_two_checkpoints_are_refused(tmp_path: Path) -> None:
    callback = MAKE["gradual"]()
    trainer(tmp_path, callback, every(tmp_path)).fit(Small(), loader())
    one, other = (torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=False) for epoch in (0, 1))
    for target, source, said in ((one, other, "not 0 in the model"), (other, one, None)):
        mixed = {
            **target,
            "callbacks": {**target["callbacks"], callback.state_key: source["callbacks"][callback.state_key]},
        }
        torch.save(mixed, tmp_path / "mixed.ckpt")
        if said:
            with pytest.raises(MaskError, match=said):
                trainer(tmp_path / "x", MAKE["gradual"]()).fit(
                    Small(), loader(), ckpt_path=tmp_path / "mixed.ckpt", weights_only=False
                )
    state = other["callbacks"][callback.state_key]
    later = torch.load(tmp_path / "epoch=2.ckpt", weights_only=False)
    later["callbacks"][callback.state_key] = {**later["callbacks"][callback.state_key], "done": 99}
    torch.save(later, tmp_path / "mixed.ckpt")
    assert state["done"] == 24
    with pytest.raises(MaskError, match=r"of step 99, and training resumes at step 36"):
        trainer(tmp_path / "x", MAKE["gradual"]()).fit(
            Small(), loader(), ckpt_path=tmp_path / "mixed.ckpt", weights_only=False
        )


@pytest.mark.parametrize("name", MAKE)
def test_a_state_that_was_loaded_for_a_training_that_never_began_is_forgotten(tmp_path: Path, name: str) -> None:
    trainer(tmp_path, MAKE[name](), every(tmp_path)).fit(Small(), loader())
    callback = MAKE[name]()
    stored, state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=False), callback.state_key
    callback._module = "nothing"
    stored["callbacks"] = {callback.state_key: stored["callbacks"][state]}
    torch.save(stored, tmp_path / "named.ckpt")
    with pytest.raises(UsageError, match="has no module 'nothing'"):
        trainer(tmp_path / "x", callback).fit(Small(), loader(), ckpt_path=tmp_path / "named.ckpt", weights_only=False)
    callback._module = ""
    module, plain, fresh = Small(), Small(), MAKE[name]()
    trainer(tmp_path / "x", callback, enable_checkpointing=False).fit(module, loader())
    trainer(tmp_path / "x", fresh, enable_checkpointing=False).fit(plain, loader())
    assert same(module, plain)
    assert callback.mask == fresh.mask
