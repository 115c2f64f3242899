"""Networks by name: those of pruning papers, at any width, and those of timm and torchvision.

`image_models` and `language` define the networks of papers; `other_libraries` builds the networks of timm and
torchvision. `ticketry.tasks.network_name` parses names.
"""

from __future__ import annotations

from ticketry.tasks.models.networks import build, check, identity, names, narrower, parameters, rival

__all__ = ["build", "check", "identity", "names", "narrower", "parameters", "rival"]
