"""Callbacks in transformers' own Trainer: a small GPT-2 made from a configuration learns to count."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ticketry as tk
from samples import sample
from ticketry.errors import HoldError, TicketryError, UsageError

transformers = pytest.importorskip(
    "transformers", reason="transformers is not installed: pip install 'ticketry[transformers]'"
)
pytest.importorskip("accelerate", reason="accelerate is not installed: pip install 'ticketry[transformers]'")
from ticketry.integrations.transformers import GatesCallback, GradualCallback, HoldCallback  # noqa: E402

STEPS, BATCH, ACCUMULATE, WORDS, LENGTH = 12, 4, 2, 23, 12
CLIP = 0.7
GATE_SGD = partial(torch.optim.SGD, lr=40.0, momentum=0.9)
CUTS = {"begin": "1it", "end": "9it", "frequency": "4it"}

pytestmark = pytest.mark.filterwarnings("ignore")


def network(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=WORDS,
            n_positions=LENGTH,
            n_embd=16,
            n_layer=2,
            n_head=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def sentences() -> list[dict[str, torch.Tensor]]:
    """Counting on from anywhere by ones, twos or threes."""
    found = []
    for number in range(STEPS * BATCH * ACCUMULATE):
        words = (number + torch.arange(LENGTH) * (1 + number % 3)) % WORDS
        found.append({"input_ids": words, "labels": words})
    return found


def arguments(folder: Path, **more: Any) -> Any:
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": ACCUMULATE,
        "max_grad_norm": CLIP,
        "learning_rate": 1e-2,
        "weight_decay": 0.3,
        "lr_scheduler_type": "cosine",
        "save_steps": 5,
        "logging_steps": 4,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 7,
        "dataloader_num_workers": 0,
    }
    return transformers.TrainingArguments(str(folder), **{**settings, **more})


class Watch(transformers.TrainerCallback):
    """After every step: what the mask removes is exactly 0, before it and in the optimiser's state."""

    def __init__(self, callback: Any) -> None:
        self.callback, self.kept = callback, []

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        if isinstance(self.callback, GatesCallback):
            return
        mask = self.callback.mask
        self.kept.append(mask.kept)
        part = model.get_submodule(self.callback._module)
        for name, parameter in mask.parameters(part).items():
            assert not parameter.detach()[~mask[name]].any()
            for value in more["optimizer"].state[parameter].values():
                assert value.dim() == 0 or not value[~mask[name]].any()


class Stop(transformers.TrainerCallback):
    """The power fails."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 7:
            raise RuntimeError("power cut")


def train(
    folder: Path,
    callback: Any,
    model: Any = None,
    resume: Any = None,
    others: Any = (),
    trainer: Any = None,
    **more: Any,
) -> Any:
    model = model or network()
    watch = Watch(callback)
    callbacks = [callback, watch, *others]
    made = transformers.Trainer(
        model, arguments(folder, **more), train_dataset=sentences(), callbacks=callbacks, **(trainer or {})
    )
    made.train(resume_from_checkpoint=resume)
    if not isinstance(callback, GatesCallback):
        assert len(watch.kept) == STEPS - (int(str(resume).rpartition("-")[2]) if resume else 0)
    return made.model


def same(one: Any, other: Any) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


CALLBACKS = {
    "hold": lambda: HoldCallback(tk.prune(network(), density=0.3)),
    "gradual": lambda: GradualCallback(density=0.1, **CUTS),
    "gates": lambda: GatesCallback(
        kind="hard-concrete", init=-2.0, penalty=1e-8, optimizer=partial(torch.optim.Adam, lr=0.1), seed=2
    ),
}


@pytest.mark.parametrize("name", sample(CALLBACKS, ["hold"]))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    """With dropout, accumulation, clipping, weight decay and a schedule; the power fails two steps after a save."""
    whole, first, second = (CALLBACKS[name]() for _ in range(3))
    undisturbed = train(tmp_path / "whole", whole, network(0.1))
    model = network(0.1)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path / "parts", first, model, others=[Stop()])
    checkpoint = tmp_path / "parts" / "checkpoint-5"
    resumed = train(tmp_path / "parts", second, model, resume=str(checkpoint))
    assert same(resumed, undisturbed)
    assert second.mask == whole.mask
    assert 0 < whole.mask.density < 0.98
    for key, parameter in whole.mask.parameters(undisturbed).items():
        assert not parameter.detach()[~whole.mask[key]].any()
        assert parameter.detach()[whole.mask[key]].any()
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() <= network().state_dict().keys(), "plain names (tied weights are stored once)"


@pytest.mark.parametrize("name", sample(CALLBACKS, ["gradual"]))
def test_the_bits_of_a_plain_loop(tmp_path: Path, name: str) -> None:
    """The trainer's batches and learning rates, in a loop that uses `tk.hold`, `tk.gradual` or `tk.gates`."""
    callback, seen = CALLBACKS[name](), Seen()
    if name == "gates":  # the penalty is added up in another order in a plain loop: see test_jobs
        callback = GatesCallback(init=0.02, penalty=0.0, optimizer=GATE_SGD)
    more = {"data_collator": seen.collate, "compute_loss_func": seen.loss}
    model = train(tmp_path, callback, others=[seen], trainer=more, save_strategy="no")
    assert len(seen.rates) == STEPS
    plain = network()
    optimizer = transformers.Trainer(plain, arguments(tmp_path)).create_optimizer()
    if name == "hold":
        with tk.hold(plain, callback.mask):
            plain_loop(plain, optimizer, seen)
    elif name == "gradual":
        with tk.gradual(plain, density=0.1, steps=STEPS, **CUTS) as pruning:
            plain_loop(plain, optimizer, seen, after=pruning.step)
        assert (callback.mask ^ pruning.mask).kept == 0
        assert callback.mask.kept == round(0.1 * callback.mask.total)
    else:
        gates = tk.gates.attach(plain, init=0.02)
        gate_optimizer = GATE_SGD(gates.parameters())

        def before(step: int) -> None:
            gates.anneal(step / STEPS)
            gate_optimizer.zero_grad()

        plain_loop(plain, optimizer, seen, before, gate_optimizer.step)
        gates.anneal(1.0)
        assert (callback.mask ^ gates.harden()).kept == 0
        assert 0.02 < callback.mask.density < 0.98
        gates.detach(apply=True)
    assert same(model, plain)


def plain_loop(model: Any, optimizer: Any, seen: Any, before: Any = lambda step: None, after: Any = lambda: None):
    model.train()
    for step, rate in enumerate(seen.rates):
        before(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        for part in seen.batches[step * ACCUMULATE : (step + 1) * ACCUMULATE]:
            seen.loss(model(input_ids=part["input_ids"]), part["labels"]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        after()


class Seen(transformers.TrainerCallback):
    """What the trainer's loop has used."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.batches: list[dict[str, torch.Tensor]] = []

    def collate(self, examples: Any) -> Any:
        self.batches.append(transformers.default_data_collator(examples))
        return self.batches[-1]

    @staticmethod
    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs["logits"][:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])


@pytest.mark.slow
def test_checkpoints_from_elsewhere(tmp_path: Path) -> None:
    train(tmp_path / "one", CALLBACKS["gradual"]())
    moved = tmp_path / "moved-5"
    (tmp_path / "one" / "checkpoint-5").rename(moved)
    resumed = CALLBACKS["gradual"]()
    train(tmp_path / "two", resumed, resume=str(moved))
    assert resumed.mask.kept == round(0.1 * resumed.mask.total)
    (tmp_path / "elsewhere").mkdir()
    (moved / "ticketry-gradual.safetensors").rename(tmp_path / "elsewhere" / "ticketry-gradual.safetensors")
    with pytest.raises(TicketryError, match=r"ticketry-gradual\.safetensors is missing.*resume_from="):
        train(tmp_path / "three", CALLBACKS["gradual"](), resume=str(moved))
    named = GradualCallback(density=0.1, resume_from=tmp_path / "elsewhere", **CUTS)
    train(tmp_path / "four", named, resume=str(moved))
    assert named.mask == resumed.mask


@pytest.mark.parametrize("name", sample(CALLBACKS, ["gradual"]))
def test_autocast(tmp_path: Path, name: str) -> None:
    callback = CALLBACKS[name]()
    model = train(tmp_path, callback, bf16=True)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for key, parameter in callback.mask.parameters(model).items():
        assert not parameter.detach()[~callback.mask[key]].any()


def test_a_part_of_the_model_and_its_ticket(tmp_path: Path) -> None:
    model = network()
    early = {name: value.clone() for name, value in model.transformer.state_dict().items()}
    callback = GradualCallback(sparsity=0.8, module="transformer", **CUTS)
    with pytest.raises(UsageError, match="train first"):
        callback.ticket(early)
    train(tmp_path / "out", callback, model)
    assert all(name.startswith("h.") for name in callback.mask)
    callback.ticket(early, {"data": "counting"}).save(tmp_path / "ticket")
    loaded = tk.Ticket.load(tmp_path / "ticket")
    assert loaded.info["data"] == "counting"
    assert loaded.mask.kept == round(0.2 * loaded.mask.total)
    assert same(loaded.apply(network().transformer, "trained"), model.transformer)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no module 'bert'"):
        train(tmp_path, GradualCallback(0.1, module="bert"))
    for callback in (GradualCallback(0.1), GatesCallback()):
        with pytest.raises(UsageError, match="load_best_model_at_end"):
            train(tmp_path, callback, load_best_model_at_end=True, eval_strategy="no", save_strategy="no")


BROKEN_OFF = {
    "hold": lambda: HoldCallback(tk.prune(network(), density=0.2, score="random", seed=3)),
    "gates": GatesCallback,
}


def test_training_after_one_that_broke_off_is_as_on_a_fresh_model(tmp_path: Path) -> None:
    """With two callbacks at once, while the exception, with all that it refers to, is still there."""
    model, start = network(), network().state_dict()
    with pytest.raises(RuntimeError, match="power cut") as _:
        train(tmp_path, BROKEN_OFF["hold"](), model, others=[Stop()], save_strategy="no")
    model.load_state_dict(start)
    results = []
    for one in (model, network()):
        callback, other = CALLBACKS["gradual"](), HoldCallback(tk.prune(network(), density=0.5, seed=4, score="random"))
        results.append((train(tmp_path, callback, one, others=[other], save_strategy="no"), callback.mask))
        for key, parameter in other.mask.parameters(one).items():
            assert not parameter.detach()[~other.mask[key]].any()
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_a_plain_loop_after_a_training_that_broke_off(tmp_path: Path) -> None:
    for left, released in (("gates", True), ("hold", False)):
        model, start, callback = network(), network().state_dict(), BROKEN_OFF[left]()
        with pytest.raises(RuntimeError, match="power cut") as _:
            train(tmp_path, callback, model, others=[Stop()], save_strategy="no")
        model.load_state_dict(start)
        if released:
            callback.release()
            callback.release()
        else:
            with pytest.raises(HoldError, match="a training of this model broke off"):
                one_step(model)
            model.load_state_dict(start)
        assert same(one_step(model), one_step(network()))


def one_step(model: Any) -> Any:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.zero_grad()
    words = torch.stack([each["input_ids"] for each in sentences()[:4]])
    model(input_ids=words, labels=words).loss.backward()
    optimizer.step()
    return model


def test_what_a_training_that_still_runs_has_on_its_model_stays(tmp_path: Path) -> None:
    """One within another, on a part of the model, which breaks off and is begun again."""
    outer = HoldCallback(tk.prune(network(), density=0.5, score="random", seed=4))

    class Within(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
            if state.global_step == 2:
                for others in ([Stop()], []):
                    inner = HoldCallback(tk.prune(network(), density=0.5, score="random", seed=5))
                    made = transformers.Trainer(
                        model,
                        arguments(tmp_path, save_strategy="no"),
                        train_dataset=sentences(),
                        callbacks=[inner, *others],
                    )
                    with contextlib.suppress(RuntimeError):
                        made.train()
                    for mask in (inner.mask, outer.mask):
                        for name, parameter in mask.parameters(model).items():
                            assert not parameter.detach()[~mask[name]].any()

    train(tmp_path, outer, others=[Within()], save_strategy="no")


def test_a_training_that_never_began_leaves_nothing(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(RuntimeError, match="power cut"):
        train(tmp_path, HoldCallback(tk.prune(network(), density=0.5)), others=[Stop()])
    (tmp_path / "checkpoint-5" / "ticketry-hold.safetensors").unlink()
    with pytest.raises(TicketryError, match="is missing"):
        train(tmp_path, HoldCallback(tk.prune(network(), density=0.5)), model, resume=True)
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def test_the_example(tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": network(), "arguments": arguments(tmp_path / "out"), "data": sentences()}
    exec(example("Transformers"), names)  # the point of this test
    ticket = tk.Ticket.load("from-transformers")
    assert ticket.mask.kept == round(0.1 * ticket.mask.total)
    assert same(ticket.apply(network(), "trained"), names["model"])


@pytest.mark.slow
def test_the_example_of_rewinding(tmp_path: Path, example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ticket's training starts from the pre-trained weights times its mask, in the last round too."""
    monkeypatch.chdir(tmp_path)
    starts, begun = [], transformers.Trainer.train

    def train(trainer: Any) -> Any:
        starts.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
        return begun(trainer)

    monkeypatch.setattr(transformers.Trainer, "train", train)
    names = {"model": network(), "arguments": arguments(tmp_path / "out", save_strategy="no"), "data": sentences()}
    exec(example("Rewind to pre-trained weights"), names)  # the point of this test
    ticket, pretrained = tk.Ticket.load("fine-tuned"), network().state_dict()
    assert ticket.mask.kept == round(0.3 * ticket.mask.total)
    assert all(torch.equal(ticket.start[name], value) for name, value in pretrained.items())
    assert len(starts) == 4
    for name, value in pretrained.items():
        assert torch.equal(starts[0][name], value)
        kept = ticket.mask.get("transformer.wte.weight" if name == "lm_head.weight" else name)  # one, of two names
        assert torch.equal(starts[-1][name], value if kept is None else value * kept)
    assert same(ticket.apply(network(), "trained"), names["model"])
