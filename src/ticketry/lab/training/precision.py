"""The arithmetic of a training: device, number format, memory layout and threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ticketry.choices import check_choice
from ticketry.errors import UsageError
from ticketry_engine.support.process_state import ONE_AT_A_TIME

PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
DENSE = "dense"
SYNCHRONISED, OWN = "synchronised", "own"
NORMS = (SYNCHRONISED, OWN)
DDP, FSDP = "ddp", "fsdp"
PARALLEL = (DDP, FSDP)


@dataclass(frozen=True)
class Arithmetic:
    """Device type, number format, memory layout and CPU threads. They affect bits, so a segment's key includes them."""

    device: str = "cpu"
    """cpu or cuda."""
    precision: str = "fp32"
    """fp32, or bf16 (autocast; weights and optimiser stay in fp32)."""
    channels_last: bool = False
    threads: int = 1
    """CPU threads of one segment; they do not depend on the runner or on other segments."""
    kernels: str = DENSE
    """dense, or the name of sparse kernels for masked steps, see `lab.training.kernels`."""

    ranks: int = 1
    """Processes that train one network together (`--devices`), each with `threads` threads or its own GPU."""
    norms: str = ""
    """With several ranks, batch norms use statistics of the whole batch (synchronised) or of the rank's part (own)."""
    parallel: str = ""
    """fsdp if every parameter is sharded among the ranks (`fully_shard`); otherwise each rank has all of it."""

    def describe(self) -> dict[str, Any]:
        """Return the arithmetic as JSON values for keys. Newer fields are omitted at their defaults, so that old keys
        stay valid.
        """
        described = asdict(self)
        usual = {"kernels": DENSE, "ranks": 1, "norms": "", "parallel": ""}
        return {name: value for name, value in described.items() if name not in usual or value != usual[name]}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """In a block, set the thread count, deterministic algorithms and denormal flushing. Only one block runs at a
        time.
        """
        with ONE_AT_A_TIME, denormals_as_zero():
            threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
            deterministic = torch.are_deterministic_algorithms_enabled()
            warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
            torch.set_num_threads(self.threads)
            torch.backends.cudnn.benchmark = False
            if self.device == "cuda":
                memory: Any = torch.utils.deterministic  # type checkers do not see the properties of this module
                filled = memory.fill_uninitialized_memory
                torch.use_deterministic_algorithms(True, warn_only=True)
                # Memory is written before it is read; filling it would take as long as the computation.
                memory.fill_uninitialized_memory = False
            try:
                yield
            finally:
                torch.set_num_threads(threads)
                torch.backends.cudnn.benchmark = benchmark
                if self.device == "cuda":  # only here, since the call imports the compiler, which takes seconds
                    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
                    memory.fill_uninitialized_memory = filled

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the autocast context of one forward pass; each step needs a new one, since it caches converted
        weights.
        """
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move the model to the device and the memory layout; sparse kernels need contiguous weights."""
        model = model.to(self.device)
        if not self.channels_last or self.kernels != DENSE:
            return model
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def non_default_choices(
    *, precision: str, threads: int = 1, devices: int = 1, norms: str = SYNCHRONISED, parallel: str = DDP
) -> dict[str, Any]:
    """Return the settings that differ from the defaults (fp32, one thread, one device), for a run's name.

    Device and kernels are never included, since ``auto`` depends on the machine.
    """
    usual = {"precision": "fp32", "threads": 1, "devices": 1, "norms": SYNCHRONISED, "parallel": DDP}
    told = {"precision": precision, "threads": threads, "devices": devices}
    told |= {"norms": norms, "parallel": parallel} if devices > 1 else {}
    return {name: word for name, word in told.items() if word != usual[name]}


@contextlib.contextmanager
def denormals_as_zero() -> Iterator[None]:
    """In a block, treat numbers below 1.2e-38 as zero in this thread, if the processor supports it.

    Closed gates, their products, and the moments of weights without gradient become that small, and each such number
    costs Intel processors a hundred cycles. Ordinary weights have the same bits with and without, so keys do not
    mention it.
    """
    tiny = torch.tensor(torch.finfo(torch.float32).tiny, device="cpu")
    before = not bool(tiny / 2)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def choose_arithmetic(
    model: nn.Module,
    *,
    device: str = "auto",
    precision: str = "auto",
    threads: int = 1,
    ranks: int = 1,
    norms: str = SYNCHRONISED,
    parallel: str = DDP,
) -> Arithmetic:
    """Choose the arithmetic of a model by a fixed rule on the processor's features, never by a timing.

    A GPU is used if there is one. Convolutional networks train in bfloat16 with channels_last if the processor has
    instructions for it (AVX-512 BF16, AMX, or a GPU of compute capability 8), which halves the time of a step. Other
    networks train in fp32, since conversions would cost more time than they save.

    Raises:
        UsageError: for an unknown choice or a missing device.
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("device", device, DEVICES)
    check_choice("norms", norms, NORMS)
    check_choice("parallel", parallel, PARALLEL)
    in_parts = ranks > 1 and parallel == FSDP
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("device cuda was asked for, but torch sees no GPU here: use cpu or auto")
    place = "cuda" if device != "cpu" and has_cuda else "cpu"
    convolutional = any(isinstance(module, _ConvNd) for module in model.modules())
    if precision == "auto":
        precision = "bf16" if convolutional and _has_bf16(place) else "fp32"
    channels_last = any(isinstance(module, nn.Conv2d) for module in model.modules())
    if (place, precision) == ("cpu", "fp32") and any(map(_may_crash_in_channels_last, model.modules())):
        channels_last = False
    if in_parts:
        channels_last = False  # fully_shard splits the memory of weights along their first dimension
    has_norms = any(isinstance(module, _BatchNorm) for module in model.modules())
    return Arithmetic(
        place,
        precision,
        channels_last,
        threads,
        ranks=ranks,
        norms=norms if ranks > 1 and has_norms else "",
        parallel=FSDP if in_parts else "",
    )


def _may_crash_in_channels_last(module: nn.Module) -> bool:
    """Return whether torch may crash in this layer's backward pass with channels_last in fp32 on a CPU.

    With torch 2.13 and AVX-512, a 1x1 convolution with stride 2 and 8 input channels over at least 48x48 pixels causes
    a segmentation fault. Layers with fewer than 16 channels gain little by the layout.
    """
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.stride != (1, 1)
        and module.in_channels < 16
    )


def _has_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
