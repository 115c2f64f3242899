"""Cost of a step of sparse training: with kernels / the fastest dense step.

A step is all of it: gradients to None, forward, loss, backward, fused SGD with momentum and weight decay, on a batch of
noise that is ready in memory. Masks are random, of one density in every weight that is masked; a density of 1
means no mask. Dense steps train the
same network without a mask in eager torch, in channels_last and, with ``--compile``, in torch.compile; the ratio is
taken to the one with the least median. One thread, float32, CPU time, in turns, unless asked otherwise.

With ``--trained 100it`` masks are not random: the network is trained for so long on CIFAR-10 and pruned globally by
magnitude, so that each layer keeps another share. The dense step's time is then multiplied by the share of its
multiplications (forward and back, of all layers) that the mask leaves.

With ``--precision bf16`` both sides compute in bfloat16, dense steps under autocast.

The parts of a sparse step (forward, input gradient, weight gradient, norms and the rest, by kernel) come from another
run in which each operation is timed separately.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from common import Row, alternating, in_fresh_process, main, one_thread, parser, quartiles, timed
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from ticketry.core.synthetic_masks import synthetic
from ticketry.lab.costs.meters import step_flops
from ticketry.lab.lab import Lab
from ticketry.tasks import catalogue, models
from ticketry.tasks.models.language import GPT, TiedLSTM
from ticketry_engine.kernels.jit import title
from ticketry_engine.kernels.program import ProgramSession

TARGETS = {
    "unstructured": {
        "resnet-18": {1.0: 0.85, 0.2: 0.38, 0.1: 0.24, 0.05: 0.17},
        "vgg-16": {1.0: 0.85, 0.2: 0.38, 0.1: 0.24, 0.05: 0.17},
        "resnet-20": {1.0: 0.85, 0.2: 0.45, 0.1: 0.33, 0.05: 0.28},
        "resnet-50-imagenet": {1.0: 1.0, 0.2: 0.45, 0.1: 0.32, 0.05: 0.25},
        "gpt": {1.0: 1.0, 0.2: 0.55, 0.1: 0.42, 0.05: 0.36},
        "lenet-300-100": {1.0: 1.0, 0.2: 0.6, 0.1: 0.5, 0.05: 0.45},
        "mlp-4096-4096": {1.0: 1.0, 0.2: 0.32, 0.1: 0.18, 0.05: 0.12},
    },
    "groups:16": {
        "resnet-18": {0.2: 0.32, 0.1: 0.20},
        "vgg-16": {0.2: 0.32, 0.1: 0.20},
        "resnet-50-imagenet": {0.2: 0.40, 0.1: 0.28},
        "mlp-4096-4096": {0.2: 0.28, 0.1: 0.16},
        "gpt": {0.2: 0.5, 0.1: 0.38},
    },
}
"""Pattern -> network -> density -> the ratio to reach, of one thread."""

TARGETS_BF16: dict[str, dict[str, dict[float, float]]] = {"groups:16": {"resnet-18": {0.2: 0.40, 0.1: 0.26}}}
"""Targets in bfloat16, against dense steps in bfloat16."""

TICKET = 1.35
"""The time of a step under a trained mask / its share of the multiplications, times the dense step, to reach."""

LINE = [0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.16, 0.2, 0.25, 0.3, 0.37, 0.45]
"""Densities of a line."""

BATCHES = {"resnet-50-imagenet": 16, "gpt": 32, "lstm": 20}
"""Batch sizes other than 128."""

CONTEXT, BYTES = 128, 256
"""Tokens of a piece, and their vocabulary, of the GPT."""

PIECE, WORDS = 35, 10_000
"""Length and vocabulary of the LSTM's text."""

Step = Callable[[], None]


def measure(arguments: argparse.Namespace) -> list[Row]:
    one_thread()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.networks:
        if arguments.line:
            rows.append(line(name, arguments))
            continue
        if arguments.memory:
            rows += [row for density in arguments.density for row in memory(name, density, arguments)]
            continue
        with contextlib.ExitStack() as scope:
            rows += (tickets if arguments.trained else rows_of)(name, arguments, scope)
    return rows


def rows_of(name: str, arguments: argparse.Namespace, scope: contextlib.ExitStack) -> list[Row]:
    """Steps of one network at some densities, in the same rounds, beside the same dense steps.

    Args:
        scope: in which they are timed.
    """
    torch.manual_seed(0)
    batch = arguments.batch or BATCHES.get(name, 128)
    model, x, y = network(name, batch)
    precision, half = arguments.precision, arguments.precision == "bf16"
    dense = dense_steps(model, x, y, arguments.compile, half=half)
    sparse = {}
    for density in arguments.density:
        mask = None if density == 1 else synthetic(model, arguments.pattern, density)
        fast = tk.sparse_training(copy.deepcopy(model), mask, x, precision=precision)
        if arguments.late:
            scope.enter_context(fast.writing_late())
        sparse[f"{density:.0%} kept"] = step_of(fast, x, y, kept=arguments.kept, half=half)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    cases = {which: (lambda step=step: timed(step, clock)) for which, step in (dense | sparse).items()}
    seconds = alternating(cases, 2 if arguments.quick else arguments.rounds, warm_up=1 if arguments.quick else 2)
    best = min(dense, key=lambda which: statistics.median(seconds[which]))
    targets = TARGETS_BF16 if half else TARGETS
    to_reach = targets.get(arguments.pattern, {}).get(name, {}) if arguments.threads == 1 else {}
    rows = []
    for density, which in zip(arguments.density, sparse, strict=True):
        low, median, high = quartiles([a / b for a, b in zip(seconds[which], seconds[best], strict=True)])
        told = ", ".join(f"{one} {1e3 * statistics.median(seconds[one]):.1f} ms" for one in [*dense, which])
        what = f"{name}, batch {batch}, {arguments.pattern}, {which}"
        what += f", {arguments.threads} threads" if arguments.threads > 1 else ""
        what += told_of(arguments)
        what += ", bfloat16" if half else ""
        how, details = f"/ {best}; {told}", {one: seconds[one] for one in [*dense, which]}
        rows.append(Row(what, median, "", low, high, target=to_reach.get(density), how=how, details=details))
        rows += parts(what, sparse[which]) if arguments.threads == 1 else []
    return rows


def told_of(arguments: argparse.Namespace) -> str:
    """How the optimiser of sparse steps has weights."""
    kept, late = ", kept parameters" if arguments.kept else "", " written late" if arguments.late else ""
    return kept + late


def tickets(name: str, arguments: argparse.Namespace, scope: contextlib.ExitStack) -> list[Row]:
    """Steps under masks by global magnitude of a network that was trained on CIFAR-10. Arguments as of `rows_of`."""
    model = trained(name, arguments)
    batch = arguments.batch or BATCHES.get(name, 128)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    steps, rows = dense_steps(model, x, y, arguments.compile), []
    for density in arguments.density:
        mask = tk.prune(model, density, score="magnitude")
        twin = copy.deepcopy(model)
        flops = step_flops(twin, lambda twin=twin: F.cross_entropy(twin(x[:2]), y[:2]), mask)
        share = flops.sparse / flops.dense
        fast = tk.sparse_training(copy.deepcopy(model), mask, x)
        cases = {**steps, "sparse": step_of(fast, x, y, kept=arguments.kept)}
        if arguments.late:
            scope.enter_context(fast.writing_late())
        seconds = alternating(
            {which: (lambda step=step: timed(step)) for which, step in cases.items()},
            2 if arguments.quick else arguments.rounds,
            warm_up=2,
        )
        best = min(steps, key=lambda which: statistics.median(seconds[which]))
        ratios = [a / b for a, b in zip(seconds["sparse"], seconds[best], strict=True)]
        low, median, high = (ratio / share for ratio in quartiles(ratios))
        kept = sorted(float(flags.float().mean()) for flags in mask.values())
        how = (
            f"time / {best} {statistics.median(ratios):.3f}, multiplications {share:.3f}; layers keep"
            f" {kept[0]:.1%} to {kept[-1]:.1%}; trained for {arguments.trained}"
        )
        what = f"{name}, batch {batch}, global magnitude, {density:.0%} kept"
        what += told_of(arguments) + ": time / share of multiplications"
        details = {**seconds, "share": share, "kept": {key: float(one.float().mean()) for key, one in mask.items()}}
        rows += [
            Row(what, median, "", low, high, target=TICKET, how=how, details=details),
            *parts(what, cases["sparse"]),
        ]
    return rows


def trained(name: str, arguments: argparse.Namespace) -> nn.Module:
    """The network, shortly trained by the task's recipe."""
    task = catalogue.get("cifar10", model=name)
    with (
        tempfile.TemporaryDirectory() as folder,
        Lab(arguments.store or folder, data=arguments.data, device="cpu", precision="fp32") as lab,
    ):
        segment = lab.segment(task, start=0, recipe=task.recipe.changed(length=arguments.trained))
        return lab.model(task, lab.train(segment, measure=False)).train()


def line(name: str, arguments: argparse.Namespace) -> Row:
    """Twelve densities: the intercept of the line through time / time of the dense step, by least squares.

    Each is timed in turns with the faster dense step, and goes before the next is made.
    """
    batch = arguments.batch or BATCHES.get(name, 128)
    model, x, y = classifier(name, batch)
    steps = dense_steps(model, x, y, False)
    dense = alternating({which: (lambda step=step: timed(step)) for which, step in steps.items()}, 1)
    best = min(dense, key=lambda which: dense[which])
    ratios = []
    for density in LINE:
        fast = tk.sparse_training(copy.deepcopy(model), synthetic(model, arguments.pattern, density), x)
        pair = {"dense": steps[best], "sparse": step_of(fast, x, y, kept=arguments.kept)}
        cases = {which: (lambda step=step: timed(step)) for which, step in pair.items()}
        with fast.writing_late() if arguments.late else contextlib.nullcontext():
            seconds = alternating(cases, arguments.rounds)
        ratios.append(statistics.median(a / b for a, b in zip(seconds["sparse"], seconds["dense"], strict=True)))
    slope, intercept = statistics.linear_regression(LINE, ratios)
    spread = max(abs(ratio - intercept - slope * density) for density, ratio in zip(LINE, ratios, strict=True))
    points = ", ".join(f"{density:.0%} {ratio:.3f}" for density, ratio in zip(LINE, ratios, strict=True))
    how = f"/ {best}; slope {slope:.2f}, at most {spread:.3f} from the line; {points}"
    what = f"{name}, batch {batch}, {arguments.pattern}{told_of(arguments)}: intercept of time against density"
    return Row(what, intercept, target=0.08, how=how, details={"densities": LINE, "ratios": ratios})


def memory(name: str, density: float, arguments: argparse.Namespace) -> list[Row]:
    """Compare the peak memory that steps add to a process: with kernels / dense step, each in a process."""
    batch = arguments.batch or BATCHES.get(name, 128)
    half = arguments.precision == "bf16"
    dense, sparse = (in_fresh_process(peak, name, batch, arguments.pattern, kept, half) for kept in (None, density))
    what = f"{name}, batch {batch}, {arguments.pattern}, {density:.0%} kept: peak memory of a step"
    what += ", bfloat16" if half else ""
    told = f"dense {dense >> 20} MiB, sparse {sparse >> 20} MiB more than before the first step"
    return [Row(what, sparse / dense, target=0.75, how=told, details={"dense": dense, "sparse": sparse})]


def peak(name: str, batch: int, pattern: str, density: float | None, half: bool) -> int:
    """Bytes that the process takes at most in three steps, beyond what it took before: model, batch and libraries."""
    one_thread()
    model, x, y = network(name, batch)
    if density is not None:
        precision = "bf16" if half else "fp32"
        model = tk.sparse_training(model, synthetic(model, pattern, density), x, precision=precision)
    step = step_of(model, x, y, half=half)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def network(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a batch of noise and its labels."""
    return {"gpt": gpt, "lstm": lstm}[name](batch) if name in ("gpt", "lstm") else classifier(name, batch)


def classifier(name: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    size = 224 if name.endswith("imagenet") else 32
    shape = (1, 28, 28) if name.startswith("lenet") else (3, size, size)
    model = models.build(name, shape=shape, classes=10).train()
    return model, torch.randn(batch, *shape), torch.randint(0, 10, (batch,))


def gpt(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Four blocks of width 256, over bytes, without dropout. Its embeddings, tied to the last layer, are masked."""
    model = GPT(BYTES, context=CONTEXT, dropout=0.0, scale=int, width=256).train()
    x, y = torch.randint(0, BYTES, (2, batch, CONTEXT))
    return model, x, y


def lstm(batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Two layers of 200 units over the words of Penn Treebank, tied to the last layer, without dropout."""
    model = TiedLSTM(WORDS, context=PIECE, dropout=0.0, scale=int).train()
    x, y = torch.randint(0, WORDS, (2, batch, PIECE))
    return model, x, y


def step_of(model: nn.Module, x: Tensor, y: Tensor, *, kept: bool = False, half: bool = False) -> Step:
    """A whole step of a user's loop, under autocast to bfloat16 or not; `kept`: with parameters that have kept weights
    alone."""
    parameters = model.kept_parameters() if kept else model.parameters()  # type: ignore[operator]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()

    return step


def dense_steps(model: nn.Module, x: Tensor, y: Tensor, compiled: bool, *, half: bool = False) -> dict[str, Step]:
    """Return steps of the network without a mask, one per engine, each with separate weights."""
    steps = {"eager": step_of(copy.deepcopy(model), x, y, half=half)}
    if compiled:
        steps["compile"] = step_of(torch.compile(copy.deepcopy(model)), x, y, half=half)
    if x.dim() != 4:
        return steps
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    steps["channels_last"] = step_of(last, x.to(memory_format=torch.channels_last), y, half=half)
    if compiled:
        twin = torch.compile(copy.deepcopy(last))
        steps["compile channels_last"] = step_of(twin, x.to(memory_format=torch.channels_last), y, half=half)
    return steps


def parts(what: str, step: Step) -> list[Row]:
    """Milliseconds of each kernel of a sparse step, and of what is not in kernels."""
    spent: Counter[str] = Counter()
    run = ProgramSession.run

    def one_by_one(
        self: ProgramSession,
        first: int,
        last: int,
        external: tuple[int, ...] = (),
        images: int | None = None,
        *,
        shared: bool = False,
    ) -> None:
        for number in range(first, last):
            began = time.process_time()
            run(self, number, number + 1, external, images, shared=shared)
            spent[title(self.kernel(number))] += time.process_time() - began

    step()
    ProgramSession.run = one_by_one  # type: ignore[method-assign]
    try:
        whole = timed(step)
    finally:
        ProgramSession.run = run  # type: ignore[method-assign]
    spent["not in kernels"] = whole - sum(spent.values())
    return [Row(f"  {part}: {what}", 1e3 * seconds, "ms") for part, seconds in spent.most_common() if seconds > 1e-4]


if __name__ == "__main__":
    options = parser(__doc__)
    options.add_argument("networks", nargs="*", default=list(TARGETS["unstructured"]))
    options.add_argument("--batch", type=int, help="default: 128; 16 of resnet-50-imagenet, 32 of gpt, 20 of lstm")
    options.add_argument("--density", type=float, nargs="+", default=[0.2, 0.1, 0.05])
    options.add_argument("--pattern", default="unstructured", help="of the masks, as of `ticketry bench --pattern`")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--compile", action="store_true", help="torch.compile too, which takes minutes to compile")
    options.add_argument("--threads", type=int, default=1, help="of both sides; with several the clock is the wall's")
    options.add_argument("--kept", action="store_true", help="the optimiser has `kept_parameters` in sparse steps")
    options.add_argument("--late", action="store_true", help="with --kept: the model's tensors follow at the end")
    options.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="not with --trained and --line")
    options.add_argument("--line", action="store_true", help="time against density, at twelve of them")
    options.add_argument(
        "--trained", metavar="LENGTH", help="masks of a network trained for so long on CIFAR-10: 100it"
    )
    options.add_argument("--store", type=Path, help="folder of what --trained trains; by default a temporary one")
    options.add_argument("--memory", action="store_true", help="peak memory of steps, dense ones in eager torch")
    main("training", measure, options)
