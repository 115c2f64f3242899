"""Lengths and checkpoints in transformers' Trainer: the state that is read is that of the weights, or an error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import IterableDataset

import ticketry as tk
from samples import sample
from ticketry.errors import MaskError, TicketError, UsageError

transformers = pytest.importorskip("transformers", reason="pip install 'ticketry[transformers]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ticketry[transformers]'")
from ticketry.integrations.transformers import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 12
EXAMPLES = [{"input_ids": (words := (number + torch.arange(8)) % 11), "labels": words} for number in range(4 * STEPS)]


class Stream(IterableDataset):
    """Sentences without a length."""

    def __iter__(self) -> Iterator[Any]:
        return iter(EXAMPLES)


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    return transformers.GPT2LMHeadModel(config)


def train(
    folder: Path,
    callback: Any,
    resume: Any = None,
    model: Any = None,
    data: Any = EXAMPLES,
    others: Any = (),
    **more: Any,
) -> Any:
    usual = {"per_device_train_batch_size": 4, "save_steps": 4, "num_train_epochs": 1, "learning_rate": 1e-2}
    usual |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": 7, "eval_strategy": "no"}
    arguments = transformers.TrainingArguments(str(folder), **{**usual, **more})
    trainer = transformers.Trainer(
        model or network(), arguments, callbacks=[callback, *others], train_dataset=data, eval_dataset=EXAMPLES[:8]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


MAKE = {
    "gradual": lambda: GradualCallback(0.2, begin="1it", end="9it", frequency="2it", distribution="layerwise"),
    "gates": lambda: GatesCallback(init=0.02, optimizer=lambda gates: torch.optim.SGD(gates, lr=20.0)),
    "hold": lambda: HoldCallback(tk.prune(network(), density=0.3)),
}


def same(one: Any, other: Any) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def early() -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network().state_dict().items()}


# -- lengths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("gradual", {"max_steps": -1, "num_train_epochs": 0.5}, 6),
        ("gates", {"max_steps": 5, "num_train_epochs": 9}, 5),
        ("gradual", {"max_steps": 14, "data": Stream()}, 14),
        ("gradual", {"num_train_epochs": 2, "gradient_accumulation_steps": 5}, 6),
    ],
)
def test_length_is_computed(
    tmp_path: Path, name: str, settings: dict[str, Any], expected: int, recwarn: pytest.WarningsRecorder
) -> None:
    callback = GatesCallback(init=0.1)
    if name == "gradual":
        callback = GradualCallback(0.2, begin="0%", end="60%", frequency="10%", distribution="layerwise")
    trainer = train(tmp_path, callback, save_strategy="no", **settings)
    assert trainer.state.global_step == expected
    assert not [one for one in recwarn if "left" in str(one.message)]
    if name == "gradual":
        assert callback.mask.density == pytest.approx(0.2, abs=0.01)
    else:
        assert callback.gates.progress == 1
    for key, parameter in callback.mask.parameters(trainer.model).items():
        assert not parameter.detach()[~callback.mask[key]].any()


def test_no_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="this training has 0 steps: give TrainingArguments max_steps"):
        train(tmp_path, MAKE["gradual"](), max_steps=0)


def test_early_stop_warns(tmp_path: Path) -> None:
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            control.should_training_stop = state.global_step == 4

    with pytest.warns(UserWarning, match="gates are left after 4 of 12"):
        train(tmp_path, MAKE["gates"](), others=[Stop()], save_strategy="no")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_best_model_under_hold_is_a_ticket(tmp_path: Path) -> None:
    """`load_best_model_at_end` restores weights of an earlier step, all under the same mask."""
    callback = MAKE["hold"]()
    more = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "greater_is_better": True}
    trainer = train(tmp_path, callback, metric_for_best_model="loss", **more)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")  # the largest loss
    ticket = callback.ticket(early())
    weights = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(ticket.trained[name], value) for name, value in weights.items())
    with pytest.raises(UsageError, match="load_best_model_at_end would bring back weights of another step"):
        train(tmp_path / "x", MAKE["gradual"](), metric_for_best_model="loss", **more)


@pytest.mark.parametrize("name", sample(["gradual", "gates"], 1))
def test_state_is_that_of_the_weights(tmp_path: Path, name: str) -> None:
    """Also where the output folder has a checkpoint of the same step, of another training."""
    whole, path = MAKE[name](), tmp_path / "one" / "checkpoint-4"
    trainer = train(tmp_path / "one", whole)
    trained = network()
    trained.load_state_dict(trainer.model.state_dict())
    whole.ticket(early())
    trainer._load_from_checkpoint(str(path))
    with pytest.raises(TicketError, match="weights and the mask are of different moments"):
        whole.ticket(early())
    train(tmp_path / "other", MAKE[name](), model=network(1), seed=8)
    callback = MAKE[name]()
    assert same(train(tmp_path / "other", callback, str(path), save_strategy="no").model, trained)
    assert callback.mask == whole.mask

    wrong = MAKE[name]()
    wrong._resume_from = tmp_path / "one" / "checkpoint-8"
    with pytest.raises(MaskError, match=r"is of step 8, and training resumes at"):
        train(tmp_path / "one", wrong, path)
    if name == "gradual":
        shutil.copy(tmp_path / "other" / "checkpoint-4" / "ticketry-gradual.safetensors", path)
        with pytest.raises(MaskError, match="the weights are of another checkpoint than the state of gradual pruning"):
            train(tmp_path / "one", MAKE[name](), str(path))
