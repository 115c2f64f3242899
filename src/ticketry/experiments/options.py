"""What commands take: where to train, which weights of a ticket, what to time and what structure to give. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ticketry.choices import check_each, check_numbers
from ticketry.core.structuring import Structuring
from ticketry.errors import UsageError, needs

if TYPE_CHECKING:
    from ticketry.core.ticket.ticket import Ticket
    from ticketry.lab.lab import Lab
    from ticketry.lab.runners.events import OnEvent
    from ticketry.lab.search_result import Seeds
    from ticketry.tasks.task import Task

USUAL_CONTROLS = ("random_reinit", "shuffled", "random_prune")
"""Controls of a search by default."""


@dataclass(frozen=True, kw_only=True)
class LabOptions:
    """Options of a lab.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> run.options.store, run.options.workers, run.options.threads
        (PosixPath('.ticketry'), 0, 1)
    """

    store: Path = Path(".ticketry")
    """Folder in which everything trained is kept; or what machines share: s3://bucket/folder, gs://, az://, file://."""
    data: Path | None = None
    """Folder in which data sets are looked for first."""
    workers: int | None = None
    """Local processes, one network each; by default one a core; 0 trains in this one."""
    on: str = ""
    """Where networks are trained: processes:N, in-process, ray[:ADDRESS], dask:ADDRESS or dask:local,
    slurm:partition=NAME,time=4:00:00 or slurm:local, or your own as package.module:object; by default processes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """cpu, cuda or auto."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """fp32, bf16 or auto: bf16 for convolutional networks on processors that have it."""
    threads: int = 1
    """CPU threads of one training, or of each of its devices; part of what decides its bits."""
    devices: int = 1
    """Devices that train each network together: processes with so many threads, or GPUs."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Of several devices: each has the whole network (ddp), or a part of every parameter (fsdp), where it does not fit
    into one."""
    norms: Literal["synchronised", "own"] = "synchronised"
    """Of several devices: batch norms see the whole batch (synchronised), or each device's its part of it (own)."""
    kernels: Literal["auto", "dense", "sparse"] = "dense"
    """dense, sparse or auto: whether networks train in kernels that compute only what a mask keeps."""
    checkpoint_seconds: float = 60.0
    """Time between checkpoints inside a training."""
    log: tuple[str, ...] = ()
    """Dashboards that are told what is trained: trackio, wandb, mlflow, tensorboard, others of `ticketry list loggers`,
    or none."""

    @property
    def together(self) -> dict[str, Any]:
        """In how many threads, and on how many devices and in which way, each network is trained."""
        return {name: getattr(self, name) for name in ("threads", "devices", "parallel", "norms")}

    def __post_init__(self) -> None:
        check_each(threads=self.threads, devices=self.devices, checkpoint_seconds=self.checkpoint_seconds)
        if self.workers is not None:
            check_each(workers=self.workers)
        if self.on and self.workers is not None:
            raise UsageError("--on says where to train, and --workers how many local processes do: give one of the two")


@dataclass(frozen=True, kw_only=True)
class SearchOptions(LabOptions):
    """Options of a search beside the settings of its method and its recipe: on the command line and in run files."""

    task: str = "digits"
    """What to train on: a name of `ticketry list tasks`, or your own as package.module:object."""
    model: str = ""
    """Another network than the task's own, see `ticketry list models`."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value: train=10000 for fewer training examples, or those of your own task."""
    target: str = ""
    """Column that is predicted, for a task table:FILE."""
    name: str = ""
    """Name of the run, for lists and figures; by default it is built from method, score and task."""
    replicates: int = 5
    """How many times, each with other seeds."""
    seed: int = 0
    """Seed of the first replicate; the next ones count up."""
    initialisation_seed: int | None = None
    """Seed of the weights, if it is to differ from seed."""
    order_seed: int | None = None
    """Seed of data order and augmentation, if it is to differ from seed."""
    mask_seed: int | None = None
    """Seed of random choices in masks, if it is to differ from seed."""
    controls: tuple[str, ...] = USUAL_CONTROLS
    """Networks that should lose, trained beside each ticket: random_reinit, shuffled, random_prune, others of
    `ticketry list controls`, or none. cyclic and cyclic_random train one mask for as long as the whole search, and are
    no part of the verdict."""
    control_densities: tuple[float, ...] = ()
    """Train controls beside tickets of these densities alone; the others are judged beside the dense network only.
    By default beside all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        seeds = ("seed", "initialisation_seed", "order_seed", "mask_seed")
        check_each(replicates=self.replicates)
        check_each(**{name: seed for name in seeds if (seed := getattr(self, name)) is not None})

    @property
    def task_options(self) -> tuple[str, ...]:
        """All options of the task, as name=value."""
        return (*self.option, f"target={self.target}") if self.target else self.option

    @property
    def seeds(self) -> Seeds:
        """The seeds of the first replicate."""
        from ticketry.lab.search_result import Seeds

        parts = (self.initialisation_seed, self.order_seed, self.mask_seed)
        return Seeds(*(self.seed if part is None else part for part in parts))


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Of a ticket's model."""

    weights: Literal["trained", "start"] = "trained"
    """trained, or start: those that the ticket's training starts from."""
    task: str = ""
    """Only for a ticket whose task cannot be made by the name that is written in it."""
    trust: bool = False
    """Use whatever task and network the ticket names: code of that name is imported and run, files are opened."""
    data: Path | None = None
    """Folder of data sets, for a task of your own that takes its example inputs from them."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What is timed against what, in the words of the command line."""

    batch: tuple[int, ...] = (1, 8, 64)
    """Examples in a call."""
    against: tuple[str, ...] = ()
    """Dense engines; by default all that are installed."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32 or bf16, of all engines."""
    threads: int = 1
    """Of each engine, each kept on a core of its own."""
    rounds: int = 15
    """How often every engine is timed, in turns."""
    cold: bool = False
    """Empty the caches before every call; otherwise calls follow each other."""
    clock: Literal["wall", "cpu"] = "wall"
    """wall, or cpu: time that the threads of this process have computed, for a machine that others use too."""
    cores: tuple[int, ...] = ()
    """Which ones, as many as threads; by default the idlest."""
    tune: bool = False
    """Time several plans of the engine at each batch, and keep the fastest."""
    densities: tuple[float, ...] = ()
    """Time the network under synthetic masks of these densities instead of the ticket's own mask."""
    pattern: str = "unstructured"
    """Of synthetic masks: unstructured, groups:ROWS (neighbours share their columns), groups:ROWS:any (rows that
    lie anywhere), groups:ROWS:pairs (neighbouring inputs are kept together), channels."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_each(threads=self.threads)
        if not self.batch or min(self.batch) < 1:
            raise UsageError(f"batches have at least one example, not {min(self.batch, default=0)}")
        if self.cores and len(self.cores) != self.threads:
            raise UsageError(f"{self.threads} threads need as many cores, not {len(self.cores)}")


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """Of the structure that a ticket is given, in the words of the command line."""

    rows: int = 16
    """Of regroup: rows of a group."""
    density: float | None = None
    """Fraction kept, of all that the new mask is of: of refill+, regroup, channels."""
    plus: float = 0.0
    """Of refill+: the share of the emptied channels that is filled back; 0 stands for 0.2."""
    method: Literal["similarity", "hypergraph", "paper", "random"] = "similarity"
    """Of regroup: similarity, hypergraph (extra hypergraph), paper or random."""
    collapse: Literal["raise", "keep"] = "raise"
    """Of regroup, where a layer's weights do not pay for one column of each group: raise (an error), or keep."""
    score: str = "l1"
    """Of refill, refill+ and channels: what ranks channels, see `ticketry list scores`; of refill also remaining."""
    coupled: str = "agree"
    """Of refill and refill+: channels that go together across layers agree, or only inner ones go."""
    spare: tuple[str, ...] = ()
    """Names or patterns of layers that stay as they are (fc3, layer1.*); of refill and channels, with all channels."""
    seed: int = 0
    """Of what is drawn at random."""
    null: bool = True
    """Of regroup: measure the coverage of masks without structure too; --no-null saves the time."""

    def __post_init__(self) -> None:
        check_numbers(self)

    def structuring(self, kind: str) -> Structuring:
        """Of that kind; `UsageError` for an option of another kind."""
        own = {field.name for field in fields(Structuring)}
        return Structuring(kind=kind, **{name: value for name, value in vars(self).items() if name in own})


@contextlib.contextmanager
def opened(options: LabOptions, task: Task | None, on_event: OnEvent | None = None) -> Iterator[Lab]:
    """The lab that the options ask for; a task that cannot be made again by name is trained in this process.

    Raises:
        MissingExtraError: without the packages that judge and draw what is found: better now than at the end.
        TaskError: for such a task where training elsewhere was asked for.
    """
    for package in ("scipy", "matplotlib"):
        needs(package, "lab", "a command that trains and judges")
    import torch

    from ticketry.lab.lab import Lab
    from ticketry.lab.runners.choice import default_workers
    from ticketry.lab.runners.process_guard import keep_freed_memory
    from ticketry.lab.store.running import marked_in_use
    from ticketry.lab.training.segment import check_task

    at_once = options.devices * options.threads if options.devices > 1 else 1
    by_default = max(default_workers() // max(at_once, 1), 1)
    workers = by_default if options.workers is None and not options.on else options.workers or 0
    if task is not None and not task.spec:
        if options.on not in ("", "in-process"):
            check_task(task.name, task.spec)
        workers = 0
    if not workers and options.on in ("", "in-process"):
        keep_freed_memory()
    threads = torch.get_num_threads()
    if options.device != "cuda":
        torch.set_num_threads(1)  # this process only directs: its small work is slowed by threads, workers are not
    try:
        with Lab(
            options.store,
            data=options.data,
            workers=workers,
            device=options.device,
            precision=options.precision,
            **options.together,
            kernels=options.kernels,
            checkpoint_seconds=options.checkpoint_seconds,
            on_event=on_event,
            loggers=options.log,
            runner=options.on,
        ) as lab:
            lab.dashboards.group = ""  # searches and verifications say what belongs together
            lab.store.link.fetch()
            with marked_in_use(lab.store.paths):
                yield lab
            lab.store.link.publish()
    finally:
        torch.set_num_threads(threads)


def path_of(named: str | PathLike[str] | Ticket) -> Path:
    """The path that an argument names: as it is, or the folder that a ticket in memory was read from.

    Raises:
        UsageError: for a ticket that has no folder, and for what names none.
    """
    from ticketry.core.ticket.ticket import Ticket

    if isinstance(named, str | PathLike):
        return Path(named)
    how = "give its folder, or one of run.tickets"
    if not isinstance(named, Ticket):
        raise UsageError(f"a ticket is named by its folder, and not by a {type(named).__name__}: {how}")
    if named.path is None:
        raise UsageError(f"this ticket was made in memory and has no folder: ticket.save(folder), and {how}")
    return named.path
