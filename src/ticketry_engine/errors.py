"""Defines the errors of the engine; `ticketry.errors` contains them and further errors, all with one base class.

Each message says what is wrong, where, and what to do.
"""

from __future__ import annotations

from importlib.util import find_spec


class TicketryError(Exception):
    """Base class of all errors that ticketry raises itself.

    The command line prints the message and exits with the status `exit_code`.

    Examples:
        >>> try:
        ...     tk.prune(nn.Linear(4, 2), density=1.5)
        ... except tk.errors.TicketryError as error:
        ...     print(type(error).__name__, error.exit_code)
        UsageError 2
    """

    exit_code = 1


class UsageError(TicketryError):
    """Error for an invalid argument or option, such as an unknown name or a density of 1.5.

    Examples:
        >>> tk.prune(nn.Linear(4, 2), density=1.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: a density is the fraction of weights kept, 0 < density <= 1, not 1.5: 1.5 ...
    """

    exit_code = 2


class ScopeError(UsageError):
    """Error for a scope that selects no parameter, or that names a parameter which the model does not have.

    Examples:
        >>> tk.scope(nn.ReLU())
        Traceback (most recent call last):
            ...
        ticketry.errors.ScopeError: no parameter of ReLU is in scope: it has 0 parameters, none of them the ...
    """


class MaskError(TicketryError):
    """Error for a mask that has values other than 0 and 1, or that does not fit the model.

    Examples:
        >>> tk.Mask({"weight": torch.tensor([0.0, 0.5])})
        Traceback (most recent call last):
            ...
        ticketry.errors.MaskError: mask 'weight' holds values other than 0 and 1
    """


class StructureError(TicketryError):
    """Error if channels cannot be removed exactly, or if a plan for their removal is damaged or for another model.

    Examples:
        >>> tk.structure.channels(nn.Linear(4, 2), torch.randn(2, 4), density=0.5)
        Traceback (most recent call last):
            ...
        ticketry.errors.StructureError: there are no channels that can be removed; weight: it is an output of ...
    """


class EngineError(TicketryError):
    """Error if the engine (capture, compile, export) cannot do something, such as run kernels on this processor.

    Examples:
        >>> tk.compile(nn.Linear(4, 2))
        Traceback (most recent call last):
            ...
        ticketry.errors.EngineError: to compile a model an example of its inputs is needed: tk.compile(model, ...
    """


class CaptureError(EngineError):
    """Error for a model that cannot be captured as a graph, or that does not accept the example inputs.

    Examples:
        >>> tk.compile(nn.Linear(4, 2), None, torch.randn(8, 3))
        Traceback (most recent call last):
            ...
        ticketry.errors.CaptureError: torch.export does not take Linear: RuntimeError: a and b must have same ...
    """


class GraphError(EngineError):
    """Error for an inconsistent graph: an unknown operation, an impossible shape, or a value read before it exists.

    Examples:
        >>> issubclass(tk.errors.GraphError, tk.errors.EngineError)
        True
    """


class ModelFileError(EngineError):
    """Error for a model file that is missing, damaged, malicious or of a later version, or that cannot be written.

    Examples:
        >>> tk.engine.load("nowhere.tkm")
        Traceback (most recent call last):
            ...
        ticketry.errors.ModelFileError: there is no model file nowhere.tkm
    """


class MissingExtraError(TicketryError):
    """Error for an optional dependency that is not installed.

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
    """Raise an error unless a package is installed; do not import the package.

    Args:
        package: the package's import name.
        extra: the extra of ticketry that installs the package.
        purpose: what needs the package; the message begins with this text.

    Raises:
        MissingExtraError: if the package is not installed; the message names the extra.

    Examples:
        >>> tk.errors.needs("torch", "engine", "tk.compile")
        >>> tk.errors.needs("no_such_package", "engine", "tk.compile")
        Traceback (most recent call last):
            ...
        ticketry.errors.MissingExtraError: tk.compile needs no_such_package, which is not installed: pip ...
    """
    if find_spec(package) is None:
        raise MissingExtraError(package, extra, purpose)
