"""The page as a file: written whole or not at all, and left where it shows the same records already."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ticketry.errors import StoreError, needs
from ticketry.files import content_of, write_atomically
from ticketry.records.evidence import EvidenceValues
from ticketry.records.run import RunValues
from ticketry.records.schema import as_json
from ticketry.report.subject import subject_of


def write_report(
    records: RunValues | Sequence[RunValues],
    path: Path,
    *,
    evidence: Iterable[EvidenceValues] = (),
) -> Path:
    """Write the page of one run record or several to `path` and return it; whole or not at all.

    The folder is made if it is missing. The same records give the same bytes; a page that shows them already is left.

    Args:
        records: a run record (or the JSON values of a `run.json`), or a list of them, which are then compared.
        path: the HTML file.
        evidence: records of verifications, of stability and of what tickets save, which are shown with the runs.

    Raises:
        UsageError: if there is no run record, or the same run twice.
        StoreError: if a record is malformed, or the file cannot be written.
    """
    evidence = list(evidence)
    subject, made_of = subject_of(records, evidence), identity_of(records, evidence)

    def drawn() -> str:
        from ticketry.report.html.page import render  # with matplotlib, which takes long to come

        return render(subject, made_of)

    return write_page(path, made_of, drawn)


def write_page(path: Path, made_of: str, draw: Callable[[], str]) -> Path:
    """Write a page that `draw` makes, unless there is one of the same identity; `StoreError` if it cannot be done."""
    if has(path, made_of):
        return path
    try:
        write_atomically(path, _sealed(draw().encode()))
    except OSError as error:
        raise StoreError(f"cannot write the report {path}: {error.strerror}; choose another place for it") from error
    return path


# -- the same page need not be drawn again, which takes a second: what it is made of stands in it as a digest --------

_HEAD = 4096
"""Bytes of a page within which its identity stands."""
_END = b"</html>\n"
_COMMENT = len("<!--  -->") + 64


def identity_of(records: Any, evidence: Sequence[EvidenceValues] = ()) -> str:
    """SHA-256 (hex) over the records and the code that draws them."""
    made_of = json.dumps([records, evidence], sort_keys=True, default=as_json)
    return hashlib.sha256(f"{_code()}{made_of}".encode(errors="surrogatepass")).hexdigest()


def has(page: Path, found: str) -> bool:
    """Whether there is a whole page of this identity."""
    try:
        data = content_of(page)
    except OSError:
        return False
    return f'content="{found}"'.encode() in data[:_HEAD] and _is_sealed(data)


def is_whole(page: Path) -> bool:
    """Whether a page is as it was written."""
    try:
        return _is_sealed(content_of(page))
    except OSError:
        return False


def _sealed(page: bytes) -> bytes:
    """A page with the digest of all of it as a comment before its end."""
    body = page.removesuffix(_END)
    return body + b"<!-- " + hashlib.sha256(body).hexdigest().encode() + b" -->" + _END


def _is_sealed(data: bytes) -> bool:
    body = data[: -len(_END) - _COMMENT]
    return data == _sealed(body + _END)


@cache
def _code() -> str:
    """Digest of this package's files and the versions of what draws its figures and fills its templates."""
    needs("matplotlib", "lab", "a report")
    folder = Path(__file__).parent
    digest = hashlib.sha256(f"{version('matplotlib')} {version('jinja2')}".encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".html", ".js", ".css"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
