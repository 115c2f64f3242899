"""Looking after what a store keeps besides trainings: the records of runs and of evidence, tickets and pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import StoreError, TicketError
from ticketry.files import content_of
from ticketry.lab.store.files import InaccessibleError, explained, is_as_written, read_sealed
from ticketry.lab.store.store import Store
from ticketry.records.campaign import read_campaign_record
from ticketry.records.evidence import read_evidence
from ticketry.records.run import RunRecord, read_run
from ticketry.report.writing import is_whole


def damaged(store: Store) -> Iterator[Path]:
    """Yield records and run files that are not what was written, tickets with such a file, and pages.

    Raises:
        InaccessibleError: if one cannot be read.
    """
    for path in store.paths.run_records():
        record = _run(path)
        if record is None:
            yield path
        elif not _has_config(path.with_name("run.toml"), record.config):
            yield path.with_name("run.toml")
    for path in store.paths.evidence_records():
        if not _is_evidence(path):
            yield path
    for path in store.paths.campaign_records():
        if not _is_campaign(path):
            yield path
    for path in store.paths.tickets():
        if not path.name.startswith(".") and not _is_ticket(path):
            yield path
    yield from (path for path in store.paths.pages() if not is_whole(path))


def _run(path: Path) -> RunRecord | None:
    try:
        values = read_sealed(path)
        record = read_run(values, str(path))
        return record if record.name == path.parent.name and is_as_written(path) else None
    except InaccessibleError:
        raise
    except StoreError:
        return None


def _has_config(file: Path, config: str) -> bool:
    """Whether the run file is the one that the record has; also if there is none, which the next search makes."""
    try:
        with explained(file, "read"):
            return content_of(file) == config.encode()
    except InaccessibleError:
        raise
    except StoreError as error:
        return isinstance(error.__cause__, FileNotFoundError)


def _is_evidence(path: Path) -> bool:
    try:
        read_evidence(read_sealed(path) or {})
        return is_as_written(path)
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_campaign(path: Path) -> bool:
    try:
        record = read_campaign_record(read_sealed(path) or {})
        return record.name == path.stem and is_as_written(path)
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_ticket(path: Path) -> bool:
    try:
        return Ticket.load(path).is_as_written(path)
    except TicketError as error:
        if isinstance(error.__cause__, OSError):
            with explained(path, "read"):
                raise error.__cause__ from None
        return False
