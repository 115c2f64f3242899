"""Compiles a model under a mask to an `nn.Module` for inference, which is called like the original model.

The tables of the kernels contain the weights. The compiled model has no parameters, so its `state_dict` is empty. A
deep copy shares the graph. Pickling stores the bytes of a model file. Autocast does not affect the compiled model.
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
from ticketry_engine.capture.program import Arguments
from ticketry_engine.errors import EngineError
from ticketry_engine.gpu import compiled as gpu
from ticketry_engine.gpu.compiled import CompiledGpu
from ticketry_engine.ir import Graph, Node, Region, last_uses, model_file
from ticketry_engine.ir.binding import CallBinder, build_object
from ticketry_engine.ir.reference import bind_checked_node
from ticketry_engine.kernels.bfloat import FLOAT, HALF, TILE_ROWS
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import count_cores
from ticketry_engine.kernels.target import Target, target
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.kernels.training.layer import images_per_block
from ticketry_engine.layers import ForInference, describe_layers, layer_table, median_seconds, warn_of_graph_notes
from ticketry_engine.plan.region_programs import ITEM, Native, compute_graph_digest, partition_graph
from ticketry_engine.processor import name_and_features, processor_kind
from ticketry_engine.results import Layer, Place
from ticketry_engine.support.entry_points import entry_point
from ticketry_engine.support.modules import copy_module
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.row_groups import row_groups
from ticketry_engine.training.capture import fills_blocks
from ticketry_engine.training.lstm import FEWEST
from ticketry_engine.training.sparse_training import ALL_WEIGHTS, VERSION, SparseTraining

Step = tuple["Native | Callable[..., Any]", tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""(function of a step, names of values it reads, names of values it computes, names of values to free afterwards)."""

_ROUNDS = 5
"""Number of calls that are timed alternately with calls of eager torch after tuning."""

_GLANCE = 2
"""Number of timing rounds without tuning; calls of more than `_LONG` seconds are timed once."""

_LONG = 0.05

_RunRegion = Callable[[Native, list[Tensor]], list[Tensor]]
_RunInTorch = Callable[[Callable[..., Any], list[Tensor], str], Any]
"""Function that runs a torch step, given the step, its inputs and the name of its output."""


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

    A model on a GPU is compiled for the GPU, in the precision of its weights ("tf32" for float32). For another
    precision, call `engine.gpu.compile_gpu`.

    Args:
        model: any module that `torch.export` can trace. The module is not changed, and compiled as in evaluation mode.
        keep: parameter name -> bool tensor, True = retained; the mask is applied to a copy of the model. None if the
            pruned weights are zero already.
        example_inputs: a tensor, a tuple of tensors, or a dict of keyword arguments, with the batch on axis 0. Calls
            may have other numbers of examples.
        threads: number of threads of a call, at most the number of cores available to the calling thread; None for
            `torch.get_num_threads()` at each call.
        target: "host" for kernels that use all instructions of this processor; "avx2" or "generic" for kernels that use
            at most AVX2 or SSE4.2.
        precision: "fp32", or "bf16" to round weights and values between layers to bfloat16 and add in float32. Inputs
            and outputs are always float32. Layers that are not faster in bf16 stay in fp32, see `Compiled.layers`.
        tune: whether to time both memory layouts and several block sizes on the example inputs, and to use the fastest
            for this batch size; this takes seconds. False: choose them by estimates.

    Raises:
        EngineError: if the model cannot be captured, or if "bf16" is requested and the processor cannot multiply
            bfloat16.
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
    warn_of_graph_notes(made.graph, stacklevel=3)
    call = Arguments.from_examples(example_inputs)
    if tune:
        made.tune(*call.args, **call.kwargs)
    made._made_of = weakref.ref(model), call
    if tune:
        made._beside_eager = _describe_speed_against_eager(made, model, call, glance=False)
    return made


def _describe_speed_against_eager(compiled: Compiled, model: nn.Module, arguments: Arguments, *, glance: bool) -> str:
    """Return a sentence that compares the time of a call of a compiled model with the time of eager torch.

    Args:
        compiled: the compiled model.
        model: the model from which `compiled` was compiled.
        arguments: the arguments of the calls.
        glance: True: use the faster of two rounds (one round for long calls); False: the median of five rounds.
    """
    eager = copy_module(model, {}).to("cpu").eval()
    seconds: tuple[list[float], list[float]] = ([], [])
    called = any(native.programs for native in compiled._natives)
    rounds = _GLANCE if glance else _ROUNDS
    with torch.no_grad(), private_random_state([]):
        for turn in range(rounds + 1):
            for one, samples in zip((compiled, eager), seconds, strict=True):
                begin = time.perf_counter()
                one(*arguments.args, **arguments.kwargs)
                samples.append(time.perf_counter() - begin)
            if glance and turn and seconds[1][-1] > _LONG:
                break
    if glance and not called:
        compiled.forget()
    ours, theirs = ((min if glance else statistics.median)(samples[1:]) for samples in seconds)
    said = f"{theirs / ours:.2f} times as fast as" if ours <= theirs else f"{ours / theirs:.2f} times SLOWER than"
    threads = f"{compiled._thread_count()} thread{'' if compiled._thread_count() == 1 else 's'}"
    return (
        f"On the example inputs {said} eager torch: {1e3 * ours:.3f} ms on {threads},"
        f" {1e3 * theirs:.3f} ms on {torch.get_num_threads()}"
        + (" (at a glance: tk.compile(..., tune=True) looks longer)" if glance else "")
    )


def load(
    path: str | os.PathLike[str], *, threads: int | None = None, target: str = "host", precision: str | None = None
) -> Compiled:
    """Load a compiled model from a file; the model's source code is not needed.

    Args:
        path: path of a file that `Compiled.save` wrote.
        threads, target: number of threads and kind of kernels, as in `compile`.
        precision: "fp32" or "bf16"; None: the precision of the saved model. Weights in a file are never rounded.

    Raises:
        EngineError: if the file is damaged, malicious or of a later version, or if the precision is "bf16" and the
            processor cannot multiply bfloat16.

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
    """A compiled model: regions of its graph run in kernels, and torch runs all other operations.

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
        library: Library | None = None,
    ) -> None:
        """Compile a graph.

        `layout` is the memory layout for everything that runs in kernels, "planes" or "pixels"; None: choose by
        estimates. `library` has kernels that are shared with other compiled models; programs are then not cached on
        disk. The other arguments are those of `compile`, and `digest` identifies the graph in the cache.
        """
        super().__init__()
        self.graph = graph
        self.threads = threads
        self.target = find_target(target)
        self.precision = _check_precision(precision, self.target)
        self._target_name = target
        self._digest = digest
        self._call = CallBinder(graph)
        self._library = library or Library(self.target)
        self._cached = library is None
        self._layout = layout
        parts, self.reasons = partition_graph(graph)
        steps = [self._bind_step(step) for step in parts]
        done = last_uses([(reads, makes) for _, reads, makes in steps], graph.output_names)
        self._steps: list[Step] = [(*step, free) for step, free in zip(steps, done, strict=True)]
        self._natives = [run for run, *_ in steps if isinstance(run, Native)]
        self._whole = self._whole_model_region()
        self._seconds: dict[str, float] = {}
        self.clock: Callable[[], float] = time.perf_counter
        """Clock that `profile` uses; with `time.thread_time`, times exclude other processes."""
        self._made_of: tuple[weakref.ref[nn.Module], Arguments] | None = None
        """The original model and the example inputs, with which `beside_eager` compares times."""
        self._beside_eager = ""
        nn.Module.train(self, False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = self._call.bind(args, kwargs)
        if self._whole is not None:  # nothing for torch to do, and so no contexts to enter
            return self._whole(inputs, self._thread_count())[0]
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        threads = self._thread_count()
        self._run_steps(
            values, lambda native, tensors: native(tensors, threads), lambda step, tensors, _: step(*tensors)
        )
        return build_object(self.graph.outputs, values)

    def _run_steps(self, values: dict[str, Any], run_region: _RunRegion, run_in_torch: _RunInTorch) -> None:
        """Run all steps, and store their results in `values` by name; delete each result after its last use.

        The function `run_region` runs a step in kernels, and `run_in_torch` runs a step in torch.
        """
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            for run, reads, makes, done in self._steps:
                tensors = [values[name] for name in reads]
                made = run_region(run, tensors) if isinstance(run, Native) else [run_in_torch(run, tensors, makes[0])]
                values.update(zip(makes, made, strict=True))
                for name in done:
                    del values[name]

    def tune(self, *args: Any, **kwargs: Any) -> Compiled:
        """Time several layouts and block sizes on these inputs, and use the fastest from now on for this batch size.

        Args:
            args, kwargs: arguments of a call, or one tuple or dict of example inputs as in `compile`.

        Returns:
            The compiled model itself.
        """
        values: dict[str, Any] = dict(zip(self.graph.inputs, self._call.bind_examples(args, kwargs), strict=True))
        threads = self._thread_count()

        def tune_and_run(native: Native, tensors: list[Tensor]) -> list[Tensor]:
            native.tune(tensors, threads)
            return native(tensors, threads)

        self._run_steps(values, tune_and_run, lambda step, tensors, _: step(*tensors))
        return self

    def forget(self) -> None:
        """Free the programs that were made for each batch size; later calls create them again."""
        for native in self._natives:
            native.free_programs()

    def relink(self) -> None:
        """Copy all programs to other memory addresses, which changes the time of calls a little."""
        for native in self._natives:
            native.move_programs()

    def profile(self, *args: Any, rounds: int = 5, **kwargs: Any) -> list[Layer]:
        """Return the rows of `layers` with the seconds of each layer, as medians of `rounds` calls on one thread.

        Args:
            args, kwargs: arguments of a call, or one tuple or dict of example inputs as in `compile`.
            rounds: number of calls that are timed.
        """
        self.time_nodes(*args, rounds=rounds, **kwargs)
        return self.layers()

    def time_nodes(self, *args: Any, rounds: int, **kwargs: Any) -> dict[str, float]:
        """Return the seconds of each node, by the name of its output, and the seconds of "load" and "store"."""
        inputs = self._call.bind_examples(args, kwargs)
        self._time_nodes_once(inputs)
        self._seconds = median_seconds(lambda: self._time_nodes_once(inputs), rounds)
        return self._seconds

    def _time_nodes_once(self, inputs: list[Tensor]) -> dict[str, float]:
        values: dict[str, Any] = dict(zip(self.graph.inputs, inputs, strict=True))
        seconds: dict[str, float] = {}

        def time_step(step: Callable[..., Any], tensors: list[Tensor], name: str) -> Any:
            begin = self.clock()
            made = step(*tensors)
            seconds[name] = self.clock() - begin
            return made

        self._run_steps(values, lambda native, tensors: native.profile(tensors, seconds, self.clock), time_step)
        return seconds

    def layers(self) -> list[Layer]:
        """Return a row for each layer, in order of execution, with its kernel or the reason why torch runs it."""
        return describe_layers(self.graph, self.reasons, self._natives, self._seconds)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the compiled model to the file `path`, for `load`, and return the path."""

        return model_file.save(self.graph, Path(path), {"precision": self.precision})

    @property
    def layouts(self) -> set[str]:
        """Return the memory layouts ("planes", "pixels") of all programs created so far."""
        return {plan.layout for native in self._natives for plan in native.programs}

    @property
    def weight_bytes(self) -> int:
        """Return how many bytes the weights and their positions take in all programs created so far."""
        return sum(program.table_bytes for native in self._natives for program in native.programs.values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        return Compiled(self.graph, threads=self.threads, target=self._target_name, precision=self.precision)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (model_file.dumps(self.graph), self.threads, self._target_name, self.precision)

    @property
    def beside_eager(self) -> str:
        """Return a sentence that compares the model's time with eager torch; the first access measures both times."""
        model = self._made_of[0]() if self._made_of else None
        if not self._beside_eager and self._made_of and model is not None:
            self._beside_eager = _describe_speed_against_eager(self, model, self._made_of[1], glance=True)
        return self._beside_eager or "Not timed beside eager torch, and so maybe slower: " + (
            "the model it was made of is gone" if self._made_of else "tk.compile makes what can be timed"
        )

    def __repr__(self) -> str:
        return (
            f"{layer_table(self.layers(), f'Compiled for {self.target.name}', self.graph.notes)}\n{self.beside_eager}"
        )

    def _thread_count(self) -> int:
        """Return the number of threads of a call, which is at most the number of available cores."""
        threads = self.threads or torch.get_num_threads()
        return threads if threads == 1 else min(threads, count_cores())

    def _bind_step(self, step: Region | Node) -> tuple[Native | Callable[..., Any], tuple[str, ...], tuple[str, ...]]:
        if isinstance(step, Region):
            make = partial(Native, self.graph, step, self._library, self._digest_of_graph if self._cached else None)
            native = make(self._layout, self.precision)
            return native, tuple(step.inputs), tuple(step.outputs)
        return bind_checked_node(self.graph, step), step.inputs, (step.output,)

    def _whole_model_region(self) -> Native | None:
        """Return the part of the graph that runs in kernels if it is the whole model and has one output, else None."""
        if len(self._steps) != 1 or not self._natives or not isinstance(self.graph.outputs, str):
            return None
        _, reads, makes, _ = self._steps[0]
        same = reads == self.graph.inputs and makes == (self.graph.outputs,)
        return self._natives[0] if same else None

    def _digest_of_graph(self) -> str:
        """Return the digest of the model file, or else of the graph, which identifies cached programs."""
        if self._digest is None:
            self._digest = compute_graph_digest(self.graph)
        return self._digest


def _check_precision(precision: str, target: Target) -> str:
    """Return `precision`; raise `EngineError` if `target` has no kernels for this precision."""
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


# -- reports for callers that decide whether to use the engine ---------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """A description of this machine's processor and of the kernels that are made for it."""

    processor: str
    """Name and model of the processor."""
    kernels: str
    """Kind of vector instructions: "avx512", "avx2", "generic" or "aarch64"."""
    bf16: bool
    """Whether the processor has instructions that multiply bfloat16."""
    tiles: bool
    """Whether the processor multiplies tiles of bfloat16 (AMX), and this process may use these instructions."""
    numerics: int
    """Version of the arithmetic of training kernels; with equal versions and `kernels`, steps give equal bits."""


@dataclass(frozen=True)
class InspectedLayer:
    """Where a layer runs when a masked model is trained, and the share of its work that sparse kernels save."""

    parameter: str
    """Name of the layer's weight, as in `Module.named_parameters`."""
    where: Place
    """Place in which the layer is computed: "engine" (kernels) or "torch"."""
    saved: float
    """Share of the layer's multiply-accumulates that kernels skip; 0 in torch, or if kernels also multiply zeros."""
    in_sixteens: bool
    """Whether each row retains the same columns as fifteen other rows, which kernels with AMX tiles require."""


def machine() -> Machine:
    """Return a description of this machine's processor and of the kernels that are made for it.

    Raises:
        EngineError: if kernels do not run on this system or processor.
        MissingExtraError: if llvmlite is not installed.
    """
    here = target()
    return Machine(f"{name_and_features()[0]} ({processor_kind()})", here.name, here.bf16, here.tiles, VERSION)


def inspect(
    model: nn.Module, keep: Mapping[str, Tensor], example_inputs: Any, *, precision: str = "fp32"
) -> list[InspectedLayer]:
    """Return, for each layer with a weight, where training runs the layer, and the share of work that kernels save.

    Args:
        model: the model, in float32 on the CPU. Its pruned weights are set to 0; nothing else is changed.
        keep: parameter name -> bool tensor, True = retained.
        example_inputs: a tensor, a tuple of arguments, or a mapping of arguments by name, with the batch on axis 0. The
            number of examples affects the result, see `examples_to_inspect`.
        precision: "fp32" or "bf16".

    Raises:
        CaptureError: if the model cannot be called with the example inputs.
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
                found.append(
                    InspectedLayer(name, layer.where, saved, name in keep and has_rows_in_groups_of_16(keep[name]))
                )
    return found


def examples_to_inspect(batch: int, precision: str = "fp32") -> int:
    """Return the number of examples with which `inspect` gives the result for the batch size `batch`, but faster."""
    half = precision == "bf16"
    return images_per_block(HALF if half else FLOAT) if fills_blocks(batch, half=half) else min(batch, FEWEST)


def has_rows_in_groups_of_16(kept: Tensor) -> bool:
    """Return whether each row of a weight retains the same columns as fifteen other rows, as AMX kernels require."""
    return all(len(group.rows) % TILE_ROWS == 0 for group in row_groups(kept))
