"""Structured pruning: whole coupled channels, smaller models without them, groups of rows, and N:M patterns.

`layout` and `pattern` define the terms. `trace`, `shape_rules`, `layer_rules`, `coupling` and
`removal_trial` find coupled channels; `channel_scores`, `channel_choice`, `channel_masks` and `refill_masks` choose
channels to remove; `plans` and `smaller_model` remove them. `group_masks` and `mask_fit` handle groups of rows.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ticketry.core.structure.apply import n_m as n_m
    from ticketry.core.structure.channel_masks import channel_groups as channel_groups
    from ticketry.core.structure.channel_masks import channels as channels
    from ticketry.core.structure.controls import shuffled_structure as shuffled_structure
    from ticketry.core.structure.coupling import ChannelGroup as ChannelGroup
    from ticketry.core.structure.coupling import Member as Member
    from ticketry.core.structure.coupling import Structure as Structure
    from ticketry.core.structure.group_masks import regroup as regroup
    from ticketry.core.structure.layout import Layout as Layout
    from ticketry.core.structure.layout import RowGroup as RowGroup
    from ticketry.core.structure.layout import groups as groups
    from ticketry.core.structure.layout import layouts as layouts
    from ticketry.core.structure.layout import row_groups as row_groups
    from ticketry.core.structure.mask_fit import coverage as coverage
    from ticketry.core.structure.mask_fit import together as together
    from ticketry.core.structure.pattern import LayerFit as LayerFit
    from ticketry.core.structure.pattern import Pattern as Pattern
    from ticketry.core.structure.plans import ShrinkPlan as ShrinkPlan
    from ticketry.core.structure.plans import rebuild as rebuild
    from ticketry.core.structure.refill_masks import refill as refill
    from ticketry.core.structure.removal_trial import tried_structure as tried_structure
    from ticketry.core.structure.smaller_model import shrink as shrink
    from ticketry.core.structure.smaller_model import shrink_optimizer as shrink_optimizer
    from ticketry.core.structure.smaller_model import shrink_plan as shrink_plan

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

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, which avoids circular imports with modules that this package uses."""
    if name not in _MODULES:
        raise AttributeError(f"module 'ticketry.core.structure' has no attribute {name!r}")
    return getattr(import_module(f"ticketry.core.structure.{_MODULES[name]}"), name)
