"""Checkpoints of transformers' Trainer: the state that is read is that of the weights, or that is an error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from ticketry.errors import MaskError, TicketError, UsageError
from ticketry.integrations.jobs import read_state, write_state

transformers = pytest.importorskip("transformers", reason="pip install 'ticketry[transformers]'")
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ticketry[transformers]'")
from ticketry.integrations.transformers import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 12
EXAMPLES = [{"input_ids": (words := (number + torch.arange(8)) % 11), "labels": words} for number in range(4 * STEPS)]


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    return transformers.GPT2LMHeadModel(config)


def train(folder: Path, callback: Any, resume: Any = None, model: Any = None, seed: int = 7, **more: Any) -> Any:
    usual = {"per_device_train_batch_size": 4, "save_steps": 4, "num_train_epochs": 1, "learning_rate": 1e-2}
    usual |= {"report_to": [], "disable_tqdm": True, "use_cpu": True, "seed": seed, "eval_strategy": "no"}
    arguments = transformers.TrainingArguments(str(folder), **{**usual, **more})
    data = {"train_dataset": EXAMPLES, "eval_dataset": EXAMPLES[:8]}
    trainer = transformers.Trainer(model or network(), arguments, callbacks=[callback], **data)
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


@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_a_ticket_with_the_weights_of_an_earlier_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    callback = MAKE[name]()
    trainer = train(tmp_path, callback)
    callback.ticket(early())
    trainer._load_from_checkpoint(str(tmp_path / "checkpoint-4"))
    with pytest.raises(TicketError, match="weights and the mask are of different moments"):
        callback.ticket(early())


def test_the_best_model_under_hold_is_a_ticket(tmp_path: Path) -> None:
    """`load_best_model_at_end` brings back weights of an earlier step, all under the same mask."""
    callback = MAKE["hold"]()
    more = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "greater_is_better": True}
    trainer = train(tmp_path, callback, metric_for_best_model="loss", **more)
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-4")  # the largest loss
    ticket = callback.ticket(early())
    weights = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-4").state_dict()
    assert all(torch.equal(ticket.trained[name], value) for name, value in weights.items())
    with pytest.raises(UsageError, match="load_best_model_at_end would bring back weights of another step"):
        train(tmp_path / "x", MAKE["gradual"](), metric_for_best_model="loss", **more)


@pytest.mark.parametrize("name", ["gradual", "gates"])
def test_a_checkpoint_of_another_folder_is_read_where_it_is(tmp_path: Path, name: str) -> None:
    """Also where the output folder has one of the same step, of another training."""
    whole = MAKE[name]()
    trained = train(tmp_path / "one", whole).model
    train(tmp_path / "other", MAKE[name](), model=network(1), seed=8)
    for output in ("other", "fresh"):
        callback = MAKE[name]()
        resumed = train(tmp_path / output, callback, str(tmp_path / "one" / "checkpoint-4")).model
        assert callback.mask == whole.mask
        assert same(resumed, trained)
    wrong = MAKE["gradual"]()
    wrong._resume_from = tmp_path / "one" / "checkpoint-8"
    with pytest.raises(MaskError if name == "gradual" else Exception, match=r"is of step 8, and training resumes at"):
        train(
            tmp_path / "one", wrong if name == "gradual" else _gates_from(tmp_path), tmp_path / "one" / "checkpoint-4"
        )


def _gates_from(folder: Path) -> Any:
    callback = MAKE["gates"]()
    callback._resume_from = folder / "one" / "checkpoint-8"
    return callback


def test_the_mask_of_another_training_at_the_same_step_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "one", MAKE["gradual"]())
    train(tmp_path / "other", MAKE["gradual"](), model=network(1), seed=8)
    shutil.copy(tmp_path / "other" / "checkpoint-4" / "ticketry-gradual.safetensors", tmp_path / "one" / "checkpoint-4")
    with pytest.raises(MaskError, match="the weights are of another checkpoint than the state of gradual pruning"):
        train(tmp_path / "one", MAKE["gradual"](), str(tmp_path / "one" / "checkpoint-4"))


@pytest.mark.parametrize("name", MAKE)
def test_states_of_older_versions_resume(tmp_path: Path, name: str) -> None:
    whole = MAKE[name]()
    trained = train(tmp_path, whole).model
    path = tmp_path / "checkpoint-4" / f"ticketry-{name}.safetensors"
    state = read_state(path)
    for entry in ("step", "cuts", "total", "applied") + (("done",) if name == "gates" else ()):
        state.pop(entry, None)
    write_state(path, state)
    callback = MAKE[name]()
    assert same(train(tmp_path, callback, str(tmp_path / "checkpoint-4")).model, trained)
    assert callback.mask == whole.mask


@pytest.mark.parametrize("checkpoint", [4, 12])
def test_resumed_for_longer(tmp_path: Path, checkpoint: int) -> None:
    make = lambda: GradualCallback(0.2, begin="10%", end="75%", distribution="layerwise")  # noqa: E731
    train(tmp_path, make())
    callback = make()
    trainer = train(tmp_path, callback, str(tmp_path / f"checkpoint-{checkpoint}"), num_train_epochs=2)
    assert trainer.state.global_step == 2 * STEPS
    assert callback.mask.kept == pytest.approx(0.2 * callback.mask.total, abs=3)
    assert max(callback.job._gradual.cuts) == 9  # 75 % of 12 steps
    gates = MAKE["gates"]()
    train(tmp_path / "gates", MAKE["gates"]())
    with pytest.warns(UserWarning, match=r"training of 12 steps, and this training has 24"):
        train(tmp_path / "gates", gates, str(tmp_path / "gates" / f"checkpoint-{checkpoint}"), num_train_epochs=2)
    assert gates.gates.progress == 1


def test_resumed_for_shorter_is_refused(tmp_path: Path) -> None:
    for name, said in (("gradual", "has only 6 steps"), ("gates", "this training has only 6")):
        train(tmp_path / name, MAKE[name]())
        with pytest.raises((MaskError, UsageError), match=rf"{said}|step 9 of 6"):
            train(tmp_path / name, MAKE[name](), str(tmp_path / name / "checkpoint-4"), max_steps=6)
