"""What scores of whole channels say of themselves, for lists; scores of weights tell it in their files."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.core.score import About


@dataclass(frozen=True)
class ChannelScore:
    """A score of `structure.channels` that is none of single weights."""

    description: str
    """One sentence."""
    about: About


CHANNEL_ONLY = {
    "activation": ChannelScore(
        "Mean of |input| where layers read the channel; needs data.",
        About(paper="Molchanov et al. 2017", data="yes", order=0, channels="only"),
    ),
    "activation_l2": ChannelScore(
        "Root of the mean of input² where layers read the channel; needs data.",
        About(paper="Chen et al. 2022", data="yes", order=0, channels="only"),
    ),
    "apoz": ChannelScore(
        "Share of a channel's inputs to the layers that read it that are not 0: one less the average percentage of"
        " zeros; needs data.",
        About(paper="Hu et al. 2016", data="yes", order=0, channels="only"),
    ),
    "crop_gates": ChannelScore(
        "Effect on the gradient flow of a gate on each channel (structured CroP); needs data.",
        About(paper="Rachwan et al. 2022", data="yes", order=2, channels="only"),
    ),
    "l1": ChannelScore(
        "L1 norm of all weights of a channel; needs no data.",
        About(paper="Li et al. 2017", data="no", order=0, channels="only"),
    ),
    "l2": ChannelScore(
        "L2 norm of all weights of a channel; needs no data.",
        About(paper="He et al. 2018", data="no", order=0, channels="only"),
    ),
    "slimming": ChannelScore(
        "|scale| of the norms that a channel passes (network slimming); needs no data.",
        About(paper="Liu et al. 2017", data="no", order=0, channels="only"),
    ),
    "snap": ChannelScore(
        "|dL/dgate| of a gate on each channel (SNAP, structured SNIP); needs data.",
        About(paper="Verdenius et al. 2020", data="yes", order=1, channels="only"),
    ),
}
