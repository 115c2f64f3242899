"""One family of exceptions. Each message says what was wrong, where, and what to do about it."""

from __future__ import annotations

import signal
from importlib.util import find_spec


class TicketryError(Exception):
    """Anything that ticketry refuses or cannot do. The command line prints its message and exits with `exit_code`."""

    exit_code = 1


class UsageError(TicketryError):
    """A request that cannot be meant: an unknown option, a density of 1.5, a step written wrongly."""

    exit_code = 2


class ScopeError(UsageError):
    """A scope that names no parameter, or one that the model does not have."""


class MaskError(TicketryError):
    """A mask that is not one (values other than 0 and 1) or that does not fit the model at hand."""


class LayerCollapseError(MaskError):
    """A density at which a whole layer would be left without weights."""


class ScoreError(TicketryError):
    """A score that says nothing: not finite, 0 for every weight, or of a model that lacks the derivatives it needs."""


class StructureError(TicketryError):
    """A model whose channels cannot be followed or removed exactly, or a plan that is another model's or damaged."""


class ControlFlowError(StructureError):
    """A module that looks at its activations to decide what to run, so that its channels cannot be followed."""

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module
        """Its name; empty if it is the model itself."""


class HoldError(TicketryError):
    """A pruned weight that did not stay at zero."""


class TicketError(TicketryError):
    """A ticket folder that is incomplete, damaged, too new or hostile."""


class TrustError(TicketryError):
    """A file that names code, or a place of this machine: what a file names is data, until a user says otherwise."""

    exit_code = 2


class OutsideError(TrustError):
    """A name or a link in a file or folder that leads out of its place."""

    exit_code = 1


class StoreError(TicketryError):
    """The store cannot be read or written: no space, no permission, a format of another version."""


class DamagedBlobError(StoreError):
    """A stored file whose contents no longer match its digest."""


class DataError(TicketryError):
    """A data set that is absent, incomplete or not what its published digest says."""


class TaskError(TicketryError):
    """A task or model that is unknown, or a user's own that does not keep the task's contract."""


class PluginError(TicketryError):
    """What an installed package offers, and cannot be used: not imported, not of its kind, or another's name."""


class TrainingError(TicketryError):
    """Training that cannot go on, such as a loss that is no longer a number."""


class NotStoredError(TicketryError):
    """Something is not in the store, where nothing may be trained."""


class InterruptedTrainingError(TicketryError):
    """Training was asked to stop; its state is stored and the same command goes on from there.

    Args:
        number: of the signal that asked; by default that of Ctrl-C. The exit code is 128 + number.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message, number)  # as given, so that it can be pickled between processes
        self.number = number
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return str(self.args[0])


class RunnerError(TicketryError):
    """A worker process that ended without an answer."""


class EngineError(TicketryError):
    """Anything that the engine (capture, compile, export) cannot do, such as kernels this processor cannot run."""


class CaptureError(EngineError):
    """A model that cannot be turned into a graph, or example inputs that it does not take."""


class GraphError(EngineError):
    """A graph that contradicts itself: an unknown operation, a shape that cannot be, a value used before it is made."""


class ModelFileError(EngineError):
    """A compiled model's file that is absent, damaged, too new or hostile, or that cannot be written."""


class CostError(TicketryError):
    """Costs or a machine's profile that are absent, damaged, or of another model, machine or number of threads."""


class MissingExtraError(TicketryError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(package, extra, purpose)  # as given, so that it can be pickled between processes

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs {package}, which is not installed: pip install 'ticketry[{extra}]'"


def needs(package: str, extra: str, purpose: str) -> None:
    """See to it that a package can be imported, without importing it.

    Args:
        package: its name, as it is imported.
        extra: of ticketry, which brings the package.
        purpose: what needs it, the beginning of the message.

    Raises:
        MissingExtraError: if it is not installed, which names the extra.
    """
    if find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)
