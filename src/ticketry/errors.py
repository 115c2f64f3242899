"""Exceptions of the library. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import signal

from ticketry_engine.errors import CaptureError as CaptureError
from ticketry_engine.errors import EngineError as EngineError
from ticketry_engine.errors import GraphError as GraphError
from ticketry_engine.errors import MaskError as MaskError
from ticketry_engine.errors import MissingExtraError as MissingExtraError
from ticketry_engine.errors import ModelFileError as ModelFileError
from ticketry_engine.errors import ScopeError as ScopeError
from ticketry_engine.errors import StructureError as StructureError
from ticketry_engine.errors import TicketryError as TicketryError
from ticketry_engine.errors import UsageError as UsageError
from ticketry_engine.errors import needs as needs


class LayerCollapseError(MaskError):
    """Raised if pruning would leave a layer without weights.

    Attributes:
        what: text that says what is wrong, without advice.
        advice: text that says what to do about it; may be empty.
        keep: further advice, to keep a weight in each layer; the message adds `by` to it; may be empty.
        by: the argument of the called function that keeps a weight in each layer, such as ``keep_at_least=1``.

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
        """Return a copy of the error whose message names `argument` in place of the argument `by`."""
        return LayerCollapseError(self.what, self.advice, keep=self.keep, by=argument)

    def with_prefix(self, where: str) -> LayerCollapseError:
        """Return a copy of the error whose message starts with `where`."""
        return LayerCollapseError(f"{where}: {self.what}", self.advice, keep=self.keep, by=self.by)


class ScoreError(TicketryError):
    """Raised if a score cannot rank weights.

    This is so if a value is missing or not finite, if all values are 0, or if the model has no derivatives.

    Examples:
        >>> loss = lambda model, batch: model(batch).sum()
        >>> tk.prune(nn.Linear(4, 2), 0.5, score="snip", batches=[torch.zeros(1, 4)], loss=loss)
        Traceback (most recent call last):
            ...
        ticketry.errors.ScoreError: score 'snip' is 0 for every weight, so that none is better than another: ...
    """


class ControlFlowError(StructureError):
    """Raised if the control flow of a module depends on its activations, so that channels cannot be traced.

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
        """Name of the module in the model; empty for the model itself."""


class HoldError(TicketryError):
    """Raised if pruned weights did not stay at zero.

    Examples:
        >>> model = nn.Linear(4, 2)
        >>> with tk.hold(model, tk.prune(model, density=0.5)):
        ...     model.weight.data = torch.ones(2, 4)
        Traceback (most recent call last):
            ...
        ticketry.errors.HoldError: 4 of 4 pruned weights of 'weight' are not 0 (up to 1): something outside the ...
    """


class TicketError(TicketryError):
    """Raised if a ticket folder is incomplete, damaged, malicious, or written by a newer version.

    Examples:
        >>> tk.Ticket.load("nowhere")
        Traceback (most recent call last):
            ...
        ticketry.errors.TicketError: there is no ticket at nowhere: a ticket is a folder with a ticket.json
    """


class TrustError(TicketryError):
    """Raised if a file that the user does not trust names a module to import or a path of this machine.

    Examples:
        >>> try:  # a ticket from elsewhere that names code; trust=True, or --trust, lets it be imported
        ...     raise tk.errors.TrustError("the ticket names the task somebody:Task")
        ... except tk.errors.TicketryError as error:
        ...     print(error.exit_code)
        2
    """

    exit_code = 2


class OutsideError(TrustError):
    """Raised if a name or link in a stored folder leads outside that folder.

    Examples:
        >>> issubclass(tk.errors.OutsideError, tk.errors.TrustError), tk.errors.OutsideError.exit_code
        (True, 1)
    """

    exit_code = 1


class StoreError(TicketryError):
    """Raised if the store of results cannot be read or written: no space, no permission, or another format.

    Examples:
        >>> from pathlib import Path
        >>> _ = Path("notes.txt").write_text("not a store")
        >>> tk.Lab("notes.txt")
        Traceback (most recent call last):
            ...
        ticketry.errors.StoreError: cannot read notes.txt: Not a directory
    """


class DamagedBlobError(StoreError):
    """Raised if the contents of a stored file no longer match its digest.

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
    """Raised if a data set is missing, incomplete, or does not match its published digest.

    Examples:
        >>> from pathlib import Path
        >>> tk.task("mnist").load(Path("nowhere"))
        Traceback (most recent call last):
            ...
        ticketry.errors.DataError: --data nowhere: there is no such folder
    """


class TaskError(TicketryError):
    """Raised if a task or model is unknown, or a user's own task or model lacks a required method or property.

    Examples:
        >>> tk.task("digit")
        Traceback (most recent call last):
            ...
        ticketry.errors.TaskError: there is no task 'digit': choose one of digits, mnist, fashion-mnist, ...
    """


class PluginError(TicketryError):
    """Raised if a plugin of an installed package cannot be used.

    This is so if the plugin cannot be imported, is not of the expected kind, or has an ambiguous name.

    Examples:
        >>> issubclass(tk.errors.PluginError, tk.errors.TicketryError)
        True
    """


class TrainingError(TicketryError):
    """Raised if training cannot continue, such as after a loss of NaN.

    Examples:
        >>> with tk.Lab() as lab:
        ...     task = tk.task("digits")
        ...     lab.train(lab.segment(task, start=0, recipe=tk.Recipe(length="20it", lr=1e6)))
        Traceback (most recent call last):
            ...
        ticketry.errors.TrainingError: the loss is nan at step 2 (epoch 0.20, learning rate 1e+06): lower the ...
    """


class NotStoredError(TicketryError):
    """Raised if a result is not in the store of results, and the caller does not allow training to compute it.

    Examples:
        >>> with tk.Lab("empty") as lab, lab.training_nothing():
        ...     lab.train(lab.segment(tk.task("digits"), start=0))
        Traceback (most recent call last):
            ...
        ticketry.errors.NotStoredError: 342fd56aa5179779e3ac5ed025eae90d1bb0bbb7e66402b9daa82e2078fc41c3@380: ...
    """


class InterruptedTrainingError(TicketryError):
    """Raised if training was stopped on request; the same command resumes from the stored state.

    Args:
        message: text of the error.
        number: number of the signal that stopped training, by default of Ctrl-C; the exit code is 128 + number.

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
    """Raised if a worker process of a search ended without a result.

    Examples:
        >>> issubclass(tk.errors.RunnerError, tk.errors.TicketryError)
        True
    """


class CostError(TicketryError):
    """Raised if measured costs or a machine profile cannot be used.

    This is so if they are missing or damaged, or if they belong to another model, machine or number of threads.

    Examples:
        >>> issubclass(tk.errors.CostError, tk.errors.TicketryError)
        True
    """


class BudgetWarning(UserWarning):
    """Warns that a budget was met without any pruning, or with hardly any weights left.

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
