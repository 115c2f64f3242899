"""The engine's cache under its earlier name, see `ticketry_engine.kept_files`."""

from __future__ import annotations

from ticketry_engine.kept_files import _digest as _digest
from ticketry_engine.kept_files import folder as folder
from ticketry_engine.kept_files import keep as keep
from ticketry_engine.kept_files import kept as kept
