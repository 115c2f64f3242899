"""Write a store's JSON files atomically and with a digest of their contents, check entries, and explain errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ticketry import files
from ticketry.errors import StoreError
from ticketry.files import exists, parse_json

LARGEST_JSON = 1 << 30
"""Maximum bytes of a JSON file that is read."""
REPAIR = "run `ticketry store check --repair`: it sets damaged files aside, and the next run makes them again"
_SEAL = "sha256"
"""The entry of a record that contains the digest of all other entries."""
_LONGEST_SHOWN = 500
"""Maximum characters of a path in an error message."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM)
_ABOUT_THE_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EFBIG, errno.EINVAL, errno.ELOOP)
"""Error numbers that say what is at a path: nothing, a folder, a pipe, a link, or too large a file. After any other
error the content of the path is unknown."""
_READING = ("read", "list", "compare", "look for")


class InaccessibleError(StoreError):
    """Raised if the system does not let ticketry read or write a file or folder, whose contents are then unknown."""


@contextlib.contextmanager
def explain_os_errors(path: Path, doing: str) -> Iterator[None]:
    """Within a ``with`` block, turn an `OSError` into a `StoreError` whose message says what to do.

    Args:
        doing: what the block does, a verb such as "read" or "write".

    Raises:
        InaccessibleError: if the error leaves unknown what is at the path.
    """
    try:
        yield
    except OSError as error:
        named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else path
        shown = str(named if path in named.parents and not named.name.endswith(".tmp") else path)
        shown = shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"
        kind = StoreError if error.errno in _ABOUT_THE_FILE else InaccessibleError
        raise kind(f"cannot {doing} {shown}: {_explain_error_number(error, doing)}") from error


def _explain_error_number(error: OSError, doing: str) -> str:
    reads = doing.startswith(_READING)
    if error.errno in _NO_SPACE:
        return "no space is left there: free some and run the same command again, it continues where it stopped"
    if error.errno in _NO_PERMISSION and reads:
        return "it may not be read: change its permissions, or run the command as the user who owns it"
    if error.errno in _NO_PERMISSION:
        return "it may not be written: choose another folder with --store, or change its permissions"
    if error.errno == errno.EROFS:
        return "it may not be written, since the file system is read-only: choose another folder with --store"
    if error.errno == errno.EFBIG and reads:
        return f"{error.strerror}: ticketry wrote no such file; `ticketry store check --repair` sets it aside"
    if error.errno == errno.EFBIG:
        return "it is larger than the file system or a limit (ulimit -f) allows: choose another folder with --store"
    return files.describe_os_error(error)


def path_exists(path: Path) -> bool:
    """Return whether a path exists; `StoreError` if the system denies the answer."""
    with explain_os_errors(path, "look for"):
        return exists(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk and rename it; raise `StoreError` if that fails."""
    with explain_os_errors(path, "write"):
        files.write_atomically(path, data, durable=True)


# -- JSON --------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: object) -> None:
    write_atomically(path, _to_json_bytes(value))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if the file is missing; `StoreError` if it is damaged."""
    try:
        with explain_os_errors(path, "read"):
            data = files.read_bytes(path, most=LARGEST_JSON)
    except StoreError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)) and not path.is_symlink():
            return None
        raise
    return _parse_json_or_raise(data, str(path))


def has_canonical_bytes(path: Path) -> bool:
    """Return whether a JSON file has exactly the bytes that `write_json` would write for its values."""
    with explain_os_errors(path, "read"):
        data = files.read_bytes(path, most=LARGEST_JSON)
    return data == _to_json_bytes(parse_json(data))


def _to_json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _parse_json_or_raise(data: bytes, what: str) -> dict[str, Any]:
    value = _parse_json_object(data)
    if value is None:
        raise StoreError(f"{what} is damaged (not a JSON object): run `ticketry store check --repair`")
    return value


def _parse_json_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object that `data` contains; None if `data` is invalid or has half of a surrogate pair."""
    try:
        value = parse_json(data)
        if b"\\ud" in data.lower():  # half of a pair could not be written or compared
            json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


# -- sealed records ----------------------------------------------------------------------------------------------------


def digest_of(value: object) -> str:
    """Return the SHA-256 (hex) of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def bytes_with_digest(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON bytes, with an entry that contains the digest of all other entries."""
    return _to_json_bytes({**record, _SEAL: digest_of(record)})


def write_with_digest(path: Path, record: Mapping[str, Any]) -> None:
    write_atomically(path, bytes_with_digest(record))


def read_with_digest(path: Path) -> dict[str, Any] | None:
    """Return what `write_with_digest` wrote; None if it is missing. Raise `StoreError` if its digest is wrong."""
    record = read_json(path)
    return record if record is None else _check_and_remove_digest(record, str(path))


def parse_with_digest(data: bytes, what: str) -> dict[str, Any]:
    """Return the record from bytes that `bytes_with_digest` returned; `what` names the bytes in error messages."""
    return _check_and_remove_digest(_parse_json_or_raise(data, what), what)


def _check_and_remove_digest(record: dict[str, Any], what: str) -> dict[str, Any]:
    seal = record.pop(_SEAL, None)
    if seal is None:
        raise StoreError(f"{what} has no digest of its contents: {REPAIR}")
    if seal != digest_of(record):
        raise StoreError(f"{what} is damaged: its contents do not match its digest; {REPAIR}")
    return record


def parse_canonical_record(data: bytes, what: str) -> dict[str, Any]:
    """Return the record in `data`, which must be exactly the bytes that `bytes_with_digest` returns for the record."""
    record = _parse_json_object(data)
    if record is None or data != _to_json_bytes(record) or record.pop(_SEAL, None) != digest_of(record):
        raise StoreError(f"{what} is damaged or forged: it is not a record with its digest")
    return record


# -- schemas of results and stored values ------------------------------------------------------------------------------


Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Positive = Annotated[int, Meta(ge=1, le=2**62)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class _Cost(msgspec.Struct):
    train_seconds: float


class Trained(msgspec.Struct):
    """Schema of the entries that every stored result must have; results may have further entries."""

    step: _Count
    model: Digest
    training: Digest | None
    variants: dict[str, Digest]
    metrics: dict[str, dict[str, float | None]] | None
    cost: _Cost


class _Flops(msgspec.Struct):
    """Schema of stored FLOPs: of a network (`dense`, `products`), or of a score (`first`, `others`, `fixed`)."""

    dense: float | None = None
    products: list[tuple[list[str], float]] = []
    examples: _Positive | None = None
    first: float | None = None
    others: float | None = None
    fixed: float | None = None

    def __post_init__(self) -> None:
        if self.dense is None and None in (self.first, self.others, self.fixed):
            raise ValueError("it has no FLOPs")


class _Kernels(msgspec.Struct):
    """Schema of the share of MACs that sparse kernels skip, or of the reason why a network cannot use them."""

    left_out: _Share | None = None
    inside: _Share | None = None
    by_sixteen: _Share | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        if (self.left_out is None) == (self.why is None):
            raise ValueError("it has both a share and a reason, or neither")


def _schema_of_stored_value(**fields: Any) -> Any:
    return msgspec.defstruct("Memo", list(fields.items()))


MEMOS: dict[str, Any] = {
    "masks": _schema_of_stored_value(mask=str),
    "plans": _schema_of_stored_value(plan=str, mask=str),
    "sizes": _schema_of_stored_value(train=_Positive, validation=_Count, test=_Count),
    "removed": _schema_of_stored_value(shares=dict[str, _Share]),
    "distances": _schema_of_stored_value(distance=float),
    "barriers": _schema_of_stored_value(errors=Annotated[list[float], Meta(min_length=2)], recalibrated=_Count),
    "coverage": _schema_of_stored_value(layers=list[dict[str, Any]]),
    "memory": _schema_of_stored_value(bytes=_Count),
    "flops": _Flops,
    # Weights that a bundle left out, and their training.
    "left-out": _schema_of_stored_value(trajectory=Digest | None, step=_Count),
    "again": _schema_of_stored_value(model=Digest),  # digest of the weights that were trained again
    "kernels": _Kernels,
    # Cost of one weight of a layer, number of weights.
    "prices": _schema_of_stored_value(layers=dict[str, tuple[_Positive, _Count]]),
}
"""Schema of each kind of stored value; values of other kinds are not checked."""


def describe_mismatch(schema: Any, value: object) -> str:
    """Return why a value does not match a schema; empty if it does."""
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        return str(error)
    return ""
