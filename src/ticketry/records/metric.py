"""The number by which networks are compared: what a task says of it, and its record. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from msgspec import Meta

from ticketry.choices import check_choice

SCALES = ("linear", "log")
Over = Annotated[Literal["mean", "iqm"], Meta(extra={"problem": "neither mean nor iqm"})]


@dataclass(frozen=True, init=False)
class Metric:
    """The number by which networks are compared: accuracy in % if nothing else is said. A record has to say it.

    Raises:
        UsageError: for a scale or a summary that is none.

    Examples:
        >>> metric = tk.Metric("perplexity", unit="", higher_is_better=False)
        >>> metric.sign
        -1
        >>> tk.Metric("bits_per_character").words
        'bits per character'
    """

    name: str
    """As tasks give it; an underscore stands for a space."""
    unit: str
    """What follows the number in tables: %, or nothing."""
    higher_is_better: bool
    """False for a loss or an error."""
    scale: str = "linear"
    """Of the axis in figures: linear, or log for what is compared by ratios."""
    summary: Over = "mean"
    """Over replicates: mean, or iqm (interquartile mean with a bootstrap interval) for what differs widely between
    seeds."""

    def __init__(
        self,
        name: str = "accuracy",
        unit: str = "%",
        higher_is_better: bool = True,
        scale: str = "linear",
        summary: Over = "mean",
    ) -> None:
        check_choice("metric: scale", scale, SCALES)
        check_choice("metric: summary", summary, get_args(get_args(Over)[0]))
        for field, value in zip(self.__dataclass_fields__, (name, unit, higher_is_better, scale, summary), strict=True):
            object.__setattr__(self, field, value)

    @property
    def words(self) -> str:
        """Its name as it is read: bits per character."""
        return self.name.replace("_", " ")

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.higher_is_better else -1
