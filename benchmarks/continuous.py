"""Cost of the gates of Continuous Sparsification in a training step: time, gated / dense, and memory beyond dense.

A bare PyTorch loop over batches of 128 that are ready in memory (random numbers in the shape of the data; elementwise
and matrix kernels take the same time for any numbers), with fused SGD for the weights; gated with
`tk.gates.attach`, its penalty, its annealing and a second fused SGD; and, for comparison, the same gates as a plain
parametrisation (torch.nn.utils.parametrize) with a penalty written out.

Memory is what torch allocates: the peak within a step (by the profiler) on top of what lives between steps, which is
weights, gates, momentum and batch. It is reported in sizes of the gated weights above the dense step's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from common import Row, alternating, main, one_thread, parser, ratio_row, timed
from torch import Tensor, nn
from torch.nn.utils import parametrize

import ticketry as tk
from ticketry.lab.costs.meters import allocated_at_peak
from ticketry.lab.training.precision import Arithmetic, choose_arithmetic

BATCH = 128
PENALTY = 1e-8
HORIZON = 10_000
"""Steps of a round, for the annealing; a benchmark takes a few of them."""
ROUNDS, QUICK_ROUNDS = 5, 2


@dataclass(frozen=True)
class Setting:
    """A network with the shape of its data, and how long to look at it."""

    task: str
    model: str
    shape: tuple[int, ...]
    precision: str
    steps: int
    """Steps of a sample."""
    target: float
    """The ratio to reach."""


SETTINGS = (
    Setting("fashion-mnist", "lenet-300-100", (1, 28, 28), "fp32", 200, 1.25),
    Setting("cifar10", "resnet-20", (3, 32, 32), "fp32", 2, 1.04),
    Setting("cifar10", "resnet-20", (3, 32, 32), "auto", 2, 1.04),
    Setting("cifar10", "vgg-16", (3, 32, 32), "fp32", 1, 1.04),
    Setting("cifar10", "vgg-16", (3, 32, 32), "auto", 1, 1.04),
)
MEMORY_TARGET = 3.0


class Gate(nn.Module):
    """The parametrisation that one would write down: w -> w * sigmoid(beta s) / sigmoid(s0), with s0 = 0."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros_like(like))
        self.beta = 1.0

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (torch.sigmoid(self.beta * self.s) / 0.5)


class Training:
    """A network in training; `gates` is "", "attach" or "parametrize"."""

    def __init__(self, setting: Setting, arithmetic: Arithmetic, gates: str) -> None:
        torch.manual_seed(0)
        self.model = arithmetic.place(tk.task(setting.task, model=setting.model).build()).train()
        self._arithmetic, self._step = arithmetic, 0
        self.gated_bytes = sum(4 * size for size in tk.scope(self.model).sizes.values())
        layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        self._inputs = torch.randn(BATCH, *setting.shape).contiguous(memory_format=layout)
        self._targets = torch.randint(10, (BATCH,))
        weights = list(self.model.parameters())
        self._gates = tk.gates.attach(self.model) if gates == "attach" else None
        self._plain = self._parametrized() if gates == "parametrize" else []
        self.optimizers = [_sgd(weights)]
        if gates:
            self.optimizers.append(_sgd(self._gates.parameters() if self._gates else [gate.s for gate in self._plain]))

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        with self._arithmetic.autocast():
            outputs = self.model(self._inputs)
        loss = nn.functional.cross_entropy(outputs.float(), self._targets)
        if self._gates:
            loss = loss + self._gates.penalty(PENALTY)
        for gate in self._plain:
            loss = loss + PENALTY * torch.sigmoid(gate.beta * gate.s).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.step()
        self._anneal()

    def sample(self, steps: int) -> Callable[[], float]:
        def take(count: int) -> None:
            for _ in range(count):
                self.step()

        def sample() -> float:
            take(1)
            return timed(lambda: take(steps))

        return sample

    def peak(self) -> int:
        """Bytes that torch has allocated at the height of a step."""
        self.step()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        between = [*self.model.parameters(), *self.model.buffers(), self._inputs, self._targets]
        between += self._gates.parameters() if self._gates else []
        between += [value for one in self.optimizers for state in one.state.values() for value in state.values()]
        return allocated_at_peak(self.step, between)

    def _anneal(self) -> None:
        progress = self._step / HORIZON
        if self._gates:
            self._gates.anneal(progress)
        for gate in self._plain:
            gate.beta = tk.gates.inverse_temperature(progress, 200.0)
        self._step += 1

    def _parametrized(self) -> list[Gate]:
        gates = []
        for name, weight in tk.scope(self.model).parameters(self.model).items():
            module, _, local = name.rpartition(".")
            gates.append(Gate(weight.detach()))
            parametrize.register_parametrization(self.model.get_submodule(module), local, gates[-1])
        return gates


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    rows = []
    done = set()
    for setting in SETTINGS:
        built = tk.task(setting.task, model=setting.model).build()
        arithmetic = choose_arithmetic(built, device="cpu", precision=setting.precision)
        if (setting.model, arithmetic) not in done:  # "auto" is fp32 where the processor has no bfloat16
            done.add((setting.model, arithmetic))
            rows += [*times(setting, arithmetic, rounds), memory(setting, arithmetic)]
    return rows


def times(setting: Setting, arithmetic: Arithmetic, rounds: int) -> list[Row]:
    cases = {
        gates: Training(setting, arithmetic, gates).sample(setting.steps) for gates in ("", "attach", "parametrize")
    }
    seconds = alternating(cases, rounds)
    network = f"{setting.model} {arithmetic.precision}{' channels_last' if arithmetic.channels_last else ''}"
    how = f"1 thread, batch {BATCH}, CPU time, {rounds} x {setting.steps} steps"

    def row(label: str, gates: str, limit: float | None) -> Row:
        details = {
            "gated_ms_a_step": 1e3 * statistics.median(seconds[gates]) / setting.steps,
            "dense_ms_a_step": 1e3 * statistics.median(seconds[""]) / setting.steps,
        }
        what = f"CS step / dense step, {network}: {label}"
        return ratio_row(what, seconds[gates], seconds[""], target=limit, how=how, details=details)

    return [row("tk.gates", "attach", setting.target), row("plain parametrisation", "parametrize", None)]


def memory(setting: Setting, arithmetic: Arithmetic) -> Row:
    dense, gated = Training(setting, arithmetic, ""), Training(setting, arithmetic, "attach")
    peaks = dense.peak(), gated.peak()
    return Row(
        f"peak memory above the dense step's, {setting.model} {arithmetic.precision}: tk.gates",
        round((peaks[1] - peaks[0]) / dense.gated_bytes, 3),  # a few scalars aside
        "x the gated weights",
        target=MEMORY_TARGET,
        how="torch's allocator, one step",
        details={"dense_bytes": peaks[0], "gated_bytes": peaks[1], "gated_weights_bytes": dense.gated_bytes},
    )


def _sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, nesterov=True, fused=True)


if __name__ == "__main__":
    main("continuous", measure, parser(__doc__ or ""))
