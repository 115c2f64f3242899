"""Every public function that takes a model, for each kind of model and each state of torch.

A call gives the result of the plain case, or raises a `TicketryError` that says what to do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import tempfile
import traceback
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from samples import sample
from ticketry import testing
from ticketry.engine.export import export
from ticketry.errors import TicketryError
from ticketry_engine.bench import timing

_ENGINE = ("ticketry.engine.export", "ticketry_engine.gpu", "ticketry_engine.bench.timing")
PUBLIC_MODULES = ("ticketry", "ticketry.testing", *_ENGINE)
"""Modules whose public names are searched, with the public modules among these names."""

NOT_CALLED = {
    "gates.Gates.__init__": "gates.attach makes it",
    "Ticket.push": "uploads to a hub",
    "compile_gpu": "needs a GPU",
}


def public_functions() -> set[str]:
    """Return the qualified names of the public functions and methods that take a module."""
    found: set[str] = set()
    seen: set[int] = set()
    for name in PUBLIC_MODULES:
        _search(importlib.import_module(name), found, seen)
    return found


def _search(module: types.ModuleType, found: set[str], seen: set[int]) -> None:
    seen.add(id(module))
    short = module.__name__.rpartition(".")[2]
    prefix = "" if module.__name__ in ("ticketry", "ticketry_engine.gpu") else f"{short}."
    own = [key for key, value in vars(module).items() if getattr(value, "__module__", "").startswith(module.__name__)]
    for name in getattr(module, "__all__", [key for key in own if not key.startswith("_")]):
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            if id(value) not in seen and value.__name__.startswith("ticketry"):
                _search(value, found, seen)
            continue
        members = {name: value}
        if inspect.isclass(value):
            public = {key: each for key, each in vars(value).items() if key == "__init__" or not key.startswith("_")}
            members = {f"{name}.{key}": each for key, each in public.items() if inspect.isfunction(each)}
        for key, each in members.items():
            if callable(each) and id(each) not in seen and _takes_a_module(each):
                seen.add(id(each))
                found.add(key if key == short else f"{prefix}{key}")


def _takes_a_module(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(str(one.annotation).removesuffix(" | None") in ("nn.Module", "torch.nn.Module") for one in parameters)


# -- models ------------------------------------------------------------------------------------------------------------


@dataclass
class Given:
    """Arguments of a call."""

    model: Any
    x: Tensor
    mask: tk.Mask

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).abs().square().mean()

    def step(self, rate: float = 0.1) -> torch.optim.Optimizer:
        """A step of the caller's own loop, in the usual state of torch; none of frozen weights."""
        parameters = list(self.model.parameters())
        optimizer = torch.optim.SGD(parameters, rate, momentum=0.9)
        if any(parameter.requires_grad for parameter in parameters):
            with usual_state():
                self.loss(self.model, self.x).backward()
                optimizer.step()
        return optimizer


@contextlib.contextmanager
def usual_state() -> Iterator[None]:
    """Torch as it starts, for steps of the caller's own."""
    with contextlib.ExitStack() as stack:
        for one in (torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False)):
            stack.enter_context(one)
        stack.enter_context(torch.device("cpu"))
        stack.enter_context(_default_dtype(torch.float32))
        yield


def small_model() -> nn.Module:
    """A convolution with a norm and linear layers; its channels can be removed."""
    torch.manual_seed(0)
    head = (nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2))
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *head).eval()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embedding(tokens)).relu())
        return out


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8, dtype=torch.complex64), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x.to(torch.complex64)).abs())
        return out


def plain() -> Given:
    """The case that others are compared with: a model in evaluation mode, two examples, a mask of half its weights."""
    model = small_model()
    names = tk.scope(model, spare=["6"])
    return Given(model, torch.randn(2, 2, 4, 4), tk.prune(model, 0.5, distribution="layerwise", scope=names))


def _tied() -> Given:
    torch.manual_seed(0)
    model = Tied().eval()
    return Given(model, torch.randint(7, (2, 3)), tk.prune(model, 0.5))


def _complex() -> Given:
    torch.manual_seed(0)
    return Given(Complex().eval(), torch.randn(2, 4), tk.Mask({"first.weight": torch.rand(8, 4) < 0.5}))


def _changed(
    change: Callable[[nn.Module], Any], inputs: Callable[[Tensor], Tensor] = lambda x: x
) -> Callable[[], Given]:
    """Return the plain case with another model."""

    def build() -> Given:
        given = plain()
        return Given(change(given.model), inputs(given.x), given.mask)

    return build


def _lazy(model: nn.Module) -> nn.Module:
    layers = list(model.children())
    return nn.Sequential(*layers[:4], nn.LazyLinear(4), *layers[5:]).eval()


def _distributed(model: nn.Module) -> nn.Module:
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(model)


def _quantised(model: nn.Module) -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised: nn.Module = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return quantised


def _of_inference_mode(model: nn.Module) -> nn.Module:
    with torch.inference_mode():
        return small_model()


SAME: dict[str, Callable[[], Given]] = {
    "frozen": _changed(lambda model: model.requires_grad_(False)),
    "compiled": _changed(lambda model: torch.compile(model, backend="eager")),
    "distributed": _changed(_distributed),
    "data parallel": _changed(nn.DataParallel),
    "created in inference mode": _changed(_of_inference_mode),
    "torchscript": _changed(torch.jit.script),
}
"""Kinds of models with the plain one's weights: a call that works on one gives what it gives on the plain one."""
OTHERS: dict[str, Callable[[], Given]] = {
    "tied": _tied,
    "complex": _complex,
    "half": _changed(lambda model: model.bfloat16(), Tensor.bfloat16),
    "lazy": _changed(_lazy),
    "meta": _changed(lambda model: model.to("meta"), lambda x: x.to("meta")),
    "quantised": _changed(_quantised),
    "state dict": _changed(lambda model: model.state_dict()),
}
"""Other kinds: a call works, or says what to do."""

# -- states ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype float64": lambda: _default_dtype(torch.float64),
    "default dtype bfloat16": lambda: _default_dtype(torch.bfloat16),
    "device meta": lambda: torch.device("meta"),
    "default device meta": _default_device,
    "deterministic": _deterministic,
}


@contextlib.contextmanager
def _several_states() -> Iterator[None]:
    """One state of each kind at once."""
    with contextlib.ExitStack() as stack:
        for name in ("inference_mode", "autocast", "default dtype float64", "default device meta"):
            stack.enter_context(STATES[name]())
        yield


STATES["several"] = _several_states

# -- calls -------------------------------------------------------------------------------------------------------------


@functools.cache
def _channels() -> tk.Mask:
    given = plain()
    return tk.structure.channels(given.model, given.x, density=0.7)


@functools.cache
def _plan() -> tk.structure.ShrinkPlan:
    given = plain()
    return tk.structure.shrink_plan(given.model, _channels(), given.x)


@functools.cache
def _ticket() -> tk.Ticket:
    given = plain()
    return tk.Ticket(given.mask, given.model.state_dict(), {"method": "one-shot"})


def _held(given: Given) -> Any:
    with tk.hold(given.model, given.mask) as held:
        held.check(given.step())
    return [bool(one.detach()[~given.mask[name]].any()) for name, one in given.mask.parameters(given.model).items()]


def _gradual(given: Given) -> tk.Mask:
    with tk.gradual(given.model, 0.5, steps=2, begin="0it", end="1it", frequency="1it") as pruning:
        for _ in range(2):
            given.step(rate=0.0)  # frozen weights have the same mask
            pruning.step()
    return pruning.mask


def _gated(given: Given) -> tk.Mask:
    gates = tk.gates.attach(given.model, init=0.1)
    given.step()
    gates.detach()
    return gates.harden()


def _exported(given: Given) -> Callable[[], Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        export(given.model, given.mask, given.x, path)
        content = path.read_bytes()
    return lambda: len(content) > 0


def _other_model() -> nn.Module:
    with usual_state():
        return small_model()


def _referred(case: timing.Case) -> Callable[[], Any]:
    made = case.reference()
    return lambda: [one.clone() for one in made]


def _trained(given: Given) -> Callable[[], Any]:
    fast = tk.sparse_training(given.model, given.mask, given.x)
    fast(given.x)  # captures in the caller's state

    def step() -> Any:
        if all(parameter.requires_grad for parameter in given.model.parameters()):
            fast(given.x).square().sum().backward()
        made = fast(given.x).detach()
        fast.release()
        return made, [parameter.grad for parameter in given.model.parameters()]

    return step


def _compiled(given: Given) -> Callable[[], Any]:
    fast = tk.compile(given.model, given.mask, given.x)
    made = fast(given.x)
    return lambda: (made.clone(), fast(given.x))


def _trainable(small: nn.Module, x: Tensor) -> Callable[[], Any]:
    """The gradient of a module that was made in some state, in a step outside of it."""

    def step() -> Any:
        made = small(x).square().sum()
        if made.requires_grad:
            made.backward()
        return made.detach(), [parameter.grad for parameter in small.parameters()]

    return step


def _optimizer(given: Given) -> Any:
    small = tk.structure.rebuild(given.model, _plan())
    optimizer = torch.optim.SGD(given.model.parameters(), 0.1)
    return [
        group["params"] for group in tk.structure.shrink_optimizer(optimizer, given.model, small, _plan()).param_groups
    ]


def _met(given: Given) -> str:
    """Error for costs in another unit; meeting a real budget takes seconds."""
    costs = tk.cost.model(given.model, given.x, unit="multiplications")
    try:
        tk.cost.meet(given.model, given.x, 0.5, cost=costs, score="magnitude", threads=1)
    except tk.errors.UsageError as error:
        return str(error)
    raise AssertionError("costs in multiplications were taken for times")


def _measured(given: Given) -> Any:
    optimizer = torch.optim.SGD(nn.Linear(1, 1, device="cpu").parameters(), 0.1)
    cost = tk.meters.measure_step(given.model, given.loss, given.x, optimizer, mask=given.mask, repeats=1)
    return cost.flops, cost.dense_flops


def _score(name: str) -> Callable[[Given], Any]:
    def call(given: Given) -> Any:
        scope = tk.scope(given.model)
        return getattr(tk.score, name)(given.model, scope, batches=[given.x], loss=given.loss, seed=0)

    return call


SCORES = ("crop", "fisher", "grasp", "grasp200", "kfac", "magnitude", "random", "snip", "synflow", "taylor")

CALLS: dict[str, Callable[[Given], Any]] = {
    "timing.Case.__init__": lambda g: _referred(timing.Case(g.model, (g.x,))),
    "Hold.__init__": lambda g: tk.Hold(g.model, g.mask, hooks=False).tensors,
    "Mask.apply_": lambda g: dict(g.mask.apply_(g.model).named_parameters()),
    "Mask.parameters": lambda g: g.mask.parameters(g.model),
    "Scope.parameters": lambda g: tk.Scope({"0.weight": (4, 2, 3, 3)}, 1).parameters(g.model),
    "Ticket.apply": lambda g: dict(_ticket().apply(g.model).named_parameters()),
    "testing.check_score": lambda g: testing.check_score("snip", g.model, batches=[g.x], loss=g.loss),
    "compile": _compiled,
    "budgets.meet": _met,
    "budgets.model": lambda g: tk.cost.model(g.model, g.x, unit="multiplications").dense,
    "budgets.model, of bytes": lambda g: tk.cost.model(g.model, g.x, unit="bytes").dense,
    "budgets.model, estimated": lambda g: tk.cost.model(g.model, g.x, "h100-bf16").dense,
    "devices.synchronise_norms": lambda g: len(list(tk.devices.synchronise_norms(g.model).modules())) > 0,
    "export": _exported,
    "gates.attach": _gated,
    "gradual": _gradual,
    "hold": _held,
    "meters.measure_step": _measured,
    "meters.step_flops": lambda g: tk.meters.step_flops(g.model, lambda: g.loss(g.model, g.x), g.mask).dense,
    "prune": lambda g: tk.prune(g.model, 0.5),
    "prune, by snip": lambda g: tk.prune(g.model, 0.5, score="snip", batches=[g.x], loss=g.loss),
    "prune, to 2:4": lambda g: tk.prune(g.model, 0.5, pattern="2:4", scope=tk.scope(g.model, spare=["0"])),
    "prune, to bytes": lambda g: tk.prune(g.model, bytes=0.9, example_inputs=g.x, keep_at_least=1),
    "prune, to flops": lambda g: tk.prune(g.model, flops=0.5, example_inputs=g.x, keep_at_least=1),
    "scope": lambda g: dict(tk.scope(g.model).shapes),
    **{f"score.{name}": _score(name) for name in SCORES},
    "shrink": lambda g: _trainable(tk.shrink(g.model, _channels(), g.x), g.x),
    "sparse_training": _trained,
    "structure.channel_groups": lambda g: [group.size for group in tk.structure.channel_groups(g.model, g.x)],
    "structure.channels": lambda g: tk.structure.channels(g.model, g.x, density=0.7),
    "structure.channels, by activation": lambda g: tk.structure.channels(
        g.model, g.x, 0.7, score="activation", batches=[g.x], loss=g.loss
    ),
    "structure.coverage": lambda g: {
        name: fit.coverage for name, fit in tk.structure.coverage(g.model, g.mask, g.mask).items()
    },
    "structure.layouts": lambda g: {name: str(one) for name, one in tk.structure.layouts(g.model, g.mask).items()},
    "structure.n_m": lambda g: tk.structure.n_m(g.model, g.mask),
    "structure.rebuild": lambda g: _trainable(tk.structure.rebuild(g.model, _plan()), g.x),
    "structure.refill": lambda g: tk.structure.refill(g.model, g.mask, g.x),
    "structure.regroup": lambda g: tk.structure.regroup(g.model, g.mask, rows=2),
    "structure.shrink_optimizer": _optimizer,
    "structure.shrink_plan": lambda g: tk.structure.shrink_plan(g.model, _channels(), g.x).kept,
    "structure.shuffled_structure": lambda g: tk.structure.shuffled_structure(g.mask, 0, model=g.model),
    "structure.tried_structure": lambda g: tk.structure.tried_structure(g.model, g.x).free,
}
"""Public name (and what distinguishes several calls of it) -> the call; a function that it returns is called outside of
the state that the call was made in."""


def outcome(name: str, given: Given, state: Callable[[], contextlib.AbstractContextManager[Any]]) -> Any:
    """Return what a call gives in a state of torch."""
    with state():
        found = CALLS[name](given)
    return found() if callable(found) else found


def leaves(value: Any) -> list[Any]:
    """Return what a result consists of, tensors without their wrappers' names."""
    if isinstance(value, Mapping):
        return [part for key in value for part in leaves(value[key])]
    if isinstance(value, (list, tuple)):
        return [part for one in value for part in leaves(one)]
    return [value]


# -- tests -------------------------------------------------------------------------------------------------------------


@functools.cache
def _expected(name: str) -> list[Any]:
    return leaves(outcome(name, plain(), contextlib.nullcontext))


def _require_equal(found: list[Any], expected: list[Any], kind: str = "") -> None:
    """Require the same results; gradients of frozen weights are missing, and weights stay those of inference mode."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if kind == "frozen" and one is None:
            continue
        if isinstance(other, Tensor):
            assert (one.dtype, one.device) == (other.dtype, other.device)
            assert not one.is_inference() or kind == "created in inference mode"
            torch.testing.assert_close(one.detach(), other.detach(), rtol=1e-6, atol=1e-6)
        else:
            assert one == other


def _require_advice(error: TicketryError) -> None:
    """A message says what is wrong, and after a colon or semicolon what to do."""
    assert ":" in str(error) or ";" in str(error), error
    assert "Traceback" not in str(error)


def _failures(kinds: Iterable[str], check: Callable[[str], None]) -> str:
    """Check each kind; return the failures, a paragraph for each."""
    failed = []
    for kind in kinds:
        try:
            check(kind)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failed.append(f"{kind}: {type(error).__name__} at {where.filename}:{where.lineno}: {error}")
    return "\n\n".join(failed)


def test_every_public_function_is_in_the_table() -> None:
    assert public_functions() == {name.partition(",")[0] for name in CALLS} | NOT_CALLED.keys()


@pytest.mark.parametrize("states", sample([["several"], sorted(STATES.keys() - {"several"})], 1, ["several", "each"]))
@pytest.mark.parametrize("name", CALLS)
def test_states_of_torch_change_nothing(name: str, states: Iterable[str]) -> None:
    expected = _expected(name)  # first, for it prepares masks and plans in the usual state

    def check(state: str) -> None:
        _require_equal(leaves(outcome(name, plain(), STATES[state])), expected)

    failed = _failures(states, check)
    assert not failed, failed


QUICK_SAME = {
    name: ["frozen", wrapper]
    for name, wrapper in zip(CALLS, itertools.cycle(["compiled", "distributed", "torchscript"]))
}
"""Call -> forms of the model for the quick tests: frozen, and one of the wrappers in turn."""


@pytest.mark.parametrize("quick", sample([True, False], 1, ["quick", "others"]))
@pytest.mark.parametrize("name", CALLS)
def test_the_same_model_in_another_form_gives_the_same(name: str, quick: bool) -> None:
    def check(kind: str) -> None:
        given = SAME[kind]()
        try:
            found = outcome(name, given, contextlib.nullcontext)
        except TicketryError as error:
            _require_advice(error)
        else:
            _require_equal(leaves(found), _expected(name), kind)

    failed = _failures(QUICK_SAME[name] if quick else sorted(SAME.keys() - QUICK_SAME[name]), check)
    assert not failed, failed


@pytest.mark.parametrize("name", CALLS)
def test_other_models_work_or_are_refused(name: str) -> None:
    def check(kind: str) -> None:
        given = OTHERS[kind]()
        try:
            outcome(name, given, contextlib.nullcontext)
        except TicketryError as error:
            _require_advice(error)

    failed = _failures(OTHERS, check)
    assert not failed, failed
