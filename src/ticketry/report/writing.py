"""A page as a file: written atomically, with a digest that reveals damage.

An existing page is never trusted: the author of a store may have put any page into it, with a valid digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.files import content_of, write_atomically
from ticketry.lab.store.files import InaccessibleError, explain_os_errors
from ticketry.records.campaign import CampaignRecord
from ticketry.records.evidence import EvidenceValues
from ticketry.records.run import RunValues
from ticketry.report.subject import subject_of


def write_report(
    records: RunValues | Sequence[RunValues],
    path: Path,
    *,
    evidence: Iterable[EvidenceValues] = (),
) -> Path:
    """Write the page of one or several run records to `path` atomically and return it.

    Creates the folder if it is missing. The same records give the same bytes.

    Args:
        records: a run record (or the JSON values of a `run.json`), or a list of them, which are then compared.
        path: the HTML file.
        evidence: records of verifications, stability and timings, which are shown with the runs.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed, or the file cannot be written.
    """
    subject = subject_of(records, list(evidence))
    from ticketry.report.html.page import render  # imports matplotlib, which is slow

    return write_page(path, render(subject))


def write_campaign_page(record: CampaignRecord, path: Path) -> Path:
    """Write the page of a campaign; the same record gives the same bytes.

    Raises:
        StoreError: if it cannot be written.
    """
    from ticketry.report.html.page import render_campaign  # imports matplotlib, which is slow

    return write_page(path, render_campaign(record))


def write_page(path: Path, page: str) -> Path:
    """Write a page, replacing an existing file; `StoreError` if that fails."""
    try:
        write_atomically(path, _with_digest(page.encode()))
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error.strerror}; choose another place for it") from error
    return path


_END = b"</html>\n"
_COMMENT = len("<!--  -->") + 64


def is_undamaged(page: Path) -> bool:
    """Return whether a page is undamaged; `InaccessibleError` if it cannot be read."""
    try:
        with explain_os_errors(page, "read"):
            data = content_of(page)
    except InaccessibleError:
        raise
    except StoreError:
        return False
    body = data[: -len(_END) - _COMMENT]
    return data == _with_digest(body + _END)


def _with_digest(page: bytes) -> bytes:
    """Return a page with its digest as a comment before its end."""
    body = page.removesuffix(_END)
    return body + b"<!-- " + hashlib.sha256(body).hexdigest().encode() + b" -->" + _END
