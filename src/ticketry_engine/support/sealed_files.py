"""Protects safetensors files by a digest, so that a damaged bit is noticed when the file is read.

The digest is the first entry of the file's metadata: the SHA-256 of the file without this entry. Other loaders ignore
the entry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ticketry_engine.support.files import parse_json

_HEAD = b'{"__metadata__":{'
_KEY = "sha256-all"  # its entry has 80 bytes: what follows keeps its place in eights
_BEGIN = f'"{_KEY}":"'.encode()
_END = b'",'
_DIGITS = 64
_ENTRY = len(_BEGIN) + _DIGITS + len(_END)


def sealed(data: bytes) -> bytes:
    """Return the bytes of a safetensors file with a digest of `data` added to the metadata; the file has metadata."""
    length, rest = int.from_bytes(data[:8], "little"), data[8:]
    if not rest.startswith(_HEAD):
        raise ValueError("only a file with metadata can be sealed")
    entry = _BEGIN + hashlib.sha256(data).hexdigest().encode() + _END
    return (length + _ENTRY).to_bytes(8, "little") + _HEAD + entry + rest[len(_HEAD) :]


def unsealed(data: bytes, *, required: bool = True) -> bytes:
    """Return the bytes that were given to `sealed`.

    Args:
        data: the bytes of a sealed file.
        required: whether to reject a file without a digest; False: return its bytes unchanged.

    Raises:
        ValueError: if the content does not match the digest, or a required digest is missing.
    """
    start = 8 + len(_HEAD)
    if not data[8:].startswith(_HEAD + _BEGIN):
        if required or len(read_metadata(data)) != 1:  # one entry is all that our files have beside it
            raise ValueError("it has no digest of its contents, or a damaged one: make it anew")
        return data
    at = start + len(_BEGIN)
    length = int.from_bytes(data[:8], "little") - _ENTRY
    if length < 0 or data[at + _DIGITS : start + _ENTRY] != _END:
        raise ValueError("the digest of its contents is damaged: fetch it or make it anew")
    inner = length.to_bytes(8, "little") + _HEAD + data[start + _ENTRY :]
    if hashlib.sha256(inner).hexdigest().encode() != data[at : at + _DIGITS]:
        raise ValueError("it is damaged: its contents do not match its digest; fetch it or make it anew")
    return inner


def read_metadata(data: bytes) -> Mapping[str, str]:
    """Return the metadata (texts by name) in the header of a safetensors file; the header must be valid."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = parse_json(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}
