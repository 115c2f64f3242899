"""Protect safetensors files by a digest, so that any damaged bit is noticed when a file is read.

It is the first entry of the metadata: the SHA-256 of the file without that entry. The entry must be present exactly
as written. Other loaders see one more text in the metadata.
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
    """Return the bytes of a safetensors file that has metadata, with a digest of all bytes added to the metadata."""
    length, rest = int.from_bytes(data[:8], "little"), data[8:]
    if not rest.startswith(_HEAD):
        raise ValueError("only a file with metadata can be sealed")
    entry = _BEGIN + hashlib.sha256(data).hexdigest().encode() + _END
    return (length + _ENTRY).to_bytes(8, "little") + _HEAD + entry + rest[len(_HEAD) :]


def unsealed(data: bytes, *, required: bool = True) -> bytes:
    """Return the original bytes of a sealed file.

    Args:
        required: whether to reject a file without a digest; else it is returned unchanged.

    Raises:
        ValueError: if the content does not match the digest.
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
    """Return the string metadata in the header of a valid safetensors file."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = parse_json(data[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}
