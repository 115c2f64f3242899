"""Write records into a store and find them again; describe task and environment for records."""

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
from ticketry.files import is_file
from ticketry.lab.costs.ledger import Ledger
from ticketry.lab.lab import Lab
from ticketry.lab.process import describe_machine
from ticketry.lab.store.files import (
    InaccessibleError,
    explain_os_errors,
    path_exists,
    read_with_digest,
    write_with_digest,
)
from ticketry.lab.store.paths import Paths
from ticketry.lab.training.precision import DENSE, SYNCHRONISED, Arithmetic, non_default_choices
from ticketry.lab.training.segment import Result
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json, decode_record
from ticketry.records.verdict import Task as TaskTold
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    import pandas

R = TypeVar("R", bound=Struct)

_log = logging.getLogger(__name__)


def normalise_record(record: R) -> R:
    """Return a validated copy of `record` with JSON values only, as if it had been written to a file and read again."""
    values = json.loads(json.dumps(as_json(record)))
    return decode_record(type(record), values, what="record", advice="What was trained is in the store")


def read_earlier_record(file: Path, kind: type[R]) -> R | None:
    """Return the record stored in `file`; None if the record is missing, damaged, or of another version.

    Raise `InaccessibleError` if the file exists but cannot be opened, since callers must not overwrite this file.
    """
    try:
        found = read_with_digest(file)
        return None if found is None else decode_record(kind, found, what=str(file), advice="")
    except InaccessibleError:
        raise
    except StoreError as error:
        if path_exists(file):
            _log.warning("the record is written anew: %s", error)
        return None


def write_record(file: Path, record: R, done: Ledger, *, unless_same: str) -> R:
    """Write `record` to `file` and return it; if nothing was trained, keep and return the earlier record in `file`.

    The earlier record has the cost and date of the training. It is kept only if the field whose name is `unless_same`
    has the same value in both records.
    """
    record = normalise_record(record)
    earlier = read_earlier_record(file, type(record))
    known = earlier and getattr(earlier, "name", "") == getattr(record, "name", "")
    if (
        earlier
        and known
        and done.segments_trained == 0
        and getattr(earlier, unless_same) == getattr(record, unless_same)
    ):
        return earlier
    write_with_digest(file, as_json(record))
    return record


def describe_task(task: Task, lab: Lab | None, *, parameters: int, prunable: int) -> TaskTold:
    """Return the description of a task for records; with a `lab`, an unnamed network gets the name of its class."""
    name = task.key().get("model") or (type(lab.model(task)).__name__ if lab else "")
    return TaskTold(task.name, str(name), task.metric, parameters, prunable)


def describe_environment(lab: Lab, arithmetic: Arithmetic, trained: Iterable[Result] = ()) -> dict[str, Any]:
    """Return the date, machine, software and arithmetic of a training, which also affect the numbers in a record."""
    used = sorted({each.segment.arithmetic.kernels for each in trained})
    return {
        **describe_machine(),
        **_describe_arithmetic(lab, arithmetic),
        "workers": lab.workers,
        "on": lab.on,
        **({"kernels_used": used} if used else {}),
        "date": current_time(),
    }


def _describe_arithmetic(lab: Lab, arithmetic: Arithmetic) -> dict[str, Any]:
    return {
        "device": arithmetic.device,
        "precision": arithmetic.precision,
        "threads_per_segment": arithmetic.threads,
        **({"devices": arithmetic.ranks, "norms": arithmetic.norms or "none"} if arithmetic.ranks > 1 else {}),
        **({"parallel": arithmetic.parallel} if arithmetic.parallel else {}),
        "kernels": lab.kernels.asked,
    }


_DECIDING = ("device", "precision", "threads_per_segment", "devices", "norms", "parallel", "kernels")


def warn_of_other_arithmetic(file: Path, lab: Lab, task: Task) -> None:
    """Warn that results will be replaced if the run in `file` used another device, precision or kernels."""
    earlier = read_earlier_record(file, RunRecord)
    if earlier is None or not earlier.environment:
        return
    before, here = earlier.environment, _describe_arithmetic(lab, lab.arithmetic(task))
    if here["kernels"] == DENSE and before.get("kernels_used") == [DENSE]:
        before = {**before, "kernels": DENSE}  # no others were used
    changed = [name for name in _DECIDING if before.get(name) != here.get(name)]
    if changed:
        was, will = (", ".join(f"{name} {one.get(name, 1)}" for name in changed) for one in (before, here))
        _log.warning(
            "the run %s in the store was trained with %s, and is now trained with %s: results with other bits replace"
            " its tickets, record and report. To keep both, give one of them another store",
            *(earlier.name, was, will),
        )


def has_arithmetic(file: Path, choices: Mapping[str, Any]) -> bool:
    """Return whether the run recorded in `file` was trained with exactly these non-default choices of arithmetic."""
    earlier = read_earlier_record(file, RunRecord)
    found = earlier.environment if earlier else {}
    if found.get("norms") == "none":  # of a network without norms, for which the option has no effect
        found = {**found, "norms": choices.get("norms", SYNCHRONISED)}
    words = {name: found[name] for name in ("precision", "devices", "norms", "parallel") if name in found}
    return bool(words) and non_default_choices(**words, threads=found.get("threads_per_segment", 1)) == choices


def current_time() -> str:
    """Return the current date and time (UTC) as text for records."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def find_run_folder(named: Path, store: Path) -> Path | None:
    """Return the folder of the run `named`, which is a path or a name in the store; None if there is no such run."""
    if _is_record(named / "run.json"):
        return named
    name = str(named)
    if named.name != name:  # a path
        return None
    paths = Paths(store)
    if _is_record(paths.run(name) / "run.json"):
        return paths.run(name)
    if path_exists(named):
        return None
    near = did_you_mean(name, [file.parent.name for file in paths.run_records()]).rstrip()
    raise TicketError(
        f"there is no ticket {name} here, which is a folder with a ticket.json, and no run of that name in"
        f" {store}{near and f'; {near}'}"
    )


def _is_record(path: Path) -> bool:
    with explain_os_errors(path, "look for"):
        return is_file(path)


def find_run_name(store: Path, ticket: Path) -> str:
    """Return the name of the run whose folder contains a ticket; empty if the ticket is outside the store."""
    try:
        return ticket.resolve().relative_to(Paths(store).runs.resolve()).parts[0]
    except (ValueError, IndexError):
        return ""


def to_frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return `rows` as a pandas table; raise `MissingExtraError` if pandas is missing."""
    try:
        import pandas
    except ModuleNotFoundError:
        raise MissingExtraError("pandas", "pandas", "a data frame") from None
    return pandas.DataFrame(list(rows))
