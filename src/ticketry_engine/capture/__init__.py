"""Captures a PyTorch model as a graph: records a call or runs torch.export, then simplifies the graph in passes."""

from __future__ import annotations

from ticketry_engine.capture.pipeline import capture

__all__ = ["capture"]
