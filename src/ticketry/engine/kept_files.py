"""Keep the earlier path of `ticketry_engine.kept_files` importable."""

from __future__ import annotations

from ticketry_engine.kept_files import _file_digest as _digest
from ticketry_engine.kept_files import folder, keep, kept

__all__ = ["_digest", "folder", "keep", "kept"]
