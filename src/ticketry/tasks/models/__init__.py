"""Networks by name: the papers' own ones, at any width, and those of timm and torchvision.

One file a family; each says what its networks are, where they are from and how they start. `other_libraries` has those
of timm and torchvision. Names are taken apart in `ticketry.tasks.network_name`.
"""

from __future__ import annotations

from ticketry.tasks.models.networks import build, check, identity, names, narrower, parameters, rival

__all__ = ["build", "check", "identity", "names", "narrower", "parameters", "rival"]
