"""A model compiled for its mask: an `nn.Module` with the call of the original model, for inference.

Its weights are in its kernels' tables. It has no parameters, so its `state_dict` is empty. A copy shares the graph,
and it is pickled and saved as a model file. Autocast does not change it.
"""

from __future__ import annotations

import os
import statistics
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ticketry_engine.capture import capture
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.errors import EngineError
from ticketry_engine.gpu import compiled as gpu
from ticketry_engine.gpu.compiled import CompiledGpu
from ticketry_engine.ir import Graph, Node, Region, last_uses, model_file
from ticketry_engine.ir.binding import CallBinder, build
from ticketry_engine.ir.reference import torch_step
from ticketry_engine.kernels.bfloat import FLOAT, HALF, TILE_ROWS
from ticketry_engine.kernels.driver import cores
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import Target, target
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.kernels.training.layer import images_of
from ticketry_engine.layers import ForInference, describe, median_seconds, table, warn_of_notes
from ticketry_engine.plan.region_programs import ITEM, Native, digest_of, partition
from ticketry_engine.processor import kind, processor
from ticketry_engine.results import Layer, Place
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.modules import copied
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.row_groups import row_groups
from ticketry_engine.training.capture import fills_blocks
from ticketry_engine.training.lstm import FEWEST
from ticketry_engine.training.sparse_training import ALL_WEIGHTS, VERSION, SparseTraining

Step = tuple["Native | Callable[..., Any]", tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""The callable of a step, the values that it reads and computes, and those that are not read after it."""

_ROUNDS = 5
"""Calls that are timed in turns with eager torch."""

_GLANCE = 2
"""Timing rounds without tuning, for calls of less than `_LONG` seconds; longer calls are timed once."""

_LONG = 0.05

_OfNative = Callable[[Native, list[Tensor]], list[Tensor]]
_OfOther = Callable[[Callable[..., Any], list[Tensor], str], Any]
"""Runs a torch step, given its inputs and the name of its output."""


@entry_point()
def compile(
    model: nn.Module,
    keep: Mapping[str, Tensor] | None = None,
    example_inputs: Any = None,
    *,
    threads: int | None = None,
    target: str = "host",
    precision: str = "fp32",
    tune: bool = False,
) -> Compiled | CompiledGpu:
    """Return a compiled model whose sparse layers run in kernels made for the mask.

    A model on a GPU is compiled for the GPU, in the precision of its own weights ("tf32" for float32); for another
    precision call `engine.gpu.compile_gpu`.

    Args:
        model: any module that `torch.export` can trace. It is not changed; it is compiled as in eval mode.
        keep: parameter name -> bool tensor, True = retained; applied to a copy of the model. None if the pruned weights
            are zero already.
        example_inputs: a tensor, a tuple of tensors or a dict of keyword arguments, with the batch first. Calls may
            have other numbers of examples.
        threads: number of threads of a call, at most the cores available to the calling thread; None for
            `torch.get_num_threads()` at each call.
        target: "host"; or "avx2" or "generic" for kernels that use at most AVX2 or SSE4.2.
        precision: on a CPU "fp32", or "bf16": weights and values between layers are rounded to bfloat16, sums are
            float32. Inputs and outputs stay float32. Layers that gain nothing stay in fp32: see `Compiled.layers`.
        tune: time both layouts and several block sizes on the example inputs, and use the fastest for their batch
            size, instead of estimates. Takes seconds.

    Raises:
        EngineError: if the model cannot be captured, or the processor does not multiply bfloat16.
        MaskError: if the mask does not fit the model.
        MissingExtraError: if llvmlite is not installed.

    Examples:
        >>> import ticketry_engine
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        >>> keep, x = {"0.weight": torch.rand(64, 64) < 0.25}, torch.randn(4, 64)
        >>> fast = ticketry_engine.compile(model, keep, x)
        >>> model[0].weight.data *= keep["0.weight"]
        >>> torch.allclose(fast(x), model(x), atol=1e-5)
        True
        >>> fast(torch.randn(10, 64)).shape
        torch.Size([10, 8])
    """
    if any(parameter.device.type == "cuda" for parameter in model.parameters()):
        return gpu.compile_gpu_in_own_precision(
            model, keep, example_inputs, threads=threads, target=target, precision=precision
        )
    if example_inputs is None:
        raise EngineError("to compile a model an example of its inputs is needed: tk.compile(model, mask, inputs)")
    made = Compiled(capture(model, keep, example_inputs), threads=threads, target=target, precision=precision)
    warn_of_notes(made.graph, stacklevel=3)
    call = Arguments.of(example_inputs)
    if tune:
        made.tune(*call.args, **call.kwargs)
    made._made_of = weakref.ref(model), call
    if tune:
        made._beside_eager = _beside_eager(made, model, call, glance=False)
    return made


def _beside_eager(made: Compiled, model: nn.Module, call: Arguments, *, glance: bool) -> str:
    """Return a sentence that compares a call's time with eager torch: medians of alternating rounds after a warm-up.

    A quick timing uses the faster of two rounds, or a single round for long calls.
    """
    eager = copied(model, {}).to("cpu").eval()
    seconds: tuple[list[float], list[float]] = ([], [])
    called = any(native.programs for native in made._natives)
    rounds = _GLANCE if glance else _ROUNDS
    with torch.no_grad(), private_random_state([]):
        for turn in range(rounds + 1):
            for one, samples in zip((made, eager), seconds, strict=True):
                begin = time.perf_counter()
                one(*call.args, **call.kwargs)
                samples.append(time.perf_counter() - begin)
            if glance and turn and seconds[1][-1] > _LONG:
                break
    if glance and not called:
        made.forget()
    ours, theirs = ((min if glance else statistics.median)(samples[1:]) for samples in seconds)
    said = f"{theirs / ours:.2f} times as fast as" if ours <= theirs else f"{ours / theirs:.2f} times SLOWER than"
    threads = f"{made._threads()} thread{'' if made._threads() == 1 else 's'}"
    return (
        f"On the example inputs {said} eager torch: {1e3 * ours:.3f} ms on {threads},"
        f" {1e3 * theirs:.3f} ms on {torch.get_num_threads()}"
        + (" (at a glance: tk.compile(..., tune=True) looks longer)" if glance else "")
    )


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, target: str = "host", precision: str | None = None
) -> Compiled:
    """Load a compiled model from a file. The model's source code is not needed.

    Args:
        path: a file that `Compiled.save` wrote.
        threads, target: see `compile`.
        precision: "fp32" or "bf16"; None: as in the saved model. A file's weights are never rounded.

    Raises:
        EngineError: the file is damaged, of a later version or hostile, or the processor multiplies no bfloat16.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> x = torch.randn(4, 64)
        >>> path = tk.compile(model, tk.prune(model, density=0.25), x).save("model.tkm")
        >>> tk.engine.load(path)(x).shape
        torch.Size([4, 8])
    """

    graph, meta, digest = model_file.load(Path(path))
    found = str(meta.get("precision", "fp32")) if precision is None else precision
    return Compiled(graph, threads=threads, target=target, precision=found, digest=digest)


class Compiled(ForInference):
    """A compiled model: regions of its graph run in kernels, the rest in torch.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        >>> x = torch.randn(4, 64)
        >>> fast = tk.compile(model, tk.prune(model, 0.25, distribution="uniform"), x)
        >>> fast(x).shape, fast.tune(x) is fast
        (torch.Size([4, 8]), True)
        >>> [(layer.name, layer.where, layer.density) for layer in fast.layers() if layer.density]
        [('0', 'engine', 0.25), ('2', 'engine', 0.25)]
        >>> fast.profile(x, rounds=1)[0].seconds >= 0, fast.weight_bytes > 0
        (True, True)
        >>> again = tk.engine.load(fast.save("model.tkm"))
        >>> torch.allclose(again(x), fast(x), atol=1e-5)
        True
        >>> "eager" in fast.beside_eager
        True
        >>> fast.forget()
    """

    stays = "in float32 on the CPU"

    def __init__(
        self,
        graph: Graph,
        *,
        threads: int | None = None,
        target: str = "host",
        precision: str = "fp32",
        digest: str | None = None,
        layout: str | None = None,
    ) -> None:
        """`layout`: "planes" or "pixels" for all regions, to time one of them; by default chosen by estimates."""
        super().__init__()
        self.graph = graph
        self.threads = threads
        self.target = find_target(target)
        self.precision = _check_precision(precision, self.target)
        self._target_name = target
        self._digest = digest
        self._call = CallBinder(graph)
        self._library = Library(self.target)
        self._layout = layout
        parts = partition(graph)
        self.reasons = parts.reasons
        steps = [self._bind_step(step) for step in parts.steps]
        done = last_uses([(reads, makes) for _, reads, makes in steps], graph.results)
        self._steps: list[Step] = [(*step, free) for step, free in zip(steps, done, strict=True)]
        self._natives = [run for run, *_ in steps if isinstance(run, Native)]
        self._whole = self._only_region()
        self._seconds: dict[str, float] = {}
        self.clock: Callable[[], float] = time.perf_counter
        """Clock of `profile`; `time.thread_time` excludes other processes."""
        self._made_of: tuple[weakref.ref[nn.Module], Arguments] | None = None
        """The model and the example inputs that `beside_eager` compares with."""
        self._beside_eager = ""
        nn.Module.train(self, False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._call.bind(args, kwargs)
        if self._whole is not None:  # nothing for torch to do, and so no contexts to enter
            return self._whole(inputs, self._threads())[0]
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        threads = self._threads()
        self._run_steps(
            values, lambda native, tensors: native(tensors, threads), lambda step, tensors, _: step(*tensors)
        )
        return build(self.graph.outputs, values)

    def _run_steps(self, values: dict[str, Any], native: _OfNative, other: _OfOther) -> None:
        """Run all steps; `values` holds each result until its last reader is done."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for run, reads, makes, done in self._steps:
                tensors = [values[name] for name in reads]
                made = native(run, tensors) if isinstance(run, Native) else [other(run, tensors, makes[0])]
                values.update(zip(makes, made, strict=True))
                for name in done:
                    del values[name]

    def tune(self, *args: Any, **kwargs: Any) -> Compiled:
        """Time all plans of the regions on these inputs, and use the fastest for this batch size.

        Args:
            args, kwargs: what the model is called with, or one tuple or dict of example inputs, as for `compile`.

        Returns:
            The module itself.
        """
        values: dict[str, Any] = dict(zip(self.graph.inputs, self._call.bind_examples(args, kwargs), strict=True))
        threads = self._threads()

        def tuned(native: Native, tensors: list[Tensor]) -> list[Tensor]:
            native.tune(tensors, threads)
            return native(tensors, threads)

        self._run_steps(values, tuned, lambda step, tensors, _: step(*tensors))
        return self

    def forget(self) -> None:
        """Free the programs of all batch sizes; the next call creates its own again."""
        for native in self._natives:
            native.forget()

    def profile(self, *args: Any, rounds: int = 5, **kwargs: Any) -> list[Layer]:
        """Return `layers` with the seconds of each, of a call on one thread: the median of some rounds.

        Args:
            args, kwargs: what the model is called with, or one tuple or dict of example inputs, as for `compile`.
            rounds: how many calls are timed.
        """
        inputs = self._call.bind_examples(args, kwargs)
        self._median_seconds(inputs)
        self._seconds = median_seconds(lambda: self._median_seconds(inputs), rounds)
        return self.layers()

    def _median_seconds(self, inputs: list[Tensor]) -> dict[str, float]:
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        seconds: dict[str, float] = {}

        def timed(step: Callable[..., Any], tensors: list[Tensor], name: str) -> Any:
            begin = self.clock()
            made = step(*tensors)
            seconds[name] = self.clock() - begin
            return made

        self._run_steps(values, lambda native, tensors: native.profile(tensors, seconds, self.clock), timed)
        return seconds

    def layers(self) -> list[Layer]:
        """Return a row for each layer, in order of execution: where it runs, by which kernel, and why not otherwise."""
        return describe(self.graph, self.reasons, self._natives, self._seconds)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a model file: it loads without the model's source. Returns its path."""

        return model_file.save(self.graph, Path(path), {"precision": self.precision})

    @property
    def weight_bytes(self) -> int:
        """Bytes of the tables of all kernels created so far: weights and their positions."""
        return sum(program.table_bytes for native in self._natives for program in native.programs.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(self.graph, threads=self.threads, target=self._target_name, precision=self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (model_file.dumps(self.graph), self.threads, self._target_name, self.precision)

    @property
    def beside_eager(self) -> str:
        """A sentence that compares it with eager torch on the example inputs; measured at the first access."""
        model = self._made_of[0]() if self._made_of else None
        if not self._beside_eager and self._made_of and model is not None:
            self._beside_eager = _beside_eager(self, model, self._made_of[1], glance=True)
        return self._beside_eager or "Not timed beside eager torch, and so maybe slower: " + (
            "the model it was made of is gone" if self._made_of else "tk.compile makes what can be timed"
        )

    def __repr__(self) -> str:
        return f"{table(self.layers(), f'Compiled for {self.target.name}', self.graph.notes)}\n{self.beside_eager}"

    def _threads(self) -> int:
        """Return the number of threads of a call: at most the number of cores."""
        threads = self.threads or torch.get_num_threads()
        return threads if threads == 1 else min(threads, cores())

    def _bind_step(self, step: Region | Node) -> tuple[Native | Callable[..., Any], tuple[str, ...], tuple[str, ...]]:
        if isinstance(step, Region):
            make = partial(Native, self.graph, step, self._library, self._digest_of_graph)
            native = make(self._layout, self.precision)
            return native, tuple(step.inputs), tuple(step.outputs)
        return torch_step(self.graph, step), step.inputs, (step.output,)

    def _only_region(self) -> Native | None:
        """Return the region that is the whole network, from the call's inputs to its only output; None if there is no
        such region."""
        if len(self._steps) != 1 or not self._natives or not isinstance(self.graph.outputs, str):
            return None
        _, reads, makes, _ = self._steps[0]
        same = reads == self.graph.inputs and makes == (self.graph.outputs,)
        return self._natives[0] if same else None

    def _digest_of_graph(self) -> str:
        """Return the digest that identifies cached plans; computed when first needed, unless the file's digest is
        known."""
        if self._digest is None:
            self._digest = digest_of(self.graph)
        return self._digest


def _check_precision(precision: str, target: Target) -> str:
    """Return the precision, if the target has kernels for it."""
    if precision not in ITEM:
        raise EngineError(f"the engine computes in {' or '.join(ITEM)}, not in {precision!r}")
    if precision == "bf16" and not target.bf16:
        raise EngineError(
            f"kernels in bf16 need a processor that multiplies bfloat16 (AVX512-BF16); the target {target.name}"
            f" ({target.cpu}) does not: compile or load with precision='fp32'"
        )
    return precision


def _unpickle(data: bytes, threads: int | None, target: str, precision: str = "fp32") -> Compiled:
    return Compiled(model_file.loads(data)[0], threads=threads, target=target, precision=precision)


# -- reports what the engine does with a model on this machine, for callers that decide whether to use it --------------


@dataclass(frozen=True)
class Machine:
    """The processor and its kernels."""

    processor: str
    """Name and model of the processor."""
    kernels: str
    """Kind of vectors: avx512, avx2, generic or aarch64."""
    bf16: bool
    """Whether the processor multiplies bfloat16."""
    tiles: bool
    """Whether the processor multiplies bfloat16 tiles (AMX), and this process may use them."""
    numerics: int
    """Version of the training kernels' numerics: steps with equal versions and kernels compute equal bits."""


@dataclass(frozen=True)
class InspectedLayer:
    """A layer trained under a mask, and how much of its work kernels save."""

    parameter: str
    """Name of its weight, as in `Module.named_parameters`."""
    where: Place
    """"engine" or "torch"."""
    saved: float
    """Share of the layer's multiply-accumulates that kernels skip: 0 in torch, or if zeros are computed too."""
    in_sixteens: bool
    """Whether every row shares its columns with fifteen others, as kernels with AMX tiles require."""


def machine() -> Machine:
    """Return this machine's processor and what kernels are made for it.

    Raises:
        EngineError: if no kernels run on this system or processor.
        MissingExtraError: if llvmlite is not installed.
    """
    here = target()
    return Machine(f"{processor()[0]} ({kind()})", here.name, here.bf16, here.tiles, VERSION)


def inspect(
    model: nn.Module, keep: Mapping[str, Tensor], example_inputs: Any, *, precision: str = "fp32"
) -> list[InspectedLayer]:
    """Return, for each layer with a weight, where a training step runs it and what share of its work is saved.

    Args:
        model: float32, on the CPU; nothing about it changes but its weights, which are masked.
        keep: parameter name -> bool tensor, True = retained.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones, the batch first. The number of
            examples matters: see `examples_to_inspect`.
        precision: fp32 or bf16.

    Raises:
        CaptureError: if the example does not run through the model.
        EngineError: if the model is not in float32 on the CPU.
    """
    fast = SparseTraining(model.train(), keep, example_inputs, precision=precision, enforce=None)
    names: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        names.setdefault(id(parameter), name)
    found = []
    for layer in fast.layers():
        for weight in model.get_submodule(layer.name).parameters(recurse=False):
            if weight.dim() > 1:
                name = names[id(weight)]
                computes = layer.where == "engine" and layer.kernel != ALL_WEIGHTS and name in keep
                saved = 1 - float(keep[name].double().mean()) if computes else 0.0
                found.append(InspectedLayer(name, layer.where, saved, name in keep and rows_in_sixteens(keep[name])))
    return found


def examples_to_inspect(batch: int, precision: str = "fp32") -> int:
    """Return the number of examples by which `inspect` represents a batch of this size."""
    half = precision == "bf16"
    return images_of(HALF if half else FLOAT) if fills_blocks(batch, half=half) else min(batch, FEWEST)


def rows_in_sixteens(kept: Tensor) -> bool:
    """Return whether every row of a weight retains the same columns as fifteen others, as AMX kernels require."""
    return all(len(group.rows) % TILE_ROWS == 0 for group in row_groups(kept))
