"""Keep the earlier path of the engine's cache functions importable."""

from __future__ import annotations

from ticketry_engine.support.files import _file_digest as _digest
from ticketry_engine.support.files import private_cache_folder as folder
from ticketry_engine.support.files import read_cached as kept
from ticketry_engine.support.files import write_cached as keep

__all__ = ["_digest", "folder", "keep", "kept"]
