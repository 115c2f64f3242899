"""Are the signs of a ticket's early weights what matters? (Zhou et al. 2019, arXiv 1905.01067, section 4)."""

import torch

from ticketry.evidence import Control


class RandomSigns(Control):
    """The ticket's mask on its own weights, with signs drawn at random."""

    def weights(self, weights, ticket, seed):
        draw = torch.Generator().manual_seed(seed % 2**63)
        signs = {name: torch.randint(0, 2, weights[name].shape, generator=draw) * 2 - 1 for name in ticket}
        return {name: weights[name].abs() * sign for name, sign in signs.items()}
