"""Bundles that say something else, under a digest that is right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ticketry.lab.store.bundle import MAGIC


def repacked(bundle: Path, change: Callable[[dict[str, Any]], None], more: bytes = b"") -> None:
    """The bundle with a changed list of parts, and a digest that is right."""
    data = bundle.read_bytes()
    start = len(MAGIC) + 65
    length = int.from_bytes(data[start : start + 8], "little")
    told = json.loads(data[start + 8 : start + 8 + length])
    change(told)
    listed = json.dumps(told).encode()
    whole = len(listed).to_bytes(8, "little") + listed + data[start + 8 + length :] + more
    bundle.write_bytes(MAGIC + hashlib.sha256(whole).hexdigest().encode() + b"\n" + whole)
