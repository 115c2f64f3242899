"""The errors of the engine. ticketry offers them as `ticketry.errors`, beside its own, under one base.

Each message says what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from importlib.util import find_spec


class TicketryError(Exception):
    """Anything that ticketry refuses or cannot do. The command line prints its message and exits with `exit_code`.

    Examples:
        >>> try:
        ...     tk.prune(nn.Linear(4, 2), density=1.5)
        ... except tk.errors.TicketryError as error:
        ...     print(type(error).__name__, error.exit_code)
        UsageError 2
    """

    exit_code = 1


class UsageError(TicketryError):
    """A request that cannot be meant: an unknown option, a density of 1.5, a step written wrongly.

    Examples:
        >>> tk.prune(nn.Linear(4, 2), density=1.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: a density is the fraction of weights kept, 0 < density <= 1, not 1.5: 1.5 ...
    """

    exit_code = 2


class ScopeError(UsageError):
    """A scope that names no parameter, or one that the model does not have.

    Examples:
        >>> tk.scope(nn.ReLU())
        Traceback (most recent call last):
            ...
        ticketry.errors.ScopeError: no parameter of ReLU is in scope: it has 0 parameters, none of them the ...
    """


class MaskError(TicketryError):
    """A mask that is not one (values other than 0 and 1) or that does not fit the model at hand.

    Examples:
        >>> tk.Mask({"weight": torch.tensor([0.0, 0.5])})
        Traceback (most recent call last):
            ...
        ticketry.errors.MaskError: mask 'weight' holds values other than 0 and 1
    """


class StructureError(TicketryError):
    """A model whose channels cannot be followed or removed exactly, or a plan that is another model's or damaged.

    Examples:
        >>> tk.structure.channels(nn.Linear(4, 2), torch.randn(2, 4), density=0.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.StructureError: there are no channels that can be removed; weight: it is an output of ...
    """


class EngineError(TicketryError):
    """Anything that the engine (capture, compile, export) cannot do, such as kernels this processor cannot run.

    Examples:
        >>> tk.compile(nn.Linear(4, 2))
        Traceback (most recent call last):
            ...
        ticketry.errors.EngineError: to compile a model an example of its inputs is needed: tk.compile(model, ...
    """


class CaptureError(EngineError):
    """A model that cannot be turned into a graph, or example inputs that it does not take.

    Examples:
        >>> tk.compile(nn.Linear(4, 2), None, torch.randn(8, 3))
        Traceback (most recent call last):
            ...
        ticketry.errors.CaptureError: torch.export does not take Linear: RuntimeError: a and b must have same ...
    """


class GraphError(EngineError):
    """A graph that contradicts itself: an unknown operation, a shape that cannot be, a value used before it is made.

    Examples:
        >>> issubclass(tk.errors.GraphError, tk.errors.EngineError)
        True
    """


class ModelFileError(EngineError):
    """A compiled model's file that is absent, damaged, too new or hostile, or that cannot be written.

    Examples:
        >>> tk.engine.load("nowhere.tkm")
        Traceback (most recent call last):
            ...
        ticketry.errors.ModelFileError: there is no model file nowhere.tkm
    """


class MissingExtraError(TicketryError):
    """An optional dependency that is not installed.

    Examples:
        >>> tk.errors.needs("no_such_package", "engine", "tk.compile")
        Traceback (most recent call last):
            ...
        ticketry.errors.MissingExtraError: tk.compile needs no_such_package, which is not installed: pip ...
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(package, extra, purpose)  # as given, so that it can be pickled between processes

    def __str__(self) -> str:
        package, extra, purpose = self.args
        return f"{purpose} needs {package}, which is not installed: pip install 'ticketry[{extra}]'"


def needs(package: str, extra: str, purpose: str) -> None:
    """Check that a package can be imported, without importing it.

    Args:
        package: the package's import name.
        extra: the extra of ticketry that installs it.
        purpose: what needs it; begins the message.

    Raises:
        MissingExtraError: if it is not installed, which names the extra.

    Examples:
        >>> tk.errors.needs("torch", "engine", "tk.compile")
        >>> tk.errors.needs("no_such_package", "engine", "tk.compile")
        Traceback (most recent call last):
            ...
        ticketry.errors.MissingExtraError: tk.compile needs no_such_package, which is not installed: pip ...
    """
    if find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)
