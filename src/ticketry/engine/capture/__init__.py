"""Capture: a PyTorch model becomes a small graph, by torch.export and a few passes."""

from __future__ import annotations

from ticketry.engine.capture.pipeline import capture

__all__ = ["capture"]
