"""Time saved on a GPU by groups of rows that share their columns, against cuDNN and cuBLAS in the same precision.

    python benchmarks/engine_gpu.py                             # every network, group size and density; needs a GPU
    python benchmarks/engine_gpu.py --networks resnet-18 --densities 0.26 --rows 64 --layers
    python benchmarks/engine_gpu.py --calibrate                 # the constants of ticketry_engine.gpu.plan, measured

Masks are synthetic: random columns for groups of so many rows, in any order. Everyone is replayed from a CUDA graph,
from and to tensors that stay where they are, in rounds in turn; a time is the median over rounds of CUDA events around
several replays. The baseline is the fastest of

    folded     the captured graph, norms folded, all layers in cuDNN and cuBLAS, channels_last, cudnn.benchmark
    eager      the model unchanged, channels_last, cudnn.benchmark
    compiled   torch.compile, mode max-autotune, weights frozen (leave it out with --against folded eager)

and `saved` is the share of its time that the sparse model does not take. `auto` is what compile_gpu chooses, `forced`
every layer in the group kernel. Each network ends with the density from which on `auto` is faster, interpolated.
"""

from __future__ import annotations

import argparse
import copy
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[], object]

NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    # name: what it is, inputs
    "resnet-18": ("resnet-18", (256, 3, 32, 32)),
    "resnet-18-imagenet": ("resnet-18-imagenet", (64, 3, 224, 224)),
    "resnet-50": ("resnet-50-imagenet", (64, 3, 224, 224)),
    "vgg-16": ("vgg-16", (256, 3, 32, 32)),
    "transformer": ("transformer", (64, 128, 768)),
}

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}


class Transformer(nn.Module):
    """One pre-norm block of width 768 with 12 heads and a hidden layer of 3072."""

    def __init__(self, width: int = 768, heads: int = 12) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def main() -> None:
    given = options().parse_args()
    if not torch.cuda.is_available():
        sys.exit("engine_gpu: no CUDA device is visible to torch: nothing was measured")
    torch.backends.cudnn.benchmark = True
    # By the older settings: torch.compile asks for those, and refuses the newer ones set for a backend alone.
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    facts = machine(given.precision)
    print(" · ".join(f"{name} {value}" for name, value in facts.items()), flush=True)
    if given.calibrate:
        rows = calibrate(TYPES[given.precision], given.rounds)
    else:
        rows = [row for name in given.networks for row in measure(name, given)]
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.26, 0.2, 0.1])
    parser.add_argument("--rows", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--precision", default="bf16", choices=list(TYPES))
    parser.add_argument("--batch", type=int, help="examples of every network; default: each network's own")
    choices = ["folded", "eager", "compiled"]
    parser.add_argument("--against", nargs="+", default=choices, choices=choices)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", action="store_true", help="print each layer's kernel and time, dense and sparse")
    parser.add_argument("--calibrate", action="store_true", help="measure the constants of the cost model, no networks")
    parser.add_argument("--json", type=Path)
    return parser


def machine(precision: str) -> dict[str, Any]:
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
        "precision": precision,
    }


# -- timing ------------------------------------------------------------------------------------------------------------


def recorded(call: Call) -> Call:
    """The call as a CUDA graph: kernels alone, nothing of Python."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        held = call()

    # A graph reads the memory that the call's own tensors had: both stay alive with it.
    def replay(alive: object = (call, held)) -> None:
        graph.replay()

    return replay


def alternate(calls: dict[str, Call], rounds: int, least: float = 0.02) -> dict[str, float]:
    """Median seconds of each call over rounds in turns, each of as many calls as take 20 ms."""
    counts = {
        name: max(1, min(1000, round(least / max(1e-6, seconds_per_call(call, 3))))) for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_per_call(call, counts[name]))
    return {name: median(taken) for name, taken in times.items()}


def seconds_per_call(call: Call, count: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


# -- networks ----------------------------------------------------------------------------------------------------------


def build(name: str, shape: Sequence[int]) -> nn.Module:
    torch.manual_seed(0)
    if name == "transformer":
        return Transformer(shape[2]).eval().requires_grad_(False)
    from ticketry.tasks.models import build as build_network

    return build_network(name, shape=tuple(shape[1:]), classes=1000).eval().requires_grad_(False)


def measure(name: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one network."""
    from ticketry.core.synthetic_masks import synthetic
    from ticketry_engine.gpu import compile_gpu

    network, shape = NETWORKS[name]
    shape = (given.batch or shape[0], *shape[1:])
    # Everyone has inputs, weights and outputs in one format: to convert 25 MB of float32 is not the engine's work.
    dtype = TYPES[given.precision]
    model = build(network, shape).to(dtype)
    x = torch.randn(shape, device="cuda", dtype=dtype)
    small = torch.randn(2, *shape[1:], dtype=dtype)
    rivals = dense(model, x, small, given)
    print(f"\n{name}, inputs {list(shape)}\nrows density  " + "  ".join(f"{one:>9}" for one in rivals), end="")
    print("       auto     forced  saved %  sparse layers  max error")
    rows = []
    for count in given.rows:
        for density in sorted(given.densities, reverse=True):
            mask = synthetic(model, f"groups:{count}:any", density)
            pruned = copy.deepcopy(model)
            mask.apply_(pruned)
            modes = {"auto": False, "forced": True}
            fast = {
                mode: compile_gpu(
                    model, mask, small, precision=given.precision, graph=False, device="cuda", force=force
                )
                for mode, force in modes.items()
            }
            error = difference(fast["forced"](x), pruned, x)
            calls = {mode: recorded(lambda one=one: one(x)) for mode, one in fast.items()}
            times = alternate({**rivals, **calls}, given.rounds)
            kernels = [choice.kernel for choice in fast["auto"].choices(x).values()]
            rows.append(row(name, shape, count, density, times, list(rivals), kernels, error))
            show(rows[-1], list(rivals))
            if given.layers:
                recording = compile_gpu(model, mask, small, precision=given.precision, device="cuda")
                print(layers(recording, x))
            del fast, calls
            gc.collect()
        print(f"     groups of {count} rows are faster from density {crossing(rows, count)} on", flush=True)
    return rows


def dense(model: nn.Module, x: Tensor, small: Tensor, given: argparse.Namespace) -> dict[str, Call]:
    """The rivals, ready to be replayed."""
    from ticketry_engine.gpu import compile_gpu

    found: dict[str, Call] = {}
    like = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    if "folded" in given.against:
        # No weight is removed, so that every layer stays dense.
        folded = compile_gpu(model, None, small, precision=given.precision, graph=False, device="cuda")
        assert {choice.kernel for choice in folded.choices(x).values()} == {"dense"}
        found["folded"] = recorded(lambda: folded(like))
    plain, y = copy.deepcopy(model).to("cuda"), like
    if x.dim() == 4:
        plain = plain.to(memory_format=torch.channels_last)
    if "eager" in given.against:
        found["eager"] = recorded(lambda: plain(y))
    if "compiled" in given.against:
        import torch._inductor.config as inductor

        inductor.freezing = True
        began = time.perf_counter()
        fast = torch.compile(copy.deepcopy(plain), mode="max-autotune-no-cudagraphs")
        with torch.no_grad():
            fast(y)
        print(f"\n(torch.compile took {time.perf_counter() - began:.0f} s)", end="")
        found["compiled"] = recorded(lambda: fast(y))
    return found


def difference(made: Tensor, pruned: nn.Module, x: Tensor) -> float:
    """Largest error over the largest output, against the pruned model in float64; of 8 examples, as that is slow."""
    exact = copy.deepcopy(pruned).to("cuda", torch.float64)
    with torch.no_grad():
        wanted = exact(x[:8].double())
    return float((made[:8].double() - wanted).abs().max() / wanted.abs().max())


def row(
    name: str,
    shape: Sequence[int],
    rows: int,
    density: float,
    times: dict[str, float],
    rivals: list[str],
    kernels: list[str],
    error: float,
) -> dict[str, Any]:
    best = min(times[one] for one in rivals)
    return {
        "network": name,
        "inputs": list(shape),
        "rows": rows,
        "density": density,
        "seconds": times,
        "saved": 1 - times["auto"] / best,
        "saved_forced": 1 - times["forced"] / best,
        "sparse_layers": sum(kernel == "group" for kernel in kernels),
        "layers": len(kernels),
        "error": error,
    }


def show(one: dict[str, Any], rivals: list[str]) -> None:
    times = "  ".join(f"{1e3 * one['seconds'][name]:9.3f}" for name in [*rivals, "auto", "forced"])
    sparse = f"{one['sparse_layers']} of {one['layers']}"
    print(
        f"{one['rows']:4} {one['density']:7.2f}  {times}  {100 * one['saved']:7.1f}  {sparse:>13}  {one['error']:9.1e}",
        flush=True,
    )


def crossing(rows: list[dict[str, Any]], count: int) -> str:
    """The density below which `auto` saves time, between the measured ones."""
    points = sorted((one["density"], one["saved"]) for one in rows if one["rows"] == count)
    if points[-1][1] > 0:
        return f"{points[-1][0]} (the highest measured)"
    if points[0][1] <= 0:
        return "none that was measured"
    for (low, gain), (high, loss) in itertools.pairwise(points):
        if gain > 0 >= loss:
            return f"{low + (high - low) * gain / (gain - loss):.2f}"
    return "none"


def layers(fast: Any, x: Tensor) -> str:
    """List the time of each operation."""
    found = fast.profile(x, rounds=7)
    lines = [f"     {1e6 * (one.seconds or 0):8.1f} us  {one.name:24} {one.kind:16} {one.kernel}" for one in found]
    return "\n".join(lines)


# -- calibration -------------------------------------------------------------------------------------------------------


def calibrate(dtype: torch.dtype, rounds: int) -> list[dict[str, Any]]:
    """Measured constants of `ticketry_engine.gpu.plan.Rates`, each from a layer that it decides."""
    from ticketry_engine.gpu import program as ops
    from ticketry_engine.gpu.plan import RATES, TILES
    from ticketry_engine.gpu.tables import pack_group_tables

    size, bytes_ = 256, torch.empty(0, dtype=dtype).element_size()
    x = torch.randn(128, size, 28, 28, device="cuda", dtype=dtype)
    last, inner = x.contiguous(memory_format=torch.channels_last), ops.turn(x, True)
    weight = torch.randn(size, size, 3, 3, dtype=dtype)
    tokens, matrix = (torch.randn(n, 4096, device="cuda", dtype=dtype) for n in (16384, 4096))
    moved = weight.cuda().contiguous(memory_format=torch.channels_last)
    tiny = torch.zeros(64, device="cuda")
    calls: dict[str, Call] = {
        "conv": lambda: torch.conv2d(last, moved, padding=1),
        "linear": lambda: nn.functional.linear(tokens, matrix),
        "bandwidth": lambda: torch.relu(last),
        "turned": lambda: ops.turn(last, True),
        "launch": lambda: [tiny.add_(1) for _ in range(100)],
    }
    kept: dict[int, int] = {}
    for tile in TILES:
        flat = torch.zeros(size, 9 * size, dtype=dtype)
        for begin in range(0, size, tile):
            columns = torch.randperm(9 * size)[: round(0.25 * 9 * size / 64) * 64]
            flat[begin : begin + tile, columns] = 1
        kept[tile] = int(flat.count_nonzero())
        held = pack_group_tables(flat.view_as(weight), tile=tile, dtype=dtype, padding=(1, 1)).to("cuda")
        calls[f"group {tile}"] = group_call(inner, held, size)
    few = pack_group_tables(torch.ones(16, 4096 * 4, dtype=dtype), tile=16, dtype=dtype).to("cuda")
    column = ops.turn(torch.randn(64, 4096 * 4, device="cuda", dtype=dtype), True)
    calls["step"] = lambda: ops.group_linear(
        column, few.weight, None, None, few.tiles, few.rows, few.places, 16, "", 0.0
    )
    if dtype != torch.float32:
        semi = torch.sparse.to_sparse_semi_structured(
            matrix * torch.tensor([1.0, 1, 0, 0], device="cuda", dtype=dtype).repeat(1024)
        )
        calls["two_four"] = lambda: nn.functional.linear(tokens, semi)
    times = alternate({name: recorded(call) for name, call in calls.items()}, rounds)
    pixels = 128 * 28 * 28
    flops = {
        "linear": 2.0 * tokens.numel() * 4096,
        "two_four": 2.0 * tokens.numel() * 4096,
        "conv": 2.0 * pixels * weight.numel(),
    }
    flops.update({f"group {tile}": 2.0 * pixels * count for tile, count in kept.items()})
    rates = {name: flops[name] / times[name] for name in flops if name in times}
    rates["bandwidth"] = rates["turned"] = 2.0 * bytes_ * x.numel()
    rates["bandwidth"] /= times["bandwidth"]
    rates["turned"] /= times["turned"]
    rates["launch"], rates["step"] = times["launch"] / 100, times["step"] / (4096 * 4 / 64)
    held_rates = RATES[dtype]
    print("constant         measured     in cost.py")
    for name, rate in rates.items():
        kind, _, tile = name.partition(" ")
        known = held_rates.group[int(tile)] if kind == "group" else getattr(held_rates, kind)
        print(f"{name:12} {rate:12.3g}   {known:12.3g}", flush=True)
    return [{"constant": name, "measured": rate} for name, rate in rates.items()]


def group_call(x: Tensor, held: Any, outputs: int) -> Call:
    from ticketry_engine.gpu import program as ops

    packed = (held.tiles, held.rows, held.places, outputs)
    window = ([3, 3], [1, 1], [1, 1], [1, 1])
    return lambda: ops.group_conv2d(x, held.weight, None, None, *packed, *window, "", 0.0)


if __name__ == "__main__":
    main()
