"""The metric by which networks are compared, as tasks define it and records store it. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from ticketry.choices import check_choice

SCALES = ("linear", "log")
Summary = Annotated[Literal["mean", "iqm"], Meta(extra={"problem": "neither mean nor iqm"})]


@dataclass(frozen=True, init=False)
class Metric:
    """The metric by which networks are compared; by default accuracy in %.

    Raises:
        UsageError: if `scale` or `summary` is unknown.

    Examples:
        >>> metric = tk.Metric("perplexity", unit="", higher_is_better=False)
        >>> metric.sign
        -1
        >>> tk.Metric("bits_per_character").words
        'bits per character'
    """

    name: str
    """Key of the metric in a task's results; underscores stand for spaces."""
    unit: str
    """Unit written after the value in tables: % or empty."""
    higher_is_better: bool
    """Whether higher values are better; False for a loss or an error."""
    scale: str = "linear"
    """Scale of the axis in figures: linear, or log for metrics that are compared by ratios."""
    summary: Summary = "mean"
    """Summary over replicates: mean, or iqm (interquartile mean with a bootstrap interval) for metrics with outliers
    among seeds."""

    def __init__(
        self,
        name: str = "accuracy",
        unit: str = "%",
        higher_is_better: bool = True,
        scale: str = "linear",
        summary: Summary = "mean",
    ) -> None:
        check_choice("metric: scale", scale, SCALES)
        check_choice("metric: summary", summary, get_args(get_args(Summary)[0]))
        for field, value in zip(self.__dataclass_fields__, (name, unit, higher_is_better, scale, summary), strict=True):
            object.__setattr__(self, field, value)

    @property
    def words(self) -> str:
        """Name as written in text, with spaces instead of underscores: bits per character."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """Factor that makes higher values better: 1 if higher is better, else -1."""
        return 1 if self.higher_is_better else -1
