"""Structure that hardware can use: whole coupled channels, and a physically smaller model without them."""

from ticketry.core.structure.channels import channel_groups, channels
from ticketry.core.structure.group import ChannelGroup, Member
from ticketry.core.structure.optimizer import shrink_optimizer
from ticketry.core.structure.plan import ShrinkPlan, rebuild
from ticketry.core.structure.shrink import shrink, shrink_plan

__all__ = [
    "ChannelGroup",
    "Member",
    "ShrinkPlan",
    "channel_groups",
    "channels",
    "rebuild",
    "shrink",
    "shrink_optimizer",
    "shrink_plan",
]
