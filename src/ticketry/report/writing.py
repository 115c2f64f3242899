"""The page as a file: written whole or not at all, with a digest by which damage is known.

A page that is there already is never taken for the report: whoever made a store may have put any page into it, with a
digest that is right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from ticketry.errors import StoreError
from ticketry.files import content_of, write_atomically
from ticketry.lab.store.files import InaccessibleError, explained
from ticketry.records.evidence import EvidenceValues
from ticketry.records.run import RunValues
from ticketry.report.subject import subject_of


def write_report(
    records: RunValues | Sequence[RunValues],
    path: Path,
    *,
    evidence: Iterable[EvidenceValues] = (),
) -> Path:
    """Write the page of one run record or several to `path` and return it; whole or not at all.

    The folder is made if it is missing. The same records give the same bytes.

    Args:
        records: a run record (or the JSON values of a `run.json`), or a list of them, which are then compared.
        path: the HTML file.
        evidence: records of verifications, of stability and of what tickets save, which are shown with the runs.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed, or the file cannot be written.
    """
    subject = subject_of(records, list(evidence))
    from ticketry.report.html.page import render  # with matplotlib, which takes long to come

    return write_page(path, render(subject))


def write_page(path: Path, page: str) -> Path:
    """Write a page in the place of whatever is there; `StoreError` if it cannot be done."""
    try:
        write_atomically(path, _sealed(page.encode()))
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error.strerror}; choose another place for it") from error
    return path


_END = b"</html>\n"
_COMMENT = len("<!--  -->") + 64


def is_whole(page: Path) -> bool:
    """Return whether a page is as it was written, by whomever; `InaccessibleError` if it cannot be read."""
    try:
        with explained(page, "read"):
            data = content_of(page)
    except InaccessibleError:
        raise
    except StoreError:
        return False
    body = data[: -len(_END) - _COMMENT]
    return data == _sealed(body + _END)


def _sealed(page: bytes) -> bytes:
    """A page with the digest of all of it as a comment before its end."""
    body = page.removesuffix(_END)
    return body + b"<!-- " + hashlib.sha256(body).hexdigest().encode() + b" -->" + _END
