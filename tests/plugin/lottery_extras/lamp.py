"""LAMP (Lee et al. 2021, arXiv 2010.07611): magnitudes that can be compared between layers."""

import torch

from ticketry.core.score import About, described


@described(About(paper="Lee et al. 2021", data="no", order=0))
def lamp(model, scope, *, batches=None, loss=None, seed=0):
    """A weight's square over the sum of those in its layer that are no smaller."""
    found = {}
    for name, weight in scope.parameters(model).items():
        squares, order = weight.detach().double().square().flatten().sort()
        no_smaller = squares.flip(0).cumsum(0).flip(0).clamp_min(1e-300)
        found[name] = torch.empty_like(squares).index_put_((order,), squares / no_smaller).view(weight.shape)
    return found
