"""Structure that hardware can use: whole coupled channels, a physically smaller model without them, groups of rows,
N:M."""

from ticketry.core.layout import Layout, layouts
from ticketry.core.pattern import Pattern
from ticketry.core.structure.channels import channel_groups, channels
from ticketry.core.structure.coverage import LayerFit, coverage, together
from ticketry.core.structure.group import ChannelGroup, Member, Structure
from ticketry.core.structure.groups import RowGroup, groups, row_groups
from ticketry.core.structure.n_m import n_m
from ticketry.core.structure.optimizer import shrink_optimizer
from ticketry.core.structure.plan import ShrinkPlan, rebuild
from ticketry.core.structure.refill import refill
from ticketry.core.structure.regroup import regroup
from ticketry.core.structure.shrink import shrink, shrink_plan
from ticketry.core.structure.shuffled_structure import shuffled_structure
from ticketry.core.structure.trial import tried_structure

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
