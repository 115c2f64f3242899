"""Capture: a PyTorch model becomes a small graph, recorded or by torch.export, and by a few passes."""

from __future__ import annotations

from ticketry_engine.capture.pipeline import capture

__all__ = ["capture"]
