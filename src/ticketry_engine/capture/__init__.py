"""Capture: a PyTorch model becomes a graph, by recording or torch.export, and passes that simplify it."""

from __future__ import annotations

from ticketry_engine.capture.pipeline import capture

__all__ = ["capture"]
