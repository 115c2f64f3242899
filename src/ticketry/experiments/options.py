"""Define the options of commands and functions: where to train, what to time, which structure to use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.budgets.units import Base
from ticketry.choices import check_options, check_storable_numbers
from ticketry.errors import UsageError, needs

if TYPE_CHECKING:
    from ticketry.core.ticket.ticket import Ticket
    from ticketry.lab.lab import Lab
    from ticketry.lab.runners.runner import OnEvent
    from ticketry.lab.search_result import Seeds
    from ticketry.tasks.task import Task

USUAL_CONTROLS = ("random_reinit", "shuffled", "random_prune")


@dataclass(frozen=True, kw_only=True)
class LabOptions:
    """Options of a lab (the object that trains networks), such as its folder, devices and number of workers.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> run.options.store, run.options.workers, run.options.threads
        (PosixPath('.ticketry'), 0, 1)
    """

    store: Path = Path(".ticketry")
    """Folder of all trainings; or a shared store: s3://bucket/folder, gs://, az://, file://."""
    data: Path | None = None
    """Folder of data sets, searched first."""
    workers: int | None = None
    """Local processes, each for one network; by default one for each core; 0 trains in this process."""
    on: str = ""
    """Place of training: processes:N, in-process, ray[:ADDRESS], dask:ADDRESS or dask:local,
    slurm:partition=NAME,time=4:00:00 or slurm:local, or your own as package.module:object; by default processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu, cuda or auto."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """fp32, bf16 or auto: bf16 for convolutional networks on processors that have bf16."""
    threads: int = 1
    """CPU threads of each training, or of each device of a training; their number affects the bits of the result."""
    devices: int = 1
    """Devices that train each network together: GPUs, or processes of a CPU, see --threads."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """With several devices: each device has the whole network (ddp), or a part of every parameter (fsdp), for networks
    that do not fit into one device."""
    norms: Literal["synchronised", "own"] = "synchronised"
    """With several devices: batch norms see the whole batch (synchronised), or only the part of their device (own)."""
    kernels: Literal["auto", "dense", "sparse"] = "dense"
    """dense, sparse or auto: whether networks train in kernels that compute only with retained weights."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints inside a training."""
    log: tuple[str, ...] = ()
    """Dashboards for metrics of training: trackio, wandb, mlflow, tensorboard, others of `ticketry list loggers`,
    or none."""

    @property
    def lab_arguments(self) -> dict[str, Any]:
        """Arguments of `Lab` that say how many threads and devices train a network together, and how."""
        return {name: getattr(self, name) for name in ("threads", "devices", "parallel", "norms")}

    def __post_init__(self) -> None:
        check_options(threads=self.threads, devices=self.devices, checkpoint_seconds=self.checkpoint_seconds)
        if self.workers is not None:
            check_options(workers=self.workers)
        if self.on and self.workers is not None:
            raise UsageError("--on and --workers both choose where to train: give one of the two")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(LabOptions):
    """Options of a search, except the settings of its method and its training recipe."""

    task: str = "digits"
    """Task: a name of `ticketry list tasks`; or your own as package.module:object."""
    model: str = ""
    """Network: a name of `ticketry list models`; by default the task's own."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value; train=10000 for fewer training examples, or those of your own task."""
    target: str = ""
    """Column that is predicted, for a task table:FILE."""
    name: str = ""
    """Name of the run, for lists and figures; by default it is built from method, score and task."""
    replicates: int = 5
    """Number of searches, each with other seeds."""
    seed: int = 0
    """Seed of the first replicate; each further replicate has the next seed."""
    initialisation_seed: int | None = None
    """Seed of the initial weights; by default the value of --seed."""
    order_seed: int | None = None
    """Seed of data order and augmentation; by default the value of --seed."""
    mask_seed: int | None = None
    """Seed of random choices in masks; by default the value of --seed."""
    controls: tuple[str, ...] = USUAL_CONTROLS
    """Networks that should lose, trained beside each ticket: random_reinit, shuffled, random_prune, others of
    `ticketry list controls`, or none. cyclic and cyclic_random train one mask for as long as the whole search, and do
    not affect the verdict."""
    control_densities: tuple[float, ...] = ()
    """Train controls only beside tickets of these densities; other tickets are only compared with the dense network.
    By default, all tickets have controls."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seeds = ("seed", "initialisation_seed", "order_seed", "mask_seed")
        check_options(replicates=self.replicates)
        check_options(**{name: seed for name in seeds if (seed := getattr(self, name)) is not None})

    @property
    def task_options(self) -> tuple[str, ...]:
        """All options of the task, as texts of the form name=value."""
        return (*self.option, f"target={self.target}") if self.target else self.option

    @property
    def seeds(self) -> Seeds:
        """Seeds of the first replicate."""
        from ticketry.lab.search_result import Seeds

        parts = (self.initialisation_seed, self.order_seed, self.mask_seed)
        return Seeds(*(self.seed if part is None else part for part in parts))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options for rebuilding a ticket's model, such as the weights to load and the task that defines the network."""

    weights: Literal["trained", "start"] = "trained"
    """trained, or start: the weights at the start of the ticket's training."""
    task: str = ""
    """Task, for a ticket that does not name its task."""
    trust: bool = False
    """Trust the ticket: import and run the task and network that it names, and open its files."""
    data: Path | None = None
    """Folder of data sets, for a task of your own that takes its example inputs from a data set."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``ticketry bench``, which times a ticket against dense engines."""

    batch: tuple[int, ...] = (1, 8, 64)
    """Batch sizes."""
    against: tuple[str, ...] = ()
    """Dense engines; by default all that are installed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of all engines: fp32 or bf16."""
    threads: int = 1
    """Threads of each engine, each on its own core."""
    rounds: int = 15
    """Number of timings of each engine; engines are timed in turns."""
    cold: bool = False
    """Empty the caches before every call; otherwise calls follow each other immediately."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: processor time of this process, for a machine with other load."""
    cores: tuple[int, ...] = ()
    """Cores to use, one for each thread; by default the idlest."""
    tune: bool = False
    """Time several plans of the engine at each batch size, and use the fastest plan."""
    densities: tuple[float, ...] = ()
    """Time the network under synthetic masks of these densities instead of the ticket's own mask."""
    pattern: str = "unstructured"
    """Pattern of synthetic masks: unstructured, groups:ROWS (neighbouring rows share their columns), groups:ROWS:any
    (any rows), groups:ROWS:pairs (neighbouring inputs together), channels."""

    def __post_init__(self) -> None:
        check_storable_numbers(self)
        check_options(threads=self.threads)
        if not self.batch or min(self.batch) < 1:
            raise UsageError(f"batch must be 1 or more, got {min(self.batch, default=0)}")
        if self.cores and len(self.cores) != self.threads:
            raise UsageError(f"cores must be as many as threads ({self.threads}), got {len(self.cores)}")


@dataclass(frozen=True, kw_only=True)
class SpeedupOptions:
    """Options for comparing the speed of a model at several pruning steps."""

    batch: tuple[int, ...] = (1, 16)
    """Batch sizes; each has its own table."""
    time: str = "50%"
    """Latency budget of steps 2 and 3: a share of the latency of --base, or an amount such as 5ms."""
    base: Base = "engine"
    """Base of a fraction in --time: engine (step 1), eager, torch.compile, onnxruntime or openvino."""
    threads: int = 1
    """Threads of every engine."""
    rounds: int = 7
    """Number of timings of each engine; engines are timed in turns."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: processor time of this process, for a machine with other load."""

    def __post_init__(self) -> None:
        if not self.batch or min(self.batch) < 1:
            raise UsageError(f"batch must be 1 or more, got {min(self.batch, default=0)}")
        check_options(threads=self.threads)
        if self.rounds < 1:
            raise UsageError(f"rounds must be 1 or more, got {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """Options for changing a mask to a structure that hardware can use, such as 2:4."""

    rows: int = 16
    """Rows of a group, for regroup."""
    density: float | None = None
    """Density of the new mask, for refill+, regroup and channels."""
    plus: float = 0.0
    """Fraction of the emptied channels that is filled again, for refill+; 0 means 0.2."""
    method: Literal["similarity", "hypergraph", "paper", "random"] = "similarity"
    """Grouping for regroup: similarity, hypergraph (extra hypergraph), paper or random."""
    collapse: Literal["raise", "keep"] = "raise"
    """For regroup, if a layer has too few weights for one column of each group: raise (an error), or keep."""
    score: str = "l1"
    """Score of channels for refill, refill+ and channels, see `ticketry list scores`; for refill also remaining."""
    coupled: str = "agree"
    """For refill and refill+: agree (channels coupled across layers are removed together) or inner (only channels of a
    single layer are removed)."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that are not changed (fc3, layer1.*); refill and channels keep all channels of
    these layers."""
    seed: int = 0
    """Seed of random choices."""
    null: bool = True
    """For regroup: also measure the coverage of masks without structure; --no-null saves the time."""

    def __post_init__(self) -> None:
        check_storable_numbers(self)


@contextlib.contextmanager
def open_lab(options: LabOptions, task: Task | None, on_event: OnEvent | None = None) -> Iterator[Lab]:
    """Open a lab, which trains networks with the given `options`, during a `with` block.

    If `task` is an object that other processes cannot build by its name, the lab trains in this process.
    """
    for package in ("scipy", "matplotlib"):
        needs(package, "lab", "a command that trains and judges")
    import torch

    from ticketry.lab.lab import Lab
    from ticketry.lab.process import keep_freed_memory
    from ticketry.lab.runners.runner import default_workers
    from ticketry.lab.store.locks import mark_in_use
    from ticketry.lab.training.segment import require_spec

    at_once = options.devices * options.threads if options.devices > 1 else 1
    by_default = max(default_workers() // max(at_once, 1), 1)
    workers = by_default if options.workers is None and not options.on else options.workers or 0
    if task is not None and not task.spec:
        if options.on not in ("", "in-process"):
            require_spec(task)
        workers = 0
    if not workers and options.on in ("", "in-process"):
        keep_freed_memory()
    threads = torch.get_num_threads()
    if options.device != "cuda":
        torch.set_num_threads(1)  # threads only slow the small work of this process
    try:
        with Lab(
            options.store,
            data=options.data,
            workers=workers,
            device=options.device,
            precision=options.precision,
            **options.lab_arguments,
            kernels=options.kernels,
            checkpoint_seconds=options.checkpoint_seconds,
            on_event=on_event,
            loggers=options.log,
            runner=options.on,
        ) as lab:
            lab.dashboards.group = ""  # searches and verifications set it
            lab.store.fetch()
            with mark_in_use(lab.store.paths):
                yield lab
            lab.store.publish()
    finally:
        torch.set_num_threads(threads)


def ticket_path(named: str | PathLike[str] | Ticket) -> Path:
    """Return the folder of a ticket, which may be given as a path or as a loaded ticket."""
    from ticketry.core.ticket.ticket import Ticket

    if isinstance(named, str | PathLike):
        return Path(named)
    how = "give its folder, or one of run.tickets"
    if not isinstance(named, Ticket):
        raise UsageError(f"a ticket is named by its folder, and not by a {type(named).__name__}: {how}")
    if named.path is None:
        raise UsageError(f"this ticket was made in memory and has no folder: ticket.save(folder), and {how}")
    return named.path
