"""Error messages that say what to do: doing it works."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import ticketry as tk
from advice import Advice, check, convolutions, images, loss, net, pairs, x
from ticketry.core.score import Loss

# -- masks and scopes --------------------------------------------------------------------------------------------------


class _OwnProduct(nn.Module):
    """A weight that no linear layer of torch's holds."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class _Idle(nn.Module):
    """The second layer is not used in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.used(x)
        return out


class _Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Linear(8, 8)
        self.codes.weight = nn.Parameter(torch.ones(8, 8, dtype=torch.int8), requires_grad=False)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(x)
        return out


def _unequal() -> nn.Module:
    """All weights of the last layer are smaller than those of the first."""
    model = net()
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    return model


def _by_row(rows: int) -> tk.Mask:
    """A mask of whole blocks of rows."""
    return tk.prune(net(), 0.5, pattern=f"{rows}x1")


def _weight_norm(keep: int) -> nn.Module:
    """Mask a row of a layer with weight_norm but for `keep` of its weights."""
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    kept = torch.ones(8, 8)
    kept[0, keep:] = 0
    (name,) = tk.scope(model).shapes
    return tk.Mask({name: kept}).apply_(model)


def _lazy(call: bool) -> tk.Mask:
    model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, 8))
    if call:
        model(x())
    return tk.prune(model, 0.5)


def _meta(*, initialise: bool) -> tk.Mask:
    model = net().to("meta")
    if initialise:
        model.to_empty(device="cpu")
        for layer in (model[0], model[2]):
            layer.reset_parameters()
    return tk.prune(model, 0.5)


def _of_inference_mode(*, copied: bool) -> Any:
    with torch.inference_mode():
        model = net()
    if copied:
        model = copy.deepcopy(model)
    with tk.hold(model, tk.prune(model, 0.5)) as held:
        model(x()).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    return held


def _torchscript(*, afterwards: bool) -> Any:
    model = net()
    gates = tk.gates.attach(model if afterwards else torch.jit.script(model))
    gates.detach()
    return torch.jit.script(model)(x())


def _spared() -> tk.Scope:
    model = net()
    return tk.scope(model, spare=[net()[0]])


def _own_module() -> tk.Scope:
    model = net()
    return tk.scope(model, spare=[model[0]])


# -- scores ------------------------------------------------------------------------------------------------------------


class _OwnNorm(nn.Module):
    """Makes a float32 tensor whatever type its input has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.own_type = True

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.float32 if self.own_type else x.dtype
        out: Tensor = self.linear(x) @ torch.eye(8, dtype=dtype)
        return out


def _scored(give: Callable[[nn.Module, tk.Scope], Any]) -> Callable[[], tk.Mask]:
    """Prune by a score of the user's."""

    def score(model: nn.Module, scope: tk.Scope, **_: object) -> Any:
        return give(model, scope)

    return lambda: tk.prune(net(), 0.5, score=score)


def _weights(model: nn.Module, scope: tk.Scope) -> dict[str, Tensor]:
    return {name: weight.detach().abs() for name, weight in scope.parameters(model).items()}


def _one_less(model: nn.Module, scope: tk.Scope) -> dict[str, Tensor]:
    return dict(list(_weights(model, scope).items())[1:])


def _each(change: Callable[[Tensor], Any]) -> Callable[[nn.Module, tk.Scope], dict[str, Any]]:
    return lambda model, scope: {name: change(one) for name, one in _weights(model, scope).items()}


def _snip(loss: Loss = loss) -> tk.Mask:
    return tk.prune(net(), 0.5, score="snip", batches=pairs(), loss=loss)


def _outputs(model: nn.Module) -> Callable[..., Tensor]:
    """A loss that calls another model than the one it is given."""
    return lambda _, batch: model(batch[0]).square().mean()


def _grasp(model: nn.Module, loss: Loss, temperature: float = 2.0) -> dict[str, Tensor]:
    return tk.score.grasp(model, tk.scope(model), batches=pairs(), loss=loss, temperature=temperature)


def _synflow(model: nn.Module, batches: Any = None, loss: Any = None, **scope: Any) -> tk.Mask:
    return tk.prune(model, 0.5, score="synflow", scope=tk.scope(model, **scope), batches=batches, loss=loss)


def _own_type() -> nn.Module:
    model = _OwnNorm()
    model.own_type = False
    return model


# -- structures and costs ----------------------------------------------------------------------------------------------


class _FixedWidth(nn.Module):
    """A number in the code stands for a width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu().reshape(-1, 8))
        return out


def _channels(**options: Any) -> tk.Mask:
    return tk.structure.channels(convolutions(), images(), **options)


def _refill(mask: tk.Mask | None = None, **options: Any) -> tk.Mask:
    model = convolutions()
    return tk.structure.refill(model, mask or tk.prune(model, 0.3, keep_at_least=8), images(), **options)


def _regroup(density: float = 0.3, mask: tk.Mask | None = None, **options: Any) -> tk.Mask:
    model = convolutions()
    given = mask or tk.prune(model, 0.3, keep_at_least=8)
    return tk.structure.regroup(model, given, density, **{"rows": 4, **options})


def _empty_layer() -> tk.Mask:
    """A mask that keeps nothing in the first layer."""
    model = convolutions()
    ones = tk.Mask.ones(tk.scope(model))
    return tk.Mask({name: kept & (name != "0.weight") for name, kept in ones.items()})


def _shrunk() -> nn.Module:
    model = _FixedWidth()
    kept = {"first.weight": torch.ones(8, 8), "last.weight": torch.ones(8, 8)}
    kept["first.weight"][4:] = 0
    kept["last.weight"][:, 4:] = 0
    return tk.shrink(model, tk.Mask({**kept, "first.bias": kept["first.weight"][:, 0]}), x())


def _chosen() -> nn.Module:
    model = nn.Sequential(_FixedWidth(), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    return tk.shrink(model, tk.structure.channels(model, x(), 0.9), x())


def _optimizer(kind: type[torch.optim.Optimizer], *, anew: bool = False, of_model: bool = True) -> Any:
    model = convolutions()
    plan = tk.structure.shrink_plan(model, tk.structure.channels(model, images(), 0.7), images())
    optimizer = kind((model if of_model else convolutions()).parameters(), 0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = model(images()).square().mean()
        found.backward()
        return found

    optimizer.step(closure)
    small = tk.structure.rebuild(model, plan)
    if anew:
        return kind(small.parameters(), 0.1)
    return tk.structure.shrink_optimizer(optimizer, model, small, plan)


def _costs(**options: Any) -> Any:
    return tk.cost.model(net(), x(), "h100-bf16", **options)


def _bytes(amount: float, **options: Any) -> tk.Mask:
    return tk.prune(net(), bytes=amount, example_inputs=x(), **options)


# -- training, tickets and tasks ---------------------------------------------------------------------------------------


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


def _ticket(**parts: Any) -> tk.Ticket:
    model = net()
    given = {"mask": tk.prune(model, 0.5), "start": model.state_dict(), "info": {"method": "one-shot"}, **parts}
    return tk.Ticket(**given)


def _trained_ticket() -> nn.Module:
    return _ticket(trained={name: value + 1 for name, value in net().state_dict().items()}).apply(net(), "trained")


def _verdict(ticket: Any = (90.0, 91.0, 92.0), dense: Any = (90.1, 91.1, 92.1), **options: Any) -> Any:
    return tk.evidence.verdict(ticket, dense, **{"claim": "matches", **options})


def _rows() -> TensorDataset:
    return TensorDataset(torch.randn(20, 8), torch.arange(20) % 2)


def _task(train: Any, **options: Any) -> Any:
    task = tk.dataset_task("rows", lambda: nn.Linear(8, 2), train, _rows(), **options)
    return task.load()


# -- cases -------------------------------------------------------------------------------------------------------------

CASES = {
    # masks and scopes
    "no density": Advice(
        "give either density= (fraction kept) or sparsity= (fraction removed), or a budget in their place: flops=",
        lambda: tk.prune(net()),
        lambda: tk.prune(net(), density=0.5),
        lambda: tk.prune(net(), sparsity=0.5),
        lambda: tk.prune(net(), flops=0.5, example_inputs=x()),
        lambda: tk.prune(net(), bytes=0.9, example_inputs=x()),
    ),
    "percentage as a number": Advice(
        "write 50% or 0.5", lambda: tk.prune(net(), 50), lambda: tk.prune(net(), "50%"), lambda: tk.prune(net(), 0.5)
    ),
    "regrow by magnitude": Advice(
        "such as snip, taylor, fisher, crop, grasp or synflow",
        lambda: tk.prune(net(), 0.5, regrow=True, iterations=2),
        *(
            lambda name=name: tk.prune(net(), 0.5, regrow=True, iterations=2, score=name, batches=pairs(), loss=loss)
            for name in ("snip", "taylor", "fisher", "crop", "grasp", "synflow")
        ),
    ),
    "flops of an idle layer": Advice(
        "spare them in the scope",
        lambda: tk.prune(_Idle(), flops=0.5, example_inputs=x()),
        lambda: tk.prune(_Idle(), flops=0.5, example_inputs=x(), scope=tk.scope(_Idle(), spare=["idle"])),
    ),
    "denser than a pattern": Advice(
        "ask for 0.5 or less",
        lambda: tk.prune(net(), 0.75, pattern="2:4"),
        lambda: tk.prune(net(), 0.5, pattern="2:4"),
        lambda: tk.prune(net(), 0.25, pattern="2:4"),
    ),
    "denser than the mask before": Advice(
        "ask for at most 0.5",
        lambda: tk.prune(net(), 0.75, within=tk.prune(net(), 0.5)),
        lambda: tk.prune(net(), 0.5, within=tk.prune(net(), 0.5)),
    ),
    "a mask of another pattern": Advice(
        "Go on from a mask that was made with this pattern",
        lambda: tk.prune(net(), 0.25, pattern="4x1", within=tk.prune(net(), 0.5)),
        lambda: tk.prune(net(), 0.25, pattern="4x1", within=_by_row(4)),
    ),
    "an empty layer": Advice(
        "the lowest that leaves some in each is 0.5079: choose it, another distribution (layerwise, erk), spare the"
        " layer, or keep a weight in each (keep_at_least=1)",
        lambda: tk.prune(_unequal(), 0.25),
        lambda: tk.prune(_unequal(), 0.5079),
        lambda: tk.prune(_unequal(), 0.25, distribution="layerwise"),
        lambda: tk.prune(_unequal(), 0.25, distribution="erk"),
        lambda: tk.prune(_unequal(), 0.25, scope=tk.scope(_unequal(), spare=["2"])),
        lambda: tk.prune(_unequal(), 0.25, keep_at_least=1),
    ),
    "an empty layer of blocks": Advice(
        "choose a higher density, another distribution (layerwise, erk), smaller blocks, spare the layer, or keep a"
        " block in each (keep_at_least=1)",
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1"),
        lambda: tk.prune(_unequal(), 0.75, pattern="4x1"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", distribution="layerwise"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", distribution="erk"),
        lambda: tk.prune(_unequal(), 0.516, pattern="2x1"),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", scope=tk.scope(_unequal(), spare=["2"])),
        lambda: tk.prune(_unequal(), 0.516, pattern="4x1", keep_at_least=1),
    ),
    "nothing in scope": Advice(
        "include=",
        lambda: tk.prune(_OwnProduct(), 0.5),
        lambda: tk.prune(_OwnProduct(), 0.5, scope=tk.scope(_OwnProduct(), include=["matrix"])),
    ),
    "integers in scope": Advice(
        "leave it out with spare=",
        lambda: tk.prune(_Integers(), 0.5),
        lambda: tk.prune(_Integers(), 0.5, scope=tk.scope(_Integers(), spare=["codes"])),
    ),
    "spare another model's module": Advice("give modules of this very model, or their names", _spared, _own_module),
    "scope of names": Advice(
        "tk.scope(model, include=[...]) makes one",
        lambda: tk.prune(net(), 0.5, scope=["0.weight"]),
        lambda: tk.prune(net(), 0.5, scope=tk.scope(net(), include=["0.weight"])),
    ),
    "a mask of tensors": Advice(
        "tk.Mask({name: tensor",
        lambda: tk.hold(net(), {"0.weight": torch.ones(8, 8)}),
        lambda: tk.hold(net(), tk.Mask({"0.weight": torch.ones(8, 8)})).release(),
        lambda: tk.hold(model := net(), tk.prune(model, density=0.1)).release(),
    ),
    "an empty row under weight_norm": Advice(
        "keep one weight of each row", lambda: _weight_norm(0), lambda: _weight_norm(1)
    ),
    "lazy": Advice("call the model once", lambda: _lazy(False), lambda: _lazy(True)),
    "meta": Advice("to_empty", lambda: _meta(initialise=False), lambda: _meta(initialise=True)),
    "inference mode": Advice(
        "take copy.deepcopy(model)", lambda: _of_inference_mode(copied=False), lambda: _of_inference_mode(copied=True)
    ),
    "torchscript": Advice(
        "script or trace that afterwards",
        lambda: _torchscript(afterwards=False),
        lambda: _torchscript(afterwards=True),
    ),
    # scores
    "score gives numbers": Advice(
        "use torch.as_tensor",
        _scored(_each(lambda one: one.tolist())),
        _scored(_each(lambda one: torch.as_tensor(one.tolist()))),
    ),
    "score gives too little": Advice(
        "it needs a tensor for each parameter in scope", _scored(_one_less), _scored(_weights)
    ),
    "score gives complex": Advice(
        "give real ones", _scored(_each(lambda one: one + 0j)), _scored(_each(lambda one: (one + 0j).abs()))
    ),
    "score without data": Advice(
        "give batches= (of training data) and loss=, a function loss(model, batch)",
        lambda: tk.prune(net(), 0.5, score="snip"),
        _snip,
    ),
    "criterion of torch's": Advice(
        "lambda model, batch: criterion(model(batch[0]), batch[1])",
        lambda: _snip(nn.CrossEntropyLoss()),
        lambda: _snip(lambda model, batch: nn.CrossEntropyLoss()(model(batch[0]), batch[1])),
    ),
    "loss of each example": Advice(
        "the mean over the batch",
        lambda: _snip(lambda model, batch: model(batch[0]).sum(1)),
        lambda: _snip(lambda model, batch: model(batch[0]).sum(1).mean()),
    ),
    "loss of another model": Advice(
        "computed from another model than the one it is given",
        lambda: _snip(_outputs(net().requires_grad_(False))),
        _snip,
    ),
    "temperature of another model": Advice(
        "divide the logits in the loss instead",
        lambda: _grasp(net(), _outputs(net())),
        lambda: _grasp(net(), lambda model, batch: nn.functional.cross_entropy(model(batch[0]) / 2, batch[1]), 1.0),
    ),
    "synflow of pairs": Advice(
        "a batch is the model's input",
        lambda: _synflow(net(), [{"x": x()}]),
        lambda: _synflow(net(), [x()]),
        lambda: _synflow(net(), [(x(),)]),
    ),
    "synflow by another model": Advice(
        "give the model's inputs as batches, and no loss",
        lambda: _synflow(net(), pairs(), _outputs(net())),
        lambda: _synflow(net(), [x()]),
    ),
    "synflow of float32": Advice(
        "dtype=x.dtype", lambda: _synflow(_OwnNorm(), [x()]), lambda: _synflow(_own_type(), [x()])
    ),
    "synflow of norms": Advice(
        "leave it out of the scope (norms=False",
        lambda: _synflow(convolutions(), [torch.randn(2, 2, 4, 4)], norms=True),
        lambda: _synflow(convolutions(), [torch.randn(2, 2, 4, 4)]),
    ),
    # structures and costs
    "a mask that is not of channels": Advice(
        "make it with structure.channels and the same scope",
        lambda: _channels(density=0.5, within=tk.prune(convolutions(), 0.7)),
        lambda: _channels(density=0.5, within=_channels(density=0.7)),
    ),
    "slimming without norms": Advice(
        "leave it out with scope(model, spare=...), or choose another score",
        lambda: _channels(density=0.7, score="slimming"),
        lambda: _channels(density=0.95, score="slimming", scope=tk.scope(convolutions(), spare=["4"])),
        lambda: _channels(density=0.7, score="magnitude"),
    ),
    "inputs that do not fit": Advice(
        "give a tensor, a tuple or a dictionary of its arguments, two examples or more",
        lambda: tk.structure.channels(convolutions(), torch.randn(2, 3, 4, 4), 0.7),
        lambda: tk.structure.channels(convolutions(), images(), 0.7),
        lambda: tk.structure.channels(convolutions(), (images(),), 0.7),
        lambda: tk.structure.channels(convolutions(), {"input": images()}, 0.7),
    ),
    "a number for a width": Advice("Make a channel-wise mask, with structure.channels", _shrunk, _chosen),
    "LBFGS": Advice(
        "start a new optimiser for the smaller model",
        lambda: _optimizer(torch.optim.LBFGS),
        lambda: _optimizer(torch.optim.LBFGS, anew=True),
    ),
    "another model's optimiser": Advice(
        "give the model that the optimiser trains",
        lambda: _optimizer(torch.optim.Adam, of_model=False),
        lambda: _optimizer(torch.optim.Adam),
    ),
    "refill of an empty layer": Advice(
        "choose a mask of higher density, or leave them whole with spare=",
        lambda: _refill(_empty_layer()),
        lambda: _refill(tk.Mask.ones(tk.scope(convolutions()))),
        lambda: _refill(_empty_layer(), spare=["0"]),
    ),
    "regroup of an empty layer": Advice(
        "spare the layer", lambda: _regroup(0.3, _empty_layer()), lambda: _regroup(0.5, _empty_layer(), spare=["0"])
    ),
    "density that groups cannot meet": Advice(
        "choose a higher density or fewer rows, spare the layer, or collapse=keep",
        lambda: _regroup(0.01, rows=8),
        lambda: _regroup(0.3, rows=8),
        lambda: _regroup(0.05, rows=2),
        lambda: _regroup(0.01, rows=8, collapse="keep"),
    ),
    "unknown profile": Advice(
        "nor a profile (h100-bf16)",
        lambda: tk.cost.model(net(), x(), "zen9"),
        lambda: tk.cost.model(net(), x(), "h100-bf16"),
    ),
    "bases of a profile": Advice("leave target or bases out", lambda: _costs(bases=("eager",)), _costs),
    "precision of a profile": Advice(
        "give precision='bf16'", lambda: _costs(precision="fp16"), lambda: _costs(precision="bf16")
    ),
    "granularity without costs": Advice(
        "tk.cost.model(..., granularities=(",
        lambda: _costs().layers["0.weight"].curve("rows:16"),
        lambda: _costs(granularities=("rows:16",)).layers["0.weight"].curve("rows:16"),
    ),
    "costs in another unit": Advice(
        "leave cost out, or take those of tk.cost.model(model, example_inputs, unit='bytes')",
        lambda: _bytes(0.9, cost=tk.cost.model(net(), x(), unit="multiplications")),
        lambda: _bytes(0.9),
        lambda: _bytes(0.9, cost=tk.cost.model(net(), x(), unit="bytes")),
    ),
    "flops below the least": Advice(
        "ask for that or more",
        lambda: tk.prune(net(), flops=0.01, example_inputs=x(), keep_at_least=8),
        lambda: tk.prune(net(), flops=0.2, example_inputs=x(), keep_at_least=8),
    ),
    "bytes with all weights": Advice(
        "keep fewer in each (keep_at_least)",
        lambda: _bytes(0.85, keep_at_least=64),
        lambda: _bytes(0.85, keep_at_least=1),
    ),
    # training, tickets and tasks
    "pattern N:M": Advice(
        "take prune, or another pattern",
        lambda: _gradual(pattern="2:4"),
        lambda: tk.prune(net(), pattern="2:4"),
        lambda: _gradual(pattern="4x1"),
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
    "gates twice": Advice("detach them first", lambda: _gated(detach=False), lambda: _gated(detach=True)),
    "copy of gates": Advice(
        "copy the model, attach gates to the copy, and give them this state_dict()",
        lambda: _copied_gates(of_model=False),
        lambda: _copied_gates(of_model=True),
    ),
    "shallow copy": Advice("or copy.deepcopy", lambda: _shallow(deep=False), lambda: _shallow(deep=True)),
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
    "not trained": Advice(
        "apply its start, and train it",
        lambda: _ticket().apply(net(), "trained"),
        lambda: _step(_ticket().apply(net())),
        _trained_ticket,
    ),
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
def test_following_the_advice_of_a_message_works(name: str) -> None:
    check(CASES[name])
