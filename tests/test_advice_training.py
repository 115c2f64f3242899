"""Errors of training, tickets, verdicts and tasks: what each message says to do is done, and works."""

from __future__ import annotations

import copy
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import ticketry as tk
from advice import Advice, check, net, x
from ticketry.engine.export import export


def _step(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    optimizer.zero_grad()
    model(x()).square().mean().backward()
    optimizer.step()


def _train(pruning: Any, model: nn.Module, steps: int) -> Any:
    """Train some steps under gradual pruning; return it."""
    for _ in range(steps):
        _step(model)
        pruning.step()
    return pruning


def _gradual(steps: int = 8, **options: Any) -> Any:
    model = net()
    with tk.gradual(model, 0.5, **{"steps": steps, "frequency": "1it", **options}) as pruning:
        return _train(pruning, model, steps)


def _resumed(**options: Any) -> Any:
    """Resume after 4 of 8 steps to density 0.5, with other options."""
    model = net()
    state = _train(tk.gradual(model, 0.5, steps=8, frequency="1it"), model, 4).state_dict()
    model = copy.deepcopy(model)
    pruning = tk.gradual(model, **{"density": 0.5, "steps": 8, "frequency": "1it", **options})
    pruning.load_state_dict(state)
    return _train(pruning, model, pruning.steps - 4)


def _from_the_start() -> Any:
    """Start from a checkpoint of before the first cut."""
    model = net()
    state = _train(tk.gradual(model, 0.5, steps=8, frequency="1it"), model, 1).state_dict()
    model = copy.deepcopy(model)
    pruning = tk.gradual(model, 0.3, steps=8, frequency="1it")
    pruning.load_state_dict(state)
    return _train(pruning, model, 7)


def _copy_of_gradual(*, loaded: bool = False, anew: bool = False) -> Any:
    model = net()
    pruning = _train(tk.gradual(model, 0.5, steps=8, frequency="1it"), model, 4)
    twin, other = copy.deepcopy((pruning, model))
    if loaded:
        twin.load_state_dict(twin.state_dict())
    if anew:
        twin = tk.gradual(other, 0.5, steps=8, frequency="1it")
        twin.load_state_dict(pruning.state_dict())
    return _train(twin, other, 4)


def _copy_of_hold(*, anew: bool) -> None:
    model = net()
    mask = tk.prune(model, 0.5)
    held = tk.hold(model, mask)
    twin, other = copy.deepcopy((held, model))
    if anew:
        twin = tk.hold(other, mask)
    _step(other)
    twin.check()


def _rebuilt(*, leave: bool) -> None:
    model = net()
    mask = tk.prune(model, 0.5)
    held = tk.hold(model, mask)
    if leave:
        held.release()
    model[2] = nn.Linear(8, 4)
    if leave:
        held = tk.hold(model, tk.prune(model, 0.5))
    _step(model)
    held.check()
    held.release()


def _gated(*, detach: bool) -> None:
    model = net()
    gates = tk.gates.attach(model, init=0.1)
    if detach:
        gates.detach()
    tk.gates.attach(model, init=0.1).detach()


def _copied_gates(*, of_model: bool) -> None:
    model = net()
    gates = tk.gates.attach(model, init=0.1)
    if not of_model:
        copy.deepcopy(gates)
    other = tk.gates.attach(copy.deepcopy(model), init=0.1)
    other.load_state_dict(gates.state_dict())


def _shallow(*, deep: bool) -> None:
    model = net()
    tk.gates.attach(model, init=0.1)
    (copy.deepcopy if deep else copy.copy)(model[0])(x())


def _sparse(**options: Any) -> Any:
    model = net()
    return tk.sparse_training(model, tk.prune(model, 0.5), x(), **options)


def _without_mask() -> Any:
    fast = _sparse()
    fast.update(None)
    return fast


def _second_copy(*, of_model: bool) -> Any:
    model = net()
    fast = tk.sparse_training(model, tk.prune(model, 0.5), x())
    if not of_model:
        return copy.deepcopy(fast)
    other = copy.deepcopy(model)
    return tk.sparse_training(other, tk.prune(other, 0.5), x())(x())


def _backward(*, twice: bool) -> None:
    model, read = nn.LSTM(64, 64), torch.randn(8, 4, 64)
    out, _ = tk.sparse_training(model, tk.prune(model, 0.1), read)(read)
    if twice:
        out.sum().backward(retain_graph=True)
        out.square().sum().backward()
    else:
        (out.sum() + out.square().sum()).backward()


def _half(*, move: bool) -> Any:
    model = net().to(torch.float64)
    if move:
        model.float().cpu()
    return tk.sparse_training(model, tk.prune(model, 0.5), x().to(next(model.parameters()).dtype))


def _compiled() -> Any:
    model = net()
    return tk.compile(model, tk.prune(model, 0.5), x())


def _double(*, before: bool) -> Any:
    return tk.compile(net().double().float(), None, x()) if before else _compiled().double()


def _trained_again(*, compiled: bool) -> None:
    model = net()
    fast = tk.compile(model, None, x())
    (fast if compiled else model).train()


def _exported(name: str, **options: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return export(net(), None, x(), Path(folder) / name, **options)


def _ticket(**parts: Any) -> tk.Ticket:
    model = net()
    given = {"mask": tk.prune(model, 0.5), "start": model.state_dict(), "info": {"method": "one-shot"}, **parts}
    return tk.Ticket(**given)


def _trained_ticket() -> nn.Module:
    return _ticket(trained={name: value + 1 for name, value in net().state_dict().items()}).apply(net(), "trained")


def _saved(*, at_file: bool) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "file").write_text("", encoding="utf-8")
        return _ticket().save(Path(folder) / ("file" if at_file else "other"))


def _verdict(ticket: Any = (90.0, 91.0, 92.0), dense: Any = (90.1, 91.1, 92.1), **options: Any) -> Any:
    return tk.evidence.verdict(ticket, dense, **{"claim": "matches", **options})


def _rows() -> TensorDataset:
    return TensorDataset(torch.randn(20, 8), torch.arange(20) % 2)


def _task(train: Any, **options: Any) -> Any:
    task = tk.dataset_task("rows", lambda: nn.Linear(8, 2), train, _rows(), **options)
    return task.load()


def _mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs[:, 0].square()


CASES = {
    # gradual pruning
    "score with data": Advice("take magnitude", lambda: _gradual(score="snip"), lambda: _gradual(score="magnitude")),
    "pattern N:M": Advice(
        "take prune, or another pattern",
        lambda: _gradual(pattern="2:4"),
        lambda: tk.prune(net(), pattern="2:4"),
        lambda: _gradual(pattern="4x1"),
    ),
    "ends too late": Advice("let it end earlier", lambda: _gradual(end="100%"), lambda: _gradual(end="75%")),
    "begins too late": Advice(
        "let it end at a later step than it begins, or train for more steps",
        lambda: _gradual(begin="6it", end="50%"),
        lambda: _gradual(begin="6it", end="7it"),
        lambda: _gradual(begin="6it", end="50%", steps=20),
    ),
    "counted in epochs": Advice(
        "write steps (it) or a share (%)",
        lambda: _gradual(begin="1ep"),
        lambda: _gradual(begin="1it"),
        lambda: _gradual(begin="10%"),
    ),
    "resumed to another density": Advice(
        "resume with density=0.5, or start from a checkpoint of before the first cut",
        lambda: _resumed(density=0.3),
        lambda: _resumed(density=0.5),
        _from_the_start,
    ),
    "resumed for fewer steps": Advice(
        "resume with more than 6 steps", lambda: _resumed(steps=6), lambda: _resumed(steps=7)
    ),
    "copy of gradual pruning": Advice(
        "copy.load_state_dict(copy.state_dict()), or make one on the model that you train, and give it that state",
        _copy_of_gradual,
        lambda: _copy_of_gradual(loaded=True),
        lambda: _copy_of_gradual(anew=True),
    ),
    # masks that are held
    "copy of a held mask": Advice(
        "hold the mask on the copied model, with tk.hold(model, mask)",
        lambda: _copy_of_hold(anew=False),
        lambda: _copy_of_hold(anew=True),
    ),
    "layer rebuilt": Advice(
        "leave the block or release() the mask before that, and hold a mask of the new model",
        lambda: _rebuilt(leave=False),
        lambda: _rebuilt(leave=True),
    ),
    # gates
    "gates twice": Advice("detach them first", lambda: _gated(detach=False), lambda: _gated(detach=True)),
    "copy of gates": Advice(
        "copy the model, attach gates to the copy, and give them this state_dict()",
        lambda: _copied_gates(of_model=False),
        lambda: _copied_gates(of_model=True),
    ),
    "shallow copy": Advice("or copy.deepcopy", lambda: _shallow(deep=False), lambda: _shallow(deep=True)),
    "init of gates": Advice(
        "a number from -", lambda: tk.gates.attach(net(), init=1e9), lambda: tk.gates.attach(net(), init=1.0).detach()
    ),
    # kernels
    "kept parameters without a mask": Advice(
        "train parameters() instead",
        lambda: _without_mask().kept_parameters(),
        lambda: list(_without_mask().parameters()),
    ),
    "copy of sparse training": Advice(
        "copy the model, and call sparse_training with the copy",
        lambda: _second_copy(of_model=False),
        lambda: _second_copy(of_model=True),
    ),
    "pickled sparse training": Advice(
        "save its state_dict, or the model",
        lambda: pickle.dumps(_sparse()),
        lambda: pickle.dumps(_sparse().state_dict()),
        lambda: pickle.dumps(net()),
    ),
    "backward twice": Advice("add losses up before", lambda: _backward(twice=True), lambda: _backward(twice=False)),
    "float64": Advice("model.float().cpu()", lambda: _half(move=False), lambda: _half(move=True)),
    "precision": Advice("choose from fp32, bf16", lambda: _sparse(precision="fp16"), lambda: _sparse(precision="fp32")),
    "compiled model trained": Advice(
        "train the model that it was compiled from",
        lambda: _trained_again(compiled=True),
        lambda: _trained_again(compiled=False),
    ),
    "compiled model converted": Advice(
        "move or convert the model before it is compiled",
        lambda: _double(before=False),
        lambda: _double(before=True),
    ),
    "export with another ending": Advice(
        "name another file, or format='pt2'",
        lambda: _exported("model.pt2", format="onnx"),
        lambda: _exported("model.pt2", format="pt2"),
    ),
    # tickets
    "not trained": Advice(
        "apply its start, and train it",
        lambda: _ticket().apply(net(), "trained"),
        lambda: _step(_ticket().apply(net())),
        _trained_ticket,
    ),
    "start is a model": Advice(
        "a state dict, such as model.state_dict()",
        lambda: _ticket(start=net()),
        lambda: _ticket(start=net().state_dict()),
    ),
    "info that JSON cannot hold": Advice(
        "give text or numbers", lambda: _ticket(info={"x": x()}), lambda: _ticket(info={"x": "4 x 8"})
    ),
    "info is not finite": Advice(
        "use null", lambda: _ticket(info={"loss": float("nan")}), lambda: _ticket(info={"loss": None})
    ),
    "sparse tensor in a state": Advice(
        "leave it out of the state dict",
        lambda: _ticket(start={**net().state_dict(), "extra": torch.eye(2).to_sparse()}),
        _ticket,
    ),
    "ticket at a file": Advice("choose another name", lambda: _saved(at_file=True), lambda: _saved(at_file=False)),
    # verdicts
    "wins without a control": Advice(
        "train controls, or claim 'matches'",
        lambda: _verdict(claim="wins"),
        lambda: _verdict(claim="wins", controls={"shuffled": (80.0, 81.0, 82.0)}),
        lambda: _verdict(claim="matches"),
    ),
    "fractions": Advice(
        "give both in percent, or both as fractions",
        lambda: _verdict((0.9, 0.91, 0.92), (0.9, 0.91, 0.92), margin=0.5),
        lambda: _verdict(margin=0.5),
        lambda: _verdict((0.9, 0.91, 0.92), (0.9, 0.91, 0.92), margin=0.005),
    ),
    "unequal seeds": Advice(
        "train both with the same ones", lambda: _verdict((90.0, 91.0)), lambda: _verdict((90.0, 91.0), (90.0, 91.0))
    ),
    "parents": Advice("give one for each seed", lambda: _verdict(parents=[0, 1]), lambda: _verdict(parents=[0, 1, 2])),
    # tasks of data sets
    "loader with a sampler": Advice(
        "give the data set itself",
        lambda: _task(DataLoader(_rows(), sampler=WeightedRandomSampler([1.0] * 20, 20))),
        lambda: _task(_rows()),
    ),
    "iterable": Advice(
        "give a map-style data set (with __getitem__ and __len__) or a loader over one",
        lambda: _task(iter(_rows())),
        lambda: _task(list(_rows())),
        lambda: _task(DataLoader(_rows(), batch_size=4)),
    ),
    "one example": Advice(
        "give validation=",
        lambda: _task(list(_rows())[:1]),
        lambda: _task(list(_rows())[:1], validation=_rows()),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_message_says_to_do_works(name: str) -> None:
    check(CASES[name])
