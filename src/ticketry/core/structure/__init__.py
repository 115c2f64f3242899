"""Structured pruning: whole coupled channels, smaller models without them, groups of rows, and N:M patterns.

`layout` and `pattern` define the terms. `trace`, `shape_rules`, `layer_rules`, `coupling` and
`removal_trial` find coupled channels; `channel_scores`, `channel_choice`, `channel_masks` and `refill_masks` choose
channels to remove; `plans` and `smaller_model` remove them. `group_masks` and `mask_fit` handle groups of rows.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.core.structure.apply import n_m
    from ticketry.core.structure.channel_masks import channel_groups, channels
    from ticketry.core.structure.controls import shuffled_structure
    from ticketry.core.structure.coupling import ChannelGroup, Member, Structure
    from ticketry.core.structure.group_masks import regroup
    from ticketry.core.structure.layout import Layout, RowGroup, groups, layouts, row_groups
    from ticketry.core.structure.mask_fit import coverage, together
    from ticketry.core.structure.pattern import LayerFit, Pattern
    from ticketry.core.structure.plans import ShrinkPlan, rebuild
    from ticketry.core.structure.refill_masks import refill
    from ticketry.core.structure.removal_trial import tried_structure
    from ticketry.core.structure.smaller_model import shrink, shrink_optimizer, shrink_plan

_CONTENTS = {
    "apply": "n_m",
    "channel_masks": "channel_groups channels",
    "controls": "shuffled_structure",
    "coupling": "ChannelGroup Member Structure",
    "group_masks": "regroup",
    "layout": "Layout RowGroup groups layouts row_groups",
    "mask_fit": "coverage together",
    "pattern": "LayerFit Pattern",
    "plans": "ShrinkPlan rebuild",
    "refill_masks": "refill",
    "removal_trial": "tried_structure",
    "smaller_model": "shrink shrink_optimizer shrink_plan",
}
_MODULES = {name: module for module, names in _CONTENTS.items() for name in names.split()}

__all__ = [
    "ChannelGroup",
    "LayerFit",
    "Layout",
    "Member",
    "Pattern",
    "RowGroup",
    "ShrinkPlan",
    "Structure",
    "channel_groups",
    "channels",
    "coverage",
    "groups",
    "layouts",
    "n_m",
    "rebuild",
    "refill",
    "regroup",
    "row_groups",
    "shrink",
    "shrink_optimizer",
    "shrink_plan",
    "shuffled_structure",
    "together",
    "tried_structure",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, which avoids circular imports with modules that this package uses."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ticketry.core.structure' has no attribute {name!r}")
    return getattr(import_module(f"ticketry.core.structure.{_MODULES[name]}"), name)
