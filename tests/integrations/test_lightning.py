"""Callbacks in Lightning's own Trainer, on real digits, against plain loops."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import ticketry as tk
from samples import sample
from ticketry.errors import HoldError, MaskError, UsageError

L = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ticketry[lightning]'")
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402

from ticketry.integrations.lightning import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

BATCH, ACCUMULATE, PER_EPOCH, EPOCHS = 32, 2, 4, 3
STEPS = PER_EPOCH * EPOCHS
CLIP, PENALTY = 0.5, 1e-4
CUTS = {"begin": "1it", "end": "9it", "frequency": "4it"}

pytestmark = pytest.mark.filterwarnings("ignore")


class Digits(L.LightningModule):
    """A perceptron whose optimiser has everything that could move a weight without a gradient."""

    def __init__(self, optimizers: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return cross_entropy(self.net(inputs), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        found = [make_optimizer(self.net) for _ in range(self.count)]
        return found if self.count > 1 else found[0]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.2)


@pytest.fixture(scope="module")
def loader() -> DataLoader:
    task = tk.task("digits")
    data = task.load().train
    count = BATCH * ACCUMULATE * PER_EPOCH
    return DataLoader(TensorDataset(task.prepare(data.inputs[:count]), data.targets[:count]), batch_size=BATCH)


CPU = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def fit(
    folder: Path, loader: DataLoader, callbacks: list[Any], module: Any = None, ckpt: Any = None, **settings: Any
) -> Any:
    module = module or Digits()
    trainer = L.Trainer(
        **{
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": ACCUMULATE,
            "gradient_clip_val": CLIP,
            **CPU,
            "limit_val_batches": 1,
            "default_root_dir": folder,
            "callbacks": [*callbacks, Watch(callbacks[0]), ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
            **settings,
        }
    )
    trainer.fit(module, loader, loader, ckpt_path=ckpt)
    return module


class Watch(L.Callback):
    """After every step: what the mask removes is exactly 0, before it and in the optimiser's state."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.steps, self.densities = callback, 0, []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == self.steps:  # a batch that was accumulated
            return
        self.steps = trainer.global_step
        if isinstance(self.callback, GatesCallback):
            return
        mask = self.callback.mask
        self.densities.append(mask.density)
        part = module.get_submodule(self.callback._module)
        for name, parameter in mask.parameters(part).items():
            assert not parameter.detach()[~mask[name]].any()
            if len(self.densities) > 1 and self.densities[-1] == self.densities[-2]:  # else cleared before it is used
                for value in trainer.optimizers[0].state[parameter].values():
                    assert value.dim() == 0 or not value[~mask[name]].any()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        assert self.steps == STEPS


def plain_loop(model: nn.Module, loader: DataLoader, before=lambda step: None, after=lambda: None) -> None:
    """The same training without Lightning."""
    optimizer = make_optimizer(model)
    batches = list(loader)
    for step in range(STEPS):
        before(step)
        optimizer.zero_grad()
        first = (step % PER_EPOCH) * ACCUMULATE
        for inputs, targets in batches[first : first + ACCUMULATE]:
            (cross_entropy(model(inputs), targets) / ACCUMULATE).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        after()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_hold_has_the_bits_of_a_plain_loop(tmp_path: Path, loader: DataLoader) -> None:
    plain = Digits().net
    mask = tk.prune(plain, density=0.2)
    callback = HoldCallback(mask, module="net")
    module = fit(tmp_path, loader, [callback])
    with tk.hold(plain, mask):
        plain_loop(plain, loader)
    assert same(module.net, plain)
    assert callback.mask is mask
    assert all(not parameter._backward_hooks for parameter in module.parameters())


def test_gradual_pruning_has_the_bits_of_a_plain_loop(tmp_path: Path, loader: DataLoader) -> None:
    plain = Digits().net
    callback = GradualCallback(density=0.1, module="net", **CUTS)
    module = fit(tmp_path, loader, [callback])
    with tk.gradual(plain, density=0.1, steps=STEPS, **CUTS) as pruning:
        plain_loop(plain, loader, after=pruning.step)
    assert callback.mask == pruning.mask
    assert callback.mask.kept == round(0.1 * callback.mask.total)
    assert same(module.net, plain)


GATES = {
    "continuous": (0.02, partial(torch.optim.SGD, lr=40.0, momentum=0.9)),
    "hard-concrete": (-2.0, partial(torch.optim.Adam, lr=0.3)),
}


@pytest.mark.parametrize("kind", sample(GATES, ["hard-concrete"]))
def test_gates_have_the_bits_of_a_plain_loop(tmp_path: Path, loader: DataLoader, kind: str) -> None:
    """Own optimiser, temperature, draws, accumulation, and the hard network in the end. (Without the penalty, which a
    plain loop adds up in another order: see test_jobs.)"""
    early = {name: value.clone() for name, value in Digits().net.state_dict().items()}
    init, make = GATES[kind]
    callback = GatesCallback(init=init, penalty=0.0, kind=kind, optimizer=make, seed=5, module="net")
    module = fit(tmp_path, loader, [callback])
    plain = Digits().net
    gates = tk.gates.attach(plain, init=init, kind=kind, seed=5)
    gate_optimizer = make(gates.parameters())

    def before(step: int) -> None:
        gates.anneal(step / STEPS)
        gate_optimizer.zero_grad()

    plain_loop(plain, loader, before, gate_optimizer.step)
    gates.anneal(1.0)
    mask = gates.harden()
    gates.detach(apply=True)
    assert callback.mask == mask
    assert 0.02 < mask.density < 0.98
    assert same(module.net, plain)
    assert callback.gates.density() == mask.density
    ticket = callback.ticket(early, {"note": "digits"})
    assert ticket.info == {"method": "gates", "note": "digits"}
    assert all(torch.equal(ticket.trained[name], value) for name, value in module.net.state_dict().items())
    for name, parameter in callback.mask.parameters(module.net).items():
        assert not parameter.detach()[~callback.mask[name]].any()


CALLBACKS = {
    "hold": lambda: HoldCallback(tk.prune(Digits(), density=0.3)),
    "gradual": lambda: GradualCallback(density=0.1, **CUTS),
    "gates": lambda: GatesCallback(
        penalty=PENALTY, kind="hard-concrete", optimizer=partial(torch.optim.Adam, lr=0.3), seed=2
    ),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, loader: DataLoader, name: str) -> None:
    whole, first, second = (CALLBACKS[name]() for _ in range(3))
    undisturbed = fit(tmp_path / "whole", loader, [whole])
    with pytest.raises(Broken):
        fit(tmp_path / "parts", loader, [first, Stop(after=1)])
    checkpoint = tmp_path / "parts" / "epoch=0.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    assert list(stored["state_dict"]) == list(Digits().state_dict())
    resumed = fit(tmp_path / "parts", loader, [second], ckpt=checkpoint)
    assert same(resumed, undisturbed)
    assert second.mask == whole.mask

    again = CALLBACKS[name]()  # Lightning begins no training from a complete one, and ends none
    module = fit(tmp_path / "whole", loader, [again], ckpt=tmp_path / "whole" / f"epoch={EPOCHS - 1}.ckpt")
    assert same(module, undisturbed)
    assert again.mask == whole.mask
    module.zero_grad()
    module.net(next(iter(loader))[0]).sum().backward()  # the mask is no longer held
    assert any(module.get_parameter(one).grad[~kept].any() for one, kept in again.mask.items())
    if name == "gates":
        other = CALLBACKS[name]()
        del stored["callbacks"][other.state_key]
        torch.save(stored, tmp_path / "without.ckpt")
        with pytest.raises(UsageError, match="no state of gates"):
            fit(tmp_path / "x", loader, [other], ckpt=tmp_path / "without.ckpt")


class Broken(Exception):
    pass


class Stop(L.Callback):
    """Breaks off in the middle of an epoch."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.after and batch_idx == 3:
            raise Broken


@pytest.mark.parametrize("name", sample(CALLBACKS, ["gradual"]))
def test_autocast(tmp_path: Path, loader: DataLoader, name: str) -> None:
    callback = CALLBACKS[name]()
    module = fit(tmp_path, loader, [callback], precision="bf16-mixed")
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    for key, parameter in callback.mask.parameters(module).items():
        assert not parameter.detach()[~callback.mask[key]].any()
        assert parameter.detach()[callback.mask[key]].any()
    assert 0 < callback.mask.density < 1


def test_loss_scaling(tmp_path: Path, loader: DataLoader) -> None:
    """Gates see the gradients without the scale: a scale that changes nothing else changes nothing here."""
    from lightning.pytorch.plugins import MixedPrecision

    results = []
    for scale in (1.0, 1024.0):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        plugin.forward_context = lambda: torch.autocast("cpu", enabled=False)
        callback = CALLBACKS["gates"]()
        module = fit(tmp_path / str(scale), loader, [callback], plugins=[plugin], gradient_clip_val=None)
        results.append((module, callback.mask))
    (one, mask), (other, again) = results
    assert mask == again
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_what_is_refused(tmp_path: Path, loader: DataLoader) -> None:
    mask = tk.prune(Digits(), density=0.3)
    with pytest.raises(UsageError, match="has no module 'body'; it has net"):
        fit(tmp_path, loader, [HoldCallback(mask, module="body")])
    with pytest.raises(MaskError, match="does not fit"):
        fit(tmp_path, loader, [HoldCallback(mask, module="net")])
    for callback in (GradualCallback(0.1), GatesCallback()):
        with pytest.raises(UsageError, match="one optimiser, and this training has 2"):
            fit(tmp_path, loader, [callback], Digits(optimizers=2), accumulate_grad_batches=1, gradient_clip_val=None)
    with pytest.raises(UsageError, match="no end that is known"):
        fit(tmp_path, loader, [GradualCallback(0.1)], max_epochs=-1)
    with pytest.raises(UsageError, match=r"not begun in this process.*ddp_fork.*take strategy='ddp'"):
        _ = GatesCallback().mask
    with pytest.raises(UsageError, match=r"no ticket yet.*ddp_fork.*take strategy='ddp'"):
        HoldCallback(mask).ticket(Digits().state_dict())


def test_pruning_may_begin_after_a_dense_checkpoint(tmp_path: Path, loader: DataLoader) -> None:
    fit(tmp_path, loader, [HoldCallback(tk.Mask.ones(tk.scope(Digits())))])
    with pytest.raises(MaskError, match="under another mask"):
        fit(tmp_path, loader, [HoldCallback(tk.prune(Digits(), density=0.2))], ckpt=tmp_path / "epoch=1.ckpt")
    late = GradualCallback(0.2, begin="8it", end="11it", frequency="1it", module="net")
    fit(tmp_path, loader, [late], ckpt=tmp_path / "epoch=1.ckpt")
    assert late.mask.kept == round(0.2 * late.mask.total)
    early = GradualCallback(0.2, module="net", **CUTS)
    with pytest.raises(UsageError, match="continues at step 8, where pruning has begun"):
        fit(tmp_path, loader, [early], ckpt=tmp_path / "epoch=1.ckpt")


def test_a_module_can_be_trained_again_after_a_failure(tmp_path: Path, loader: DataLoader) -> None:
    module, callback = Digits(), CALLBACKS["gates"]()
    with pytest.raises(Broken):
        fit(tmp_path, loader, [callback, Stop(after=0)], module)
    assert list(module.state_dict()) == list(Digits().state_dict())
    fit(tmp_path, loader, [callback], module, precision="bf16-mixed")
    assert not copy.deepcopy(module.net)._forward_pre_hooks
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert 0 < callback.mask.density < 1
    for key, parameter in callback.mask.parameters(module).items():
        assert not parameter.detach()[~callback.mask[key]].any()
        assert parameter.detach()[callback.mask[key]].any()


def test_averages_with_earlier_masks_are_refused(tmp_path: Path, loader: DataLoader) -> None:
    made = L.pytorch.callbacks
    newer = [made.EMAWeightAveraging()] if hasattr(made, "EMAWeightAveraging") else []  # of Lightning 2.6
    for average in (made.StochasticWeightAveraging(1e-2), *newer):
        with pytest.raises(UsageError, match=f"{type(average).__name__} would bring back removed weights"):
            fit(tmp_path, loader, [CALLBACKS["gradual"](), average])


def test_beside_hold_averages_keep_the_mask(tmp_path: Path, loader: DataLoader) -> None:
    callback = HoldCallback(tk.prune(Digits(), density=0.3))
    module, average = Digits(), L.pytorch.callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1)
    L.Trainer(**CPU, default_root_dir=tmp_path, max_epochs=3, callbacks=[callback, average]).fit(module, loader)
    for key, parameter in callback.mask.parameters(module).items():
        assert not parameter.detach()[~callback.mask[key]].any()


def test_weights_written_by_the_last_callback_are_reported(tmp_path: Path, loader: DataLoader) -> None:
    class Meddle(L.Callback):
        def on_train_end(self, trainer: Any, module: Any) -> None:
            nn.init.ones_(module.net[1].weight)

    callback = CALLBACKS["hold"]()
    with pytest.raises(HoldError, match=r"pruned weights of 'net\.1\.weight' are not 0"):
        fit(tmp_path, loader, [callback, Meddle()])


def test_the_example(tmp_path: Path, loader: DataLoader, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"module": Digits(), "loader": loader}
    with pytest.raises(UsageError, match="train first"):
        CALLBACKS["gradual"]().ticket(Digits().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(example("Lightning"), names)  # the point of this test
    ticket = tk.Ticket.load("from-lightning")
    assert list(ticket.mask) == ["net.1.weight", "net.4.weight"]
    assert ticket.mask.kept == round(0.1 * ticket.mask.total)
    assert same(ticket.apply(Digits(), "trained"), names["module"])
