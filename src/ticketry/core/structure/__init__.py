"""Structure that hardware can use: whole coupled channels, a physically smaller model without them, groups of rows."""

from ticketry.core.structure.channels import channel_groups, channels
from ticketry.core.structure.group import ChannelGroup, Member
from ticketry.core.structure.groups import RowGroup, groups, row_groups
from ticketry.core.structure.optimizer import shrink_optimizer
from ticketry.core.structure.plan import ShrinkPlan, rebuild
from ticketry.core.structure.shrink import shrink, shrink_plan

__all__ = [
    "ChannelGroup",
    "Member",
    "RowGroup",
    "ShrinkPlan",
    "channel_groups",
    "channels",
    "groups",
    "rebuild",
    "row_groups",
    "shrink",
    "shrink_optimizer",
    "shrink_plan",
]
