"""What a lab was asked for, and what it really did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass
class Ledger:
    """What was asked for and what was really done, over the life of a lab."""

    segments_asked: int = 0
    segments_trained: int = 0
    steps_asked: int = 0
    steps_trained: int = 0
    train_seconds: float = 0.0
    other_seconds: float = 0.0
    """In workers, outside training steps: evaluation, reading and writing, waiting for locks."""
    processor_seconds: float = 0.0
    """Of workers' processors, for both. Of work on other devices what the processor had to do with it."""

    keys: list[str] = field(default_factory=list, repr=False)
    """Of every segment asked for, as often as it was."""

    @property
    def segments_distinct(self) -> int:
        """How many different segments were asked for: as many would be trained in an empty store."""
        return len(set(self.keys))

    def copy(self) -> Ledger:
        """As it is now."""
        return replace(self, keys=list(self.keys))

    def since(self, before: Ledger) -> Ledger:
        """What has come since a copy of this ledger was taken."""
        counts = {name: value - getattr(before, name) for name, value in vars(self).items() if name != "keys"}
        return Ledger(**counts, keys=self.keys[len(before.keys) :])

    def counts(self) -> dict[str, int]:
        """Segments and steps, for a record."""
        names = ("segments_asked", "segments_distinct", "segments_trained", "steps_asked", "steps_trained")
        return {name: getattr(self, name) for name in names}
