"""How long a training is, in the words of Lightning's and transformers' trainers, sentinels among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ticketry as tk
from ticketry.errors import UsageError

L = pytest.importorskip("lightning", reason="lightning is not installed: pip install 'ticketry[lightning]'")
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler  # noqa: E402

from ticketry.integrations.lightning import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

torch.manual_seed(1)
DATA = TensorDataset(torch.randn(96, 6), torch.randint(0, 3, (96,)))
BATCHES = 12


class Small(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter([DATA[index] for index in range(len(DATA))])


def loader(data: Any = DATA) -> Any:
    return DataLoader(data, batch_size=8)


def gradual() -> Any:
    return GradualCallback(density=0.2, begin="0%", end="60%", frequency="10%", distribution="layerwise")


def gates() -> Any:
    return GatesCallback(init=0.1)


def hold() -> Any:
    return HoldCallback(tk.prune(Small(), density=0.3))


MAKE = {"gradual": gradual, "gates": gates, "hold": hold}


class Length(L.Callback):
    """What was done in fact."""

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.steps = trainer.global_step


def fit(callback: Any, data: Any = None, others: Any = (), **settings: Any) -> tuple[Any, int]:
    """Train; the module, and how many steps were made."""
    module, length = Small(), Length()
    usual = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual |= {"enable_checkpointing": False, "barebones": False}
    trainer = L.Trainer(**{**usual, "callbacks": [callback, length, *others], **settings})
    trainer.fit(module, loader() if data is None else data)
    return module, getattr(length, "steps", 0)


def require_complete(callback: Any, module: Any) -> None:
    """The job got to its end: the requested density, or the end of the temperature."""
    if isinstance(callback, GradualCallback):
        assert callback.mask.kept == pytest.approx(0.2 * callback.mask.total, abs=1)
    if isinstance(callback, GatesCallback):
        assert callback.gates.progress == 1
    for name, parameter in callback.mask.parameters(module).items():
        assert not parameter.detach()[~callback.mask[name]].any()


KNOWN: dict[str, tuple[dict[str, Any], int]] = {
    "epochs": ({"max_epochs": 2}, 24),
    "steps": ({"max_steps": 7}, 7),
    "both, the fewer epochs": ({"max_steps": 30, "max_epochs": 2}, 24),
    "both, the fewer steps": ({"max_steps": 7, "max_epochs": 2}, 7),
    "steps without end of epochs": ({"max_steps": 17, "max_epochs": -1}, 17),
    "a time that is not reached": ({"max_epochs": 2, "max_time": "00:01:00:00"}, 24),
    "limit as a number": ({"max_epochs": 2, "limit_train_batches": 5}, 10),
    "limit as a share": ({"max_epochs": 2, "limit_train_batches": 0.5}, 12),
    "overfitting some batches": ({"max_epochs": 4, "overfit_batches": 3}, 12),
    "overfitting a share": ({"max_epochs": 4, "overfit_batches": 0.25}, 12),
    "accumulated": ({"max_epochs": 2, "accumulate_grad_batches": 5}, 6),
    "accumulated up to a number of steps": ({"max_steps": 5, "accumulate_grad_batches": 4}, 5),
    "trial run": ({"fast_dev_run": True}, 1),
    "trial run of three batches": ({"fast_dev_run": 3}, 3),
}


@pytest.mark.parametrize("words", KNOWN)
@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_a_known_length(name: str, words: str, recwarn: pytest.WarningsRecorder) -> None:
    settings, expected = KNOWN[words]
    callback = MAKE[name]()
    module, steps = fit(callback, **settings)
    assert steps == expected
    assert not [one for one in recwarn if "steps" in str(one.message) and "left" in str(one.message)]
    require_complete(callback, module)


def test_a_trial_run_reads_the_schedule_all_the_same() -> None:
    with pytest.raises(UsageError, match="'soon' is not a point in training"):
        fit(GradualCallback(0.2, begin="soon"), fast_dev_run=True)
    callback = GradualCallback(sparsity=0.8, begin="500it", end="900it", distribution="layerwise")
    module, _ = fit(callback, fast_dev_run=True)
    require_complete(callback, module)


@pytest.mark.parametrize("name", ["gradual", "gates"])
@pytest.mark.parametrize(("schedule", "epochs", "expected"), [({0: 4, 2: 2}, 4, 18), ({1: 5}, 3, 18)])
def test_accumulation_by_a_schedule(
    name: str, schedule: dict[int, int], epochs: int, expected: int, recwarn: pytest.WarningsRecorder
) -> None:
    """12 batches an epoch, which come to other numbers of steps in each."""
    callback = MAKE[name]()
    module, steps = fit(callback, others=[GradientAccumulationScheduler(schedule)], max_epochs=epochs)
    assert steps == expected
    assert not [one for one in recwarn if "left" in str(one.message)]
    require_complete(callback, module)


UNKNOWN: dict[str, tuple[dict[str, Any], bool]] = {
    "no end": ({"max_epochs": -1}, False),
    "a time alone": ({"max_time": {"seconds": 1}}, False),
    "a stream": ({"max_epochs": 3}, True),
    "a stream without end of epochs": ({"max_epochs": -1}, True),
}


@pytest.mark.parametrize("words", UNKNOWN)
@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_a_length_that_is_not_known_asks_for_max_steps(name: str, words: str) -> None:
    settings, stream = UNKNOWN[words]
    data = loader(Stream()) if stream else loader()
    with pytest.raises(UsageError, match=r"no end that is known beforehand.*max_steps"):
        fit(MAKE[name](), data, **settings)
    callback = MAKE[name]()  # the advice
    module, steps = fit(callback, data, **{**settings, "max_steps": 10})
    assert steps == 10
    require_complete(callback, module)


def test_a_stream_that_is_limited_has_a_length() -> None:
    callback = gradual()
    module, steps = fit(callback, loader(Stream()), max_epochs=2, limit_train_batches=6)
    assert steps == 12
    require_complete(callback, module)


@pytest.mark.parametrize("settings", [{"max_epochs": -1, "max_time": {"seconds": 0.2}}, {"max_epochs": 2}])
def test_a_mask_is_held_without_knowing_the_length(settings: dict[str, Any]) -> None:
    callback = hold()
    module, steps = fit(callback, loader(Stream()), **settings)
    assert steps
    require_complete(callback, module)


@pytest.mark.parametrize("name", ["gradual", "gates"])
@pytest.mark.parametrize("settings", [{"limit_train_batches": 0}, {"max_steps": 0}])
def test_a_training_without_steps_is_refused(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="this training has no steps"):
        fit(MAKE[name](), **{"max_epochs": 2, **settings})


class Never(EarlyStopping):
    """Stops after two epochs."""

    def __init__(self) -> None:
        super().__init__("loss", check_on_train_epoch_end=True)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.should_stop = trainer.current_epoch == 1


def test_a_training_that_is_stopped_early_warns() -> None:
    """The mask is not of the density requested, and the hard gates are not those that were trained."""
    for callback, said in ((gradual(), "left at density"), (gates(), r"gates are left after 24 of 120 steps")):
        with pytest.warns(UserWarning, match=f"{said}.*EarlyStopping.*max_steps"):
            fit(callback, others=[Never()], max_epochs=10, min_epochs=1)


def test_a_training_of_too_few_steps_says_how_many_there_are() -> None:
    with pytest.raises(UsageError, match=r"begins at 25%, step 0 of 1.* or train for more steps|of 1, which leaves"):
        fit(GradualCallback(0.2), max_epochs=1, limit_train_batches=1)


# -- transformers ------------------------------------------------------------------------------------------------------

transformers = pytest.importorskip("transformers", reason="pip install 'ticketry[transformers]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ticketry[transformers]'")
from ticketry.integrations import transformers as theirs  # noqa: E402

EXAMPLES = [{"input_ids": (words := (number + torch.arange(8)) % 11), "labels": words} for number in range(24)]


class Sentences(IterableDataset):
    """Sentences without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(EXAMPLES)


def language_model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    return transformers.GPT2LMHeadModel(config)


def train(folder: Path, callback: Any, data: Any = None, **more: Any) -> tuple[Any, int]:
    usual = {"per_device_train_batch_size": 4, "save_strategy": "no", "report_to": [], "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(folder), use_cpu=True, **{**usual, **more})
    model = language_model()
    trainer = transformers.Trainer(
        model, arguments, train_dataset=EXAMPLES if data is None else data, callbacks=[callback]
    )
    trainer.train()
    return model, trainer.state.global_step


THEIRS = {
    "gradual": lambda: theirs.GradualCallback(
        density=0.2, begin="0%", end="60%", frequency="10%", distribution="layerwise"
    ),
    "gates": lambda: theirs.GatesCallback(init=0.1),
}

THEIR_LENGTHS: dict[str, tuple[dict[str, Any], bool, int]] = {
    "a part of an epoch": ({"num_train_epochs": 1.5}, False, 9),
    "less than an epoch": ({"num_train_epochs": 0.5}, False, 3),
    "steps before epochs": ({"max_steps": 5, "num_train_epochs": 9}, False, 5),
    "the sentinel of steps": ({"max_steps": -1, "num_train_epochs": 2}, False, 12),
    "a stream that begins again": ({"max_steps": 8}, True, 8),
    "accumulated with a rest": ({"num_train_epochs": 2, "gradient_accumulation_steps": 4}, False, 4),
}


@pytest.mark.parametrize("words", THEIR_LENGTHS)
@pytest.mark.parametrize("name", THEIRS)
def test_lengths_of_transformers(tmp_path: Path, name: str, words: str, recwarn: pytest.WarningsRecorder) -> None:
    settings, stream, expected = THEIR_LENGTHS[words]
    callback = THEIRS[name]()
    model, steps = train(tmp_path, callback, Sentences() if stream else None, **settings)
    assert steps == expected
    assert not [one for one in recwarn if "left" in str(one.message)]
    if name == "gradual":
        assert callback.mask.density == pytest.approx(0.2, abs=0.01)
    else:
        assert callback.gates.progress == 1
    for key, parameter in callback.mask.parameters(model).items():
        assert not parameter.detach()[~callback.mask[key]].any()


@pytest.mark.parametrize("name", THEIRS)
def test_no_steps_in_transformers_are_refused(tmp_path: Path, name: str) -> None:
    for settings in ({"num_train_epochs": 0}, {"max_steps": 0}):
        with pytest.raises(UsageError, match="this training has 0 steps: give TrainingArguments max_steps"):
            train(tmp_path, THEIRS[name](), **settings)


@pytest.mark.parametrize("name", THEIRS)
def test_transformers_stopped_early_warn(tmp_path: Path, name: str) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = state.global_step == 4

    callback = THEIRS[name]()
    model = language_model()
    arguments = transformers.TrainingArguments(str(tmp_path), use_cpu=True, save_strategy="no", report_to=[])
    trainer = transformers.Trainer(model, arguments, train_dataset=EXAMPLES, callbacks=[callback, Stop()])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.train()
    assert [one for one in told if "left" in str(one.message) and "of " in str(one.message)]
