"""Records on the way to their files: as they will be read back, kept where nothing new was trained."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct

from ticketry.choices import did_you_mean
from ticketry.errors import MissingExtraError, StoreError, TicketError
from ticketry.folders import is_file
from ticketry.lab.costs.ledger import Ledger
from ticketry.lab.environment import environment
from ticketry.lab.lab import Lab
from ticketry.lab.store.files import InaccessibleError, explained, is_there, read_sealed, write_sealed
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.precision import DENSE, SYNCHRONISED, Arithmetic, unusual
from ticketry.lab.training.segment import Result
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json, read
from ticketry.records.verdict import Task as TaskTold
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    import pandas

R = TypeVar("R", bound=Struct)

_log = logging.getLogger(__name__)


def as_read(record: R) -> R:
    """A record as it will be read back from its file: checked, lists in its free-form parts where there were tuples."""
    values = json.loads(json.dumps(as_json(record)))
    return read(type(record), values, what="record", advice="What was trained is in the store")


def earlier_record(file: Path, kind: type[R]) -> R | None:
    """Return the record that was written before; None if it is missing, damaged, or one of another version.

    Raises:
        InaccessibleError: if it cannot be read: it is not written over.
    """
    try:
        found = read_sealed(file)
        return None if found is None else read(kind, found, what=str(file), advice="")
    except InaccessibleError:
        raise
    except StoreError as error:
        if is_there(file):
            _log.warning("the record is written anew: %s", error)
        return None


def written(file: Path, record: R, done: Ledger, *, told_by: str) -> R:
    """The record, written to `file`; or the one that is there, if nothing was trained and its `told_by` is the same.

    What a result has cost, and when, is told by the record of when it was trained.
    """
    record = as_read(record)
    earlier = earlier_record(file, type(record))
    known = earlier and getattr(earlier, "name", "") == getattr(record, "name", "")
    if earlier and known and done.segments_trained == 0 and getattr(earlier, told_by) == getattr(record, told_by):
        return earlier
    write_sealed(file, as_json(record))
    return record


def task_told(task: Task, lab: Lab | None, *, parameters: int, prunable: int) -> TaskTold:
    """A task, as records tell it. Without a lab, in which it can be built, a network without a name is left out."""
    name = task.key().get("model") or (type(lab.model(task)).__name__ if lab else "")
    return TaskTold(task.name, str(name), task.metric, parameters, prunable)


def environment_told(lab: Lab, arithmetic: Arithmetic, trained: Iterable[Result] = ()) -> dict[str, Any]:
    """What decided the numbers of a record beside its settings, and when it was made.

    Args:
        trained: its networks, which tell what kernels they were trained in.
    """
    used = sorted({each.segment.arithmetic.kernels for each in trained})
    return {
        **environment(),
        **_arithmetic_told(lab, arithmetic),
        "workers": lab.workers,
        "on": lab.on,
        **({"kernels_used": used} if used else {}),
        "date": now(),
    }


def _arithmetic_told(lab: Lab, arithmetic: Arithmetic) -> dict[str, Any]:
    return {
        "device": arithmetic.device,
        "precision": arithmetic.precision,
        "threads_per_segment": arithmetic.threads,
        **({"devices": arithmetic.ranks, "norms": arithmetic.norms or "none"} if arithmetic.ranks > 1 else {}),
        **({"parallel": arithmetic.parallel} if arithmetic.parallel else {}),
        "kernels": lab.kernels.asked,
    }


_DECIDING = ("device", "precision", "threads_per_segment", "devices", "norms", "parallel", "kernels")


def warn_of_another(file: Path, lab: Lab, task: Task) -> None:
    """Say, before anything is trained, that a run was trained otherwise before: what has other bits now is replaced.

    Its name tells neither device nor kernels, whose words stand for what a machine has; names of older versions told
    nothing of the arithmetic.
    """
    earlier = earlier_record(file, RunRecord)
    if earlier is None or not earlier.environment:
        return
    before, here = earlier.environment, _arithmetic_told(lab, lab.arithmetic(task))
    if here["kernels"] == DENSE and before.get("kernels_used") == [DENSE]:
        before = {**before, "kernels": DENSE}  # whatever was asked for, none were used
    changed = [name for name in _DECIDING if before.get(name) != here.get(name)]
    if changed:
        was, will = (", ".join(f"{name} {one.get(name, 1)}" for name in changed) for one in (before, here))
        _log.warning(
            "the run %s is in the store, trained with %s, and is trained with %s now: what has other bits then takes"
            " the place of its tickets, record and report. To keep both, give one of them another store",
            *(earlier.name, was, will),
        )


def is_trained_in(file: Path, unusual_words: Mapping[str, Any]) -> bool:
    """Whether there is a record of a run in this arithmetic, see `precision.unusual`."""
    earlier = earlier_record(file, RunRecord)
    told = earlier.environment if earlier else {}
    if told.get("norms") == "none":  # of a network without any: whatever was asked for
        told = {**told, "norms": unusual_words.get("norms", SYNCHRONISED)}
    words = {name: told[name] for name in ("precision", "devices", "norms", "parallel") if name in told}
    return bool(words) and unusual(**words, threads=told.get("threads_per_segment", 1)) == unusual_words


def now() -> str:
    """The present, for records."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def named_run(named: Path, store: Path) -> Path | None:
    """The folder of the run that is meant, by that folder or by its name in the store; None for any other path.

    Raises:
        TicketError: for a word that is no path here, and no run's name: it tells the nearest.
    """
    if _is_record(named / "run.json"):
        return named
    name = str(named)
    if named.name != name:  # a path, whether anything is there or not
        return None
    paths = Paths(store)
    if _is_record(paths.run(name) / "run.json"):
        return paths.run(name)
    if is_there(named):
        return None
    near = did_you_mean(name, [file.parent.name for file in paths.run_records()]).rstrip()
    raise TicketError(
        f"there is no ticket {name} here, which is a folder with a ticket.json, and no run of that name in"
        f" {store}{near and f'; {near}'}"
    )


def _is_record(path: Path) -> bool:
    with explained(path, "look for"):
        return is_file(path)


def run_of(store: Path, ticket: Path) -> str:
    """The run of a store that saved the ticket, by where it is; an empty text for a ticket from elsewhere."""
    try:
        return ticket.resolve().relative_to(Paths(store).runs.resolve()).parts[0]
    except (ValueError, IndexError):
        return ""


def frame_of(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """The rows as a table of pandas; `MissingExtraError` without pandas."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtraError("pandas", "pandas", "a data frame") from None
    return pandas.DataFrame(list(rows))
