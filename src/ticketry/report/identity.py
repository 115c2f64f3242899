"""What a page is made of, as a digest that stands in it: the same need not be drawn again, which takes a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

_HEAD = 4096
"""Bytes of a page within which its identity stands."""
_END = b"</html>\n"


def identity_of(records: Any, evidence: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 (hex) over the records and the code that draws them."""
    made_of = json.dumps([records, evidence], sort_keys=True, default=str)
    return hashlib.sha256(f"{_code()}{made_of}".encode(errors="surrogatepass")).hexdigest()


def tag(found: str) -> str:
    """How an identity is written in a page's head."""
    return f'<meta name="ticketry-identity" content="{found}">'


def has(page: Path, found: str) -> bool:
    """Whether there is a whole page of this identity."""
    try:
        with page.open("rb") as file:
            if tag(found).encode() not in file.read(_HEAD):
                return False
            file.seek(-len(_END), 2)
            return file.read() == _END
    except OSError:
        return False


@cache
def _code() -> str:
    """Digest of this package's files and the version of what draws its figures."""
    folder = Path(__file__).parent
    digest = hashlib.sha256(version("matplotlib").encode())
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".js", ".css"):
            digest.update(path.read_bytes())
    return digest.hexdigest()
