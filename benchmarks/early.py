"""Savings and costs of early pruning: shrunk steps, their memory, scores, the detector, a whole run.

Steps are a bare PyTorch loop over a batch of 128 random images in memory, with fused SGD. What is removed is
chosen by gates on channels at initialisation (`crop_gates`: CroP-S) over all layers together, channel by channel and in
blocks of 16, and by the l1 norm with the same share of every layer; the shares of FLOPs and of memory are those of the
network that is left.

Memory to expect: weights, gradients and momentum (12 bytes a weight) and what autograd keeps for the backward pass,
each tensor once, both counted in the dense and in the small network. Memory measured: torch's allocator at the height
of a step.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from torch import Tensor, nn
from torch.autograd.functional import hessian, jacobian

import ticketry as tk
from ticketry.core.sparse_training.mask_dynamics import relative_distance
from ticketry.core.structure.channel_scores import channel_scores
from ticketry.core.structure.layout import find_roles
from ticketry.lab.costs.meters import allocated_at_peak, step_flops
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic
from ticketry.tasks.catalogue import create_task
from ticketry.tasks.task import Spec

BATCH = 128
SHAPE = (3, 32, 32)
CUTS = (("crop_gates", "global", 1), ("crop_gates", "global", 16), ("l1", "uniform", 16))
SPARSITIES = (0.5, 0.8)
STEP_TARGET, MEMORY_TARGET = 1.15, 1.10
SCORE_TARGET, DETECTOR_TARGET, WHOLE_TARGET = 20.0, 0.5, 0.5
ORACLE_TARGET = 1e-6


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rounds = 2 if arguments.quick else 5
    chosen = arguments.only or ("steps", "score", "detector", "oracle", "whole")
    parts: dict[str, Callable[[], list[Row]]] = {
        "steps": lambda: shrunk_steps(rounds),
        "score": lambda: crop_score(rounds),
        "detector": lambda: detector(rounds, arguments.data),
        "oracle": oracle,
        "whole": lambda: whole_run(arguments.data, 8 if arguments.quick else arguments.steps),
    }
    return [row for name, part in parts.items() if name in chosen for row in part()]


# -- steps after pruning -----------------------------------------------------------------------------------------------


class Training:
    """A network in training on one batch."""

    def __init__(self, model: nn.Module, arithmetic: Arithmetic) -> None:
        self.model = arithmetic.place(model).train()
        self._arithmetic = arithmetic
        layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        generator = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(BATCH, *SHAPE, generator=generator).contiguous(memory_format=layout)
        self._targets = torch.randint(10, (BATCH,), generator=generator)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def loss(self) -> Tensor:
        with self._arithmetic.autocast():
            outputs = self.model(self._inputs)
        return nn.functional.cross_entropy(outputs.float(), self._targets)

    def step(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        self.loss().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()

    def flops(self) -> int:
        found = step_flops(self.model, self.loss).dense
        self._optimizer.zero_grad(set_to_none=True)
        return found

    def peak(self) -> int:
        """Bytes that torch has allocated at the height of a step."""
        self.step()
        self._optimizer.zero_grad(set_to_none=True)
        between = [*self.model.parameters(), *self.model.buffers(), self._inputs, self._targets]
        between += [value for state in self._optimizer.state.values() for value in state.values()]
        return allocated_at_peak(self.step, between)

    def expected(self) -> int:
        """Bytes of weights, gradients, momentum, and of what is kept for the backward pass."""
        storages: dict[int, int] = {}
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}

        def note(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            kept = self.loss()  # noqa: F841 keeps the graph, and so the storages, alive
        activations = sum(size for place, size in storages.items() if place not in weights)
        return activations + 12 * sum(parameter.numel() for parameter in self.model.parameters())


def shrunk_steps(rounds: int) -> list[Row]:
    """VGG-16: time and memory of a step, the small network's against the dense one's."""
    torch.manual_seed(0)
    dense = create_task(Spec("cifar10", "vgg-16")).build()
    example = torch.randn(2, *SHAPE)
    batches = [(torch.randn(BATCH, *SHAPE), torch.randint(10, (BATCH,)))]
    rows = []
    for precision in ("fp32", "auto"):
        arithmetic = choose_arithmetic(dense, device="cpu", precision=precision)
        if precision == "auto" and arithmetic.precision == "fp32":
            continue  # there is no other on this processor
        for sparsity in SPARSITIES:
            for score, distribution, multiple in CUTS:
                options: dict[str, Any] = {"batches": batches, "loss": batch_loss} if score == "crop_gates" else {}
                mask = tk.structure.channels(
                    dense,
                    example,
                    sparsity=sparsity,
                    score=score,
                    distribution=distribution,
                    multiple=multiple,
                    **options,
                )
                small = Training(tk.shrink(dense, mask, example), arithmetic)
                chosen = f"{score} {distribution}, multiple {multiple}"
                what = f"VGG-16 {arithmetic.precision}, {1 - mask.density:.0%} of weights gone ({chosen})"
                rows += compared(what, small, Training(copy.deepcopy(dense), arithmetic), rounds)
    return rows


def compared(what: str, small: Training, dense: Training, rounds: int) -> list[Row]:
    seconds = alternating({"small": partial(timed, small.step), "dense": partial(timed, dense.step)}, rounds)
    flops = small.flops() / dense.flops()
    memory, expected = small.peak() / dense.peak(), small.expected() / dense.expected()
    how = f"1 thread, batch {BATCH}, CPU time, {rounds} steps each in turn; FLOPs left {flops:.3f}"
    step = ratio_row(f"step / dense, {what}", seconds["small"], seconds["dense"], target=STEP_TARGET * flops, how=how)
    peak = Row(
        f"peak memory / dense, {what}",
        memory,
        target=MEMORY_TARGET * expected,
        how=f"torch's allocator, one step; activations and weights left {expected:.3f}",
        details={"small_bytes": small.peak(), "dense_bytes": dense.peak()},
    )
    return [step, peak]


def batch_loss(model: nn.Module, batch: object) -> Tensor:
    inputs, targets = batch  # type: ignore[misc]
    return nn.functional.cross_entropy(model(inputs), targets)


# -- scores and detector -----------------------------------------------------------------------------------------------


def crop_score(rounds: int) -> list[Row]:
    """CroP's score of a ResNet-18 over 5 batches, in units of a dense training step."""
    torch.manual_seed(0)
    model = create_task(Spec("cifar10", "resnet-18")).build()
    batches = [(torch.randn(BATCH, *SHAPE), torch.randint(10, (BATCH,))) for _ in range(5)]
    training = Training(copy.deepcopy(model), choose_arithmetic(model, device="cpu", precision="fp32"))
    scope = tk.scope(model)
    cases = {
        "score": partial(timed, lambda: tk.score.crop(model, scope, batches=batches, loss=batch_loss)),
        "step": partial(timed, training.step),
    }
    seconds = alternating(cases, min(rounds, 3))
    how = f"fp32, 1 thread, batch {BATCH}, CPU time, {min(rounds, 3)} in turn"
    what = "CroP score of ResNet-18 over 5 batches / a dense step"
    return [ratio_row(what, seconds["score"], seconds["step"], target=SCORE_TARGET, how=how, unit="steps")]


def detector(rounds: int, data: Path | None) -> list[Row]:
    """A look of the detector against an epoch: the distance of all prunable weights from the initialisation, and
    storing the network and its momentum, as a search does at each look."""
    rows = []
    for model in ("resnet-20", "vgg-16"):
        task = create_task(Spec("cifar10", model))
        network = task.build()
        training = Training(network, choose_arithmetic(network, device="cpu", precision="auto"))
        start = {name: value.detach().clone() for name, value in network.state_dict().items()}
        steps = -(-len(task.load(data).train) // BATCH)
        with tempfile.TemporaryDirectory() as folder, tk.Lab(folder) as lab:
            look = partial(one_look, lab, network, start)
            seconds = alternating({"look": look, "step": partial(timed, training.step, time.perf_counter)}, rounds)
        percent = [100 * look / (steps * step) for look, step in zip(seconds["look"], seconds["step"], strict=True)]
        how = f"1 thread, {rounds} rounds on the clock, writing included; an epoch is {steps} steps"
        what = f"detector, cost an epoch, {model}"
        rows.append(ratio_row(what, percent, [1.0] * rounds, unit="%", target=DETECTOR_TARGET, how=how))
    return rows


def one_look(lab: tk.Lab, network: nn.Module, start: dict[str, Tensor]) -> float:
    """Seconds. Another number in the weights makes them new to the store, which keeps nothing twice."""
    with torch.no_grad():
        next(network.parameters()).mul_(1.0001)

    def look() -> None:
        state = {name: value.detach().clone() for name, value in network.state_dict().items()}
        lab.store.put_tensors(state)
        lab.store.put_tensors({f"momentum/{name}": value for name, value in state.items()})
        relative_distance(state, start, list(tk.scope(network)))

    return timed(look, time.perf_counter)


# -- scores against a slow reference -----------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, bias=False)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.tanh(self.bn(self.conv(images))).flatten(1))


def oracle() -> list[Row]:
    """The largest deviation from a full Hessian, of gates from finite differences; relative to the largest score."""
    torch.manual_seed(1)
    model = Small().double().train()
    batches = [(torch.randn(8, 1, 4, 4).double(), torch.randint(3, (8,))) for _ in range(2)]
    weights = tk.scope(model).parameters(model)
    flat = torch.cat([weight.detach().flatten() for weight in weights.values()])

    def loss_at(values: Tensor, gates: Tensor | None = None) -> Tensor:
        parts = values.split([weight.numel() for weight in weights.values()])
        changed = {name: part.view_as(weights[name]) for name, part in zip(weights, parts, strict=True)}
        if gates is not None:  # a gate on what a channel gives to the layer behind
            changed["fc.weight"] = changed["fc.weight"] * gates.repeat_interleave(4)
        losses = [
            nn.functional.cross_entropy(torch.func.functional_call(model, changed, (inputs,)), targets)
            for inputs, targets in batches
        ]
        return torch.stack(losses).mean()

    gradient = jacobian(loss_at, flat)
    product = hessian(loss_at, flat) @ gradient
    truth = {"snip": (flat * gradient).abs(), "grasp": flat * product, "crop": (flat * product).abs()}
    rows = []
    for name, wanted in truth.items():
        found = tk.score.get(name)(model, tk.scope(model), batches=batches, loss=batch_loss)
        scores = torch.cat([found[weight].flatten() for weight in weights])
        rows.append(_deviation(f"{name} / full Hessian and gradient", scores, wanted))
    return [*rows, *_gates(model, batches, flat, loss_at)]


def _gates(model: nn.Module, batches: list[Any], flat: Tensor, loss_at: Callable[..., Tensor]) -> list[Row]:
    """SNAP's and structured CroP's gates: central differences in each gate."""
    step = 1e-4

    def flow(gates: Tensor) -> Tensor:
        """z = <stopgrad(g), g(gates)>."""
        return (jacobian(loss_at, flat) * jacobian(partial(loss_at, gates=gates), flat)).sum()

    def differences(function: Callable[[Tensor], Tensor]) -> Tensor:
        found = []
        for channel in range(3):
            change = torch.zeros(3).double()
            change[channel] = step
            found.append((function(1 + change) - function(1 - change)) / (2 * step))
        return torch.stack(found).abs()

    truth = {"snap": differences(lambda gates: loss_at(flat, gates)), "crop_gates": differences(flow)}
    groups = [g for g in tk.structure.channel_groups(model, batches[0][0]) if g.prunable]
    rows = []
    for name, wanted in truth.items():
        found = channel_scores(
            model,
            groups,
            tk.scope(model),
            find_roles(model),
            tk.score.ScoreInputs(batches=batches, loss=batch_loss, seed=0),
            score=name,
            reduce="mean",
        )
        rows.append(_deviation(f"{name} / finite differences of gates", found[0], wanted))
    return rows


def _deviation(what: str, found: Tensor, wanted: Tensor) -> Row:
    deviation = float((found.double() - wanted).abs().max().detach() / wanted.abs().max())
    return Row(what, deviation, target=ORACLE_TARGET, how="float64, largest deviation / largest score")


# -- a whole run -------------------------------------------------------------------------------------------------------


def whole_run(data: Path | None, steps: int) -> list[Row]:
    """EarlyCroP-S on VGG-16, all of it, against the dense training: 80 % of the weights gone."""
    task = create_task(Spec("cifar10", "vgg-16", (("train", "10000"),)))
    recipe = task.recipe.changed(length=f"{steps}it", batch=BATCH)
    rows = []
    for score, distribution, multiple in reversed(CUTS[1:]):
        settings = tk.search.early.Settings(
            sparsity=(SPARSITIES[1],),
            structure="channels" if multiple == 1 else f"channels:{multiple}",
            score=score.removesuffix("_gates"),
            distribution=distribution,
            every="2.5%",
        )
        dense, whole, found = early_seconds(task, recipe, settings, data)
        moment = f"{'detected at' if found.moment.detected else 'at'} step {found.behind}"
        what = f"early --structure channels, VGG-16, 20 % left ({score} {distribution}, {multiple}): whole / dense"
        how = f"{steps} steps of batch {BATCH}, 1 thread, CPU time, evaluation and store included; pruned {moment}"
        details = {"seconds": whole, "dense_seconds": dense, "step": found.behind}
        rows.append(Row(what, whole / dense, target=WHOLE_TARGET, how=how, details=details))
    return rows


def early_seconds(task: Any, recipe: Any, settings: Any, data: Path | None) -> tuple[float, float, Any]:
    """CPU seconds of the dense training, those of all that the ticket needs, and the ticket.

    The search also trains the dense network to its end, to compare with: what that takes from the cut on is no part of
    the ticket's cost. It is timed apart, and with what came before, it is the dense training.
    """
    clock, began = Clock(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, tk.Lab(folder, data=data, on_event=clock) as lab:
        found = tk.search.early(lab, task, settings, recipe=recipe)[0][1]
    whole = time.process_time() - began - clock.seconds["dense"]
    return clock.seconds["dense"] + clock.seconds["looks"], whole, found


class Clock:
    """CPU seconds of the dense training: up to the last look, and from there to its end."""

    def __init__(self) -> None:
        self.seconds, self._began = {"dense": 0.0, "looks": 0.0}, 0.0

    def __call__(self, event: Any) -> None:
        name = "dense" if event.label.endswith("dense") else "looks" if "dense to step" in event.label else ""
        if name and event.kind == "started":
            self._began = time.process_time()
        elif name and event.kind == "finished":
            self.seconds[name] += time.process_time() - self._began


if __name__ == "__main__":
    options = parser(__doc__ or "")
    options.add_argument("--only", nargs="*", choices=("steps", "score", "detector", "oracle", "whole"))
    options.add_argument("--steps", type=int, default=400, help="length of the whole runs")
    main("early", measure, options)
