"""Look up stored segments by the key in a row of a record."""

from __future__ import annotations

import ticketry as tk
from ticketry.lab.training.segment import Segment


def stored_segments(lab: tk.Lab, task: tk.Task, *keys: str) -> list[Segment]:
    """The segments of these keys that were trained, as if all were of this task: some controls are other networks."""
    parts = [key.partition("@") for key in keys]
    found = [lab.store.result(trajectory, int(last)) for trajectory, _, last in parts]
    told = [{name: value for name, value in one["segment"].items() if name != "blobs"} for one in found if one]
    return [Segment.from_description({**one, "task": dict(task.key())}, task) for one in told]
