"""Structure that hardware can use: whole coupled channels, a physically smaller model without them, groups of rows,
N:M."""

from ticketry.core.layout import Layout, layouts
from ticketry.core.pattern import Pattern
from ticketry.core.structure.channel_wise.choose import channel_groups, channels
from ticketry.core.structure.channel_wise.refill import refill
from ticketry.core.structure.controls import shuffled_structure
from ticketry.core.structure.dependencies.channel_groups import ChannelGroup, Member, Structure
from ticketry.core.structure.group_wise.coverage import coverage, together
from ticketry.core.structure.group_wise.matrices import RowGroup, groups, row_groups
from ticketry.core.structure.group_wise.regroup import regroup
from ticketry.core.structure.n_of_m import n_m
from ticketry.core.structure.shrinking.plan import ShrinkPlan, rebuild
from ticketry.core.structure.shrinking.removal_trial import tried_structure
from ticketry.core.structure.shrinking.shrink import shrink, shrink_optimizer, shrink_plan
from ticketry.core.structuring import LayerFit

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
