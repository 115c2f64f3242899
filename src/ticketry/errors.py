"""Exceptions of the library. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import signal

from ticketry_engine.errors import (
    CaptureError as CaptureError,
)
from ticketry_engine.errors import (
    EngineError as EngineError,
)
from ticketry_engine.errors import (
    GraphError as GraphError,
)
from ticketry_engine.errors import (
    MaskError as MaskError,
)
from ticketry_engine.errors import (
    MissingExtraError as MissingExtraError,
)
from ticketry_engine.errors import (
    ModelFileError as ModelFileError,
)
from ticketry_engine.errors import (
    ScopeError as ScopeError,
)
from ticketry_engine.errors import (
    StructureError as StructureError,
)
from ticketry_engine.errors import (
    TicketryError as TicketryError,
)
from ticketry_engine.errors import (
    UsageError as UsageError,
)
from ticketry_engine.errors import (
    needs as needs,
)


class LayerCollapseError(MaskError):
    """A density at which a whole layer would be left without weights.

    Attributes:
        what: what is wrong, without advice.
        advice: what to do about it; may be empty.
        keep: alternative advice that needs an argument of the called function: to keep a weight in each layer.
        by: that argument, as written in code.

    Examples:
        >>> error = tk.errors.LayerCollapseError("fc is empty", "spare it", keep="keep a weight")
        >>> print(error)
        fc is empty; spare it, or keep a weight (keep_at_least=1)
        >>> print(error.with_keep_argument("collapse=keep").with_prefix("level 2"))
        level 2: fc is empty; spare it, or keep a weight (collapse=keep)
        >>> tk.allocate({"0.weight": torch.zeros(4), "1.weight": torch.ones(4)}, density=0.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.LayerCollapseError: density 0.5 would leave no weight in 0.weight (layer collapse); the ...
    """

    def __init__(self, what: str, advice: str = "", *, keep: str = "", by: str = "keep_at_least=1") -> None:
        self.what, self.advice, self.keep, self.by = what, advice, keep, by
        ways = ", or ".join(way for way in (advice, keep and f"{keep} ({by})") if way)
        super().__init__(f"{what}; {ways}" if ways else what)

    def with_keep_argument(self, argument: str) -> LayerCollapseError:
        """Return the error with another argument in its advice, for a function that has a different one."""
        return LayerCollapseError(self.what, self.advice, keep=self.keep, by=argument)

    def with_prefix(self, where: str) -> LayerCollapseError:
        """Return the error with the place where it occurred in front of its message."""
        return LayerCollapseError(f"{where}: {self.what}", self.advice, keep=self.keep, by=self.by)


class ScoreError(TicketryError):
    """A score that cannot rank weights: values are missing, not finite or all 0, or the model lacks derivatives.

    Examples:
        >>> loss = lambda model, batch: model(batch).sum()
        >>> tk.prune(nn.Linear(4, 2), 0.5, score="snip", batches=[torch.zeros(1, 4)], loss=loss)
        Traceback (most recent call last):
            ...
        ticketry.errors.ScoreError: score 'snip' is 0 for every weight, so that none is better than another: ...
    """


class ControlFlowError(StructureError):
    """A module whose control flow depends on activations, so that its channels cannot be traced.

    Examples:
        >>> class Early(nn.Linear):
        ...     def forward(self, x):
        ...         y = super().forward(x)
        ...         return y if y.sum() > 0 else -y
        >>> tk.structure.channel_groups(nn.Sequential(nn.Linear(4, 4), Early(4, 2)), torch.randn(2, 4))
        Traceback (most recent call last):
            ...
        ticketry.errors.ControlFlowError: Sequential looks at its activations to decide what to do ...
    """

    def __init__(self, message: str, module: str) -> None:
        super().__init__(message)
        self.module = module
        """Name of the module; empty if it is the model itself."""


class HoldError(TicketryError):
    """A pruned weight that did not stay at zero.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> with tk.hold(model, tk.prune(model, density=0.5)):
        ...     model.weight.data = torch.ones(2, 4)
        Traceback (most recent call last):
            ...
        ticketry.errors.HoldError: 4 of 4 pruned weights of 'weight' are not 0 (up to 1): something outside the ...
    """


class TicketError(TicketryError):
    """A ticket folder that is incomplete, damaged, too new or hostile.

    Examples:
        >>> tk.Ticket.load("nowhere")
        Traceback (most recent call last):
            ...
        ticketry.errors.TicketError: there is no ticket at nowhere: a ticket is a folder with a ticket.json
    """


class TrustError(TicketryError):
    """A file that names code or a path of this machine, which is not used unless the user trusts the file.

    Examples:
        >>> try:  # a ticket from elsewhere that names code; trust=True, or --trust, lets it be imported
        ...     raise tk.errors.TrustError("the ticket names the task somebody:Task")
        ... except tk.errors.TicketryError as error:
        ...     print(error.exit_code)
        2
    """

    exit_code = 2


class OutsideError(TrustError):
    """A name or link in a file or folder that leads outside its folder.

    Examples:
        >>> issubclass(tk.errors.OutsideError, tk.errors.TrustError), tk.errors.OutsideError.exit_code
        (True, 1)
    """

    exit_code = 1


class StoreError(TicketryError):
    """The store cannot be read or written: no space, no permission, a format of another version.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("notes.txt").write_text("not a store")
        >>> tk.Lab("notes.txt")
        Traceback (most recent call last):
            ...
        ticketry.errors.StoreError: cannot read notes.txt: Not a directory
    """


class DamagedBlobError(StoreError):
    """A stored file whose contents no longer match its digest.

    Examples:
        >>> from pathlib import Path
        >>> with tk.Lab("damaged") as lab:
        ...     digest = lab.store.put_bytes(b"what was stored")
        ...     (file,) = Path("damaged").rglob(f"{digest}*")
        ...     _ = file.write_bytes(b"what a disk made of it")
        ...     lab.store.get_bytes(digest)
        Traceback (most recent call last):
            ...
        ticketry.errors.DamagedBlobError: ...
    """


class DataError(TicketryError):
    """A data set that is absent, incomplete or not what its published digest says.

    Examples:
        >>> from pathlib import Path
        >>> tk.task("mnist").load(Path("nowhere"))
        Traceback (most recent call last):
            ...
        ticketry.errors.DataError: --data nowhere: there is no such folder
    """


class TaskError(TicketryError):
    """A task or model that is unknown, or a user's own that does not keep the task's contract.

    Examples:
        >>> tk.task("digit")
        Traceback (most recent call last):
            ...
        ticketry.errors.TaskError: there is no task 'digit': choose one of digits, mnist, fashion-mnist, ...
    """


class PluginError(TicketryError):
    """A plugin of an installed package that cannot be used: an import error, a wrong kind, or an ambiguous name.

    Examples:
        >>> issubclass(tk.errors.PluginError, tk.errors.TicketryError)
        True
    """


class TrainingError(TicketryError):
    """Training that cannot continue, such as after a loss of NaN.

    Examples:
        >>> with tk.Lab() as lab:
        ...     task = tk.task("digits")
        ...     lab.train(lab.segment(task, start=0, recipe=tk.Recipe(length="20it", lr=1e6)))
        Traceback (most recent call last):
            ...
        ticketry.errors.TrainingError: the loss is nan at step 2 (epoch 0.20, learning rate 1e+06): lower the ...
    """


class NotStoredError(TicketryError):
    """A result that is not in the store, where training it is not allowed.

    Examples:
        >>> with tk.Lab("empty") as lab, lab.training_nothing():
        ...     lab.train(lab.segment(tk.task("digits"), start=0))
        Traceback (most recent call last):
            ...
        ticketry.errors.NotStoredError: 342fd56aa5179779e3ac5ed025eae90d1bb0bbb7e66402b9daa82e2078fc41c3@380: ...
    """


class InterruptedTrainingError(TicketryError):
    """Training that was stopped on request; its state is stored, and the same command resumes it.

    Args:
        message: text of the error.
        number: number of the signal that stopped it, by default that of Ctrl-C. The exit code is 128 + number.

    Examples:
        >>> tk.errors.InterruptedTrainingError("training was asked to stop", number=15).exit_code
        143
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message, number)  # the arguments of `__init__`, for pickling
        self.number = number
        self.exit_code = 128 + number

    def __str__(self) -> str:
        return str(self.args[0])


class RunnerError(TicketryError):
    """A worker process that ended without a result.

    Examples:
        >>> issubclass(tk.errors.RunnerError, tk.errors.TicketryError)
        True
    """


class CostError(TicketryError):
    """Costs or a machine's profile that are absent, damaged, or of another model, machine or number of threads.

    Examples:
        >>> issubclass(tk.errors.CostError, tk.errors.TicketryError)
        True
    """


class BudgetWarning(UserWarning):
    """A budget was met in a way that the caller may not expect: without pruning, or with hardly any weights left.

    Examples:
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     mask = tk.prune(model, time="1s", example_inputs=torch.randn(8, 16))
        >>> mask.density, any(one.category is tk.errors.BudgetWarning for one in caught)
        (1.0, True)
    """


for _shared in list(globals().values()):
    if isinstance(_shared, type) and issubclass(_shared, TicketryError):
        _shared.__module__ = __name__  # tracebacks and pickles name the module that users import them from
