"""Contract tests for search methods and scores, built-in or custom: call them from your own tests.

>>> from ticketry.testing import check_score, check_search
>>> check_search(my_module, tmp_path)  # doctest: +SKIP
>>> check_score(my_score)              # doctest: +SKIP
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ticketry.core.prune import prune
from ticketry.core.scope import name_without_wrappers
from ticketry.core.scope import scope as scope_of
from ticketry.core.score import Loss, Score, get
from ticketry.core.structure.pattern import count_retained
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event
from ticketry.lab.search_result import HOW_TRAINED, REWINDING, Found, Seeds
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.variant import explain_mask_dependence
from ticketry.search import Method
from ticketry.search import method as method_called
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Splits, Task
from ticketry.tasks.user_task import OwnTask
from ticketry_engine.support.entry_points import Need, entry_point

__all__ = ["check_score", "check_search"]


_QUICK = "60it"


def check_search(
    method: str | Method | ModuleType | type,
    folder: Path,
    *,
    settings: Any = None,
    densities: Sequence[float] | None = None,
    task: str | Task | None = None,
    recipe: Recipe | None = None,
) -> list[Found]:
    """Check a search method's contract on a small real task (digits, 60 steps); return the networks found.

    - The dense network comes first, then tickets of rising level, each trained under its mask. Masks retain exactly the
      number of weights that the requested density demands.
    - Controls can be trained like a ticket, with the same variants of training, under another mask.
    - A ticket that is trained from its rewind step starts at level 0's weights (and buffers) times the mask, bit for
      bit.
    - Pruned weights are exactly 0 at every step, including optimiser state.
    - The same seeds give the same bits; other seeds give different ones.
    - If the search is interrupted in the middle of a training of each kind (dense, masked, with a custom variant) and
      run again, it resumes with the same bits and repeats no finished training.
    - The search never uses the test split.
    - A ticket whose mask needs no earlier ticket lists in `searched` the trainings that it needs. This is checked for
      methods whose setting `density` takes several fractions: the ticket must have the same mask when only its own
      density is requested.

    Args:
        method: name of a method, or an argument of `Method.of`, such as a module with `Settings` and `search`.
        folder: empty folder for stores.
        settings: settings of the method; by default its default settings.
        densities: density of each ticket, if the method promises densities.
        task: task to search on, as a name or an object; by default digits.
        recipe: recipe of training; by default the task's, shortened to 60 steps.

    Raises:
        AssertionError: if a promise is broken; the message names it.
    """
    trial = _Trial(method, settings, catalogue.resolve_task(task or "digits"), recipe)
    with Lab(folder / "first") as lab, _check_pruned_weights_every_step():
        found = trial.run(lab)
        _check_masks_of_levels(lab, found, densities)
        for ticket in found[1:]:
            _check_rewound_start(lab, ticket)
            state = lab.state(ticket.result)
            for name, kept in lab.store.get_mask(str(ticket.mask)).items():
                require(not state[name][~kept].any(), f"level {ticket.level} ends with pruned weights of {name!r} at 0")
        trained, middles = lab.ledger.segments_trained, _keys_of_trainings_to_interrupt(lab)
        _check_searched_trainings(lab, trial, found)
    bits = _result_digests(found)
    if _result_digests(trial.run_in_new_lab(folder / "blind", task=_TaskWithOtherTest(trial.task))) != bits:
        require(_result_digests(trial.run_in_new_lab(folder / "again")) == bits, "the same seeds give the same bits")
        require(False, "a search does not look at the test split: with other test targets it finds the same")
    require(
        _result_digests(trial.run_in_new_lab(folder / "seeds", Seeds.of(1))) != bits,
        "other seeds give other networks",
    )
    _check_interrupted_search_resumes(trial, folder / "interrupted", bits, trained, middles)
    return found


class _Trial:
    """Runs one replicate of a method, always with the same settings, as often as the checks need it."""

    def __init__(
        self, method: str | Method | ModuleType | type, settings: Any, task: Task, recipe: Recipe | None
    ) -> None:
        if isinstance(method, (str, Method)):
            self.method = method_called(method) if isinstance(method, str) else method
        else:
            self.method = Method.of(method.__name__.rpartition(".")[2], method)
        self.settings = self.method.Settings() if settings is None else settings
        self.task = task
        self.recipe = recipe or task.recipe.changed(length=_QUICK)

    def run(self, lab: Lab, seeds: Seeds | None = None, task: Task | None = None, settings: Any = None) -> list[Found]:
        """Run the search in a lab and return its networks; `seeds` are by default those of the first replicate."""
        own = self.settings if settings is None else settings
        return list(self.method.search(lab, task or self.task, self.recipe, own, seeds or Seeds()))

    def run_in_new_lab(self, folder: Path, seeds: Seeds | None = None, task: Task | None = None) -> list[Found]:
        with Lab(folder) as lab:
            return self.run(lab, seeds, task)


class _TaskWithOtherTest(OwnTask):
    """Copy of a task whose test split has permuted targets; training and validation splits are unchanged."""

    def __init__(self, inner: Task) -> None:
        self.inner, self.name, self.metric, self.recipe = inner, inner.name, inner.metric, inner.recipe

    def key(self) -> Any:
        return self.inner.key()

    def load(self, data: Path | None = None) -> Splits:
        splits = self.inner.load(data)
        return replace(splits, test=replace(splits.test, targets=splits.test.targets.roll(1)))

    def course(self, data: Path | None = None) -> Course | None:
        found = self.inner.course(data)
        return found and _CourseWithOtherTest(found)


class _CourseWithOtherTest(Course):
    """Copy of a `Course`, which trains and evaluates a task, with other metrics on the test split."""

    def __init__(self, inner: Course) -> None:
        for name in ("sizes", "session", "sample", "loss", "count", "inputs"):
            setattr(self, name, getattr(inner, name))
        self._inner = inner

    def evaluate(self, model: nn.Module, split: str, arithmetic: Any) -> dict[str, float]:
        found = self._inner.evaluate(model, split, arithmetic)
        return {name: value + 1.0 for name, value in found.items()} if split == "test" else found


def _check_masks_of_levels(lab: Lab, found: Sequence[Found], densities: Sequence[float] | None) -> None:
    require(all(isinstance(item, Found) for item in found), "a search yields a Found for each network")
    require(len(found) > 1, "a search finds at least one ticket")
    require(found[0].level == 0 and found[0].mask is None, "the dense network comes first, as level 0")
    levels = [item.level for item in found]
    require(levels == sorted(set(levels)), f"levels rise: {levels}")
    require(all(isinstance(item.mask, str) for item in found[1:]), "every ticket has a mask, by its digest")
    for item in found:
        require(item.result.segment.mask == item.mask, f"level {item.level} is trained under the mask that it has")
        require(item.retrain in HOW_TRAINED, f"level {item.level} says how it is retrained")
    for item in found[1:]:
        why = explain_mask_dependence(item.result.segment.variants)
        require(not why, f"level {item.level} can be trained under another mask, as its controls are: {why}")
    masks = [lab.store.get_mask(str(item.mask)) for item in found[1:]]
    if densities is not None:
        kept = [mask.kept for mask in masks]
        wanted = [count_retained(density, mask.total) for density, mask in zip(densities, masks, strict=True)]
        require(kept == wanted, f"densities are as asked: {wanted} weights, not {kept}")


def _check_rewound_start(lab: Lab, ticket: Found) -> None:
    """Check that a rewound ticket starts with the dense network's weights of the rewind step, times the mask."""
    if ticket.retrain not in REWINDING:
        return
    assert ticket.mask is not None
    segment = ticket.result.segment
    mask = lab.store.get_mask(ticket.mask)
    start = lab.state(lab.train(segment.shortened_to(segment.first)))
    dense = lab.state(ticket.rewound)
    require(start.keys() == dense.keys(), f"level {ticket.level} starts with all of level 0's weights and buffers")
    first: dict[int, str] = {}  # a mask lists a shared parameter once, under its first name
    named = segment.task.build().state_dict(keep_vars=True).items()
    masked = {
        name_without_wrappers(name): first.setdefault(id(tensor), name_without_wrappers(name)) for name, tensor in named
    }
    for name, tensor in start.items():
        kept = mask.get(masked[name])
        wanted = dense[name] if kept is None else dense[name] * kept
        require(torch.equal(tensor, wanted), f"level {ticket.level} starts at level 0's {name!r} times the mask")


def _check_searched_trainings(lab: Lab, trial: _Trial, found: Sequence[Found]) -> None:
    """Check that the sparsest ticket lists in `searched` the trainings that it needs, unless it needs denser tickets.

    It needs no denser tickets if its mask is the same when only its own density is requested. If `searched` is empty,
    the trainings of all earlier tickets count as search cost, as in iterative pruning.
    """
    asked = getattr(trial.settings, "density", None)
    if found[-1].searched or not (isinstance(asked, tuple) and asked and all(isinstance(one, float) for one in asked)):
        return
    last = min(asked)
    denser = [one for one in asked if one > last] or [math.sqrt(last)]
    alone, behind = (
        trial.run(lab, settings=replace(trial.settings, density=(*more, last)))[-1] for more in ([], denser)
    )
    require(
        behind.mask != alone.mask or behind.level == alone.level,
        f"the ticket of density {last:g} names in `searched` the trainings that its mask comes from, such as"
        " searched=(dense,): it needs none of the tickets before it, whose trainings would count as its search",
    )


def _check_interrupted_search_resumes(
    trial: _Trial, folder: Path, bits: list[tuple[str | None, str]], trained: int, middles: set[str]
) -> None:
    """Check that a search resumes with the same bits after a stop in the middle of each training in `middles`.

    An uninterrupted search has `trained` trainings, and finds networks with the digests `bits`.
    """
    done, left, stopped = 0, set(middles), True
    while stopped:
        stopped = False

        def interrupt_training(event: Event) -> None:
            nonlocal stopped
            if event.kind == "progress" and event.key in left and event.first + event.last <= 2 * event.step:
                left.discard(event.key)
                if event.step < event.last:
                    stopped = True
                    lab.stop()

        with Lab(folder, on_event=interrupt_training, checkpoint_seconds=1e-3) as lab:
            try:
                found = trial.run(lab)
            except KeyboardInterrupt:
                found = []
        done += lab.ledger.segments_trained
    require(
        _result_digests(found) == bits,
        "interrupted in the middle of a training and run again, a search gives the same bits",
    )
    require(done <= trained, f"no finished segment is trained again: {done} trainings instead of {trained}")


def _keys_of_trainings_to_interrupt(lab: Lab) -> set[str]:
    """Return the keys of the trainings to interrupt: the first of at least two steps for each set of variants."""
    first: dict[tuple[str, ...], str] = {}
    for key in lab.ledger.keys:
        trajectory, _, last = key.rpartition("@")
        record = lab.store.load_valid_result(trajectory, int(last))
        if record is None or int(last) - record["segment"]["first"] < 2:
            continue
        variants = sorted(f"{one['variant']} {one.get('place', '')}" for one in record["segment"]["variants"])
        first.setdefault(tuple(variants), key)
    return set(first.values())


def _result_digests(found: Sequence[Found]) -> list[tuple[str | None, str]]:
    return [(item.mask, item.result.model) for item in found]


@contextmanager
def _check_pruned_weights_every_step() -> Iterator[None]:
    original = Loop._train_step

    def check_step(loop: Loop, batch: Any) -> None:
        original(loop, batch)
        loop.check()

    with mock.patch.object(Loop, "_train_step", check_step):
        yield


def require(holds: bool, promise: str) -> None:
    """Raise `AssertionError` with the message `promise` unless `holds`; unlike assert, also under python -O."""
    if not holds:
        raise AssertionError(promise)


@entry_point(Need(python=False))
def check_score(
    score: str | Score,
    model: nn.Module | None = None,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
) -> None:
    """Check on a model that a score keeps the contract of scores.

    - The score returns one tensor for each parameter in scope, of the parameter's shape, and no other tensors. The
      values are real and may be infinite, but not NaN.
    - The same seed gives the same scores.
    - The score leaves the model unchanged: weights, buffers, gradients, parameter objects, their `requires_grad`,
      modules' modes, hooks. It also leaves random states and torch's gradient mode unchanged.
    - `prune` with this score meets every density exactly.

    Args:
        score: name of a score, or the function.
        model: model to score; by default a small convolutional network with batch norm.
        batches: batches of examples that are passed to the score.
        loss: loss function that is passed to the score.

    Raises:
        AssertionError: if a promise is broken; the message names it.
    """
    function = get(score)
    model = _small_network() if model is None else model
    known = scope_of(model)
    kept = None if batches is None else list(batches)
    with torch.set_grad_enabled(torch.is_grad_enabled()):  # restores the gradient mode afterwards
        before, values = _snapshot_for_comparison(model), _copy_state(model)
        first = function(model, known, batches=kept, loss=loss, seed=0)
        after = _snapshot_for_comparison(model)
    for what, found in before.items():
        require(after[what] == found, f"a score leaves as before: {what}")
    _require_equal_tensors(values, _copy_state(model), "a score leaves weights, buffers and gradients as they were")
    require(list(first) == list(known), f"a score names the parameters in scope, in order: {list(known)}")
    for name, tensor in first.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else None
        require(shape == known.shapes[name], f"the score of {name!r} is a tensor of its parameter's shape")
        real = not tensor.is_complex() and not bool(tensor.isnan().any())
        require(real, f"the score of {name!r} is of real numbers, none of them NaN")
        require(not tensor.requires_grad, f"the score of {name!r} is detached from the graph")
    _require_equal_tensors(
        first, function(model, known, batches=kept, loss=loss, seed=0), "the same seed, the same scores"
    )
    for density in (1.0, 0.5, 0.2):
        mask = prune(model, density, score=function, batches=kept, loss=loss, collapse="keep")
        require(mask.kept == round(density * known.total), f"density {density} is met to the element")


def _small_network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5 * 5, 10)
        )


def _snapshot_for_comparison(model: nn.Module) -> dict[str, object]:
    """Return everything that a score must leave unchanged, except tensor values, by a description for messages."""
    parameters, modules = dict(model.named_parameters()), list(model.modules())
    return {
        "the objects that are parameters": {name: id(one) for name, one in parameters.items()},
        "which parameters are trained": {name: one.requires_grad for name, one in parameters.items()},
        "each module's mode": [module.training for module in modules],
        "the hooks of modules": [_list_hooks(module) for module in modules],
        "the hooks of parameters": {name: _list_hooks(one) for name, one in parameters.items()},
        "torch's random state": torch.get_rng_state().tolist(),
        "Python's random state": random.getstate(),
        "whether gradients are taken": torch.is_grad_enabled(),
    }


def _list_hooks(owner: nn.Module | nn.Parameter) -> dict[str, list[int]]:
    found = {name: getattr(owner, name, None) for name in dir(owner) if name.endswith("_hooks")}
    return {name: list(hooks) for name, hooks in found.items() if isinstance(hooks, dict) and hooks}


def _copy_state(model: nn.Module) -> dict[str, Tensor]:
    values = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return values | {f"{name}.grad": gradient for name, gradient in gradients.items()}


def _require_equal_tensors(one: dict[str, Tensor], other: dict[str, Tensor], promise: str) -> None:
    require(one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), promise)
