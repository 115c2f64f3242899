"""Write pages to files atomically, with a digest that reveals damage.

The digest does not make a page trustworthy: a process that can write into a store can write a page with a valid digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.files import read_bytes, write_atomically
from ticketry.lab.store.files import InaccessibleError, explain_os_errors
from ticketry.records.campaign import CampaignRecord
from ticketry.records.evidence import EvidenceValues
from ticketry.records.run import RunValues
from ticketry.report.subject import read_report_subject


def write_report(
    records: RunValues | Sequence[RunValues], path: Path, *, evidence: Iterable[EvidenceValues] = ()
) -> Path:
    """Write the page of one or several run records to the file `path` atomically, and return the path."""
    subject = read_report_subject(records, list(evidence))
    from ticketry.report.page import render_report  # imports matplotlib, which is slow

    return write_page(path, render_report(subject))


def write_campaign_page(record: CampaignRecord, path: Path) -> Path:
    """Write the page of a campaign and return its path; the same record gives the same bytes."""
    from ticketry.report.page import render_campaign  # imports matplotlib, which is slow

    return write_page(path, render_campaign(record))


def write_page(path: Path, page: str) -> Path:
    """Write a page with its digest to `path`, which may exist, and return the path; raise `StoreError` on failure."""
    try:
        write_atomically(path, _append_digest_comment(page.encode()))
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error.strerror}; choose another place for it") from error
    return path


_END = b"</html>\n"
_COMMENT = len("<!--  -->") + 64


def is_undamaged(page: Path) -> bool:
    """Return whether a page matches its digest; raise `InaccessibleError` if the page cannot be read."""
    try:
        with explain_os_errors(page, "read"):
            data = read_bytes(page)
    except InaccessibleError:
        raise
    except StoreError:
        return False
    body = data[: -len(_END) - _COMMENT]
    return data == _append_digest_comment(body + _END)


def _append_digest_comment(page: bytes) -> bytes:
    """Return a page with its SHA-256 as an HTML comment before its end."""
    body = page.removesuffix(_END)
    return body + b"<!-- " + hashlib.sha256(body).hexdigest().encode() + b" -->" + _END
