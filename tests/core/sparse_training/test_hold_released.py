"""A mask of a model that was rebuilt while it was held."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ticketry.core.prune import prune
from ticketry.core.sparse_training.hold import hold
from ticketry.errors import HoldError


def test_a_model_that_lost_a_parameter_stops_no_other_models_training() -> None:
    """A mask that is still held after its error, as by a traceback, ignores steps of other models."""
    lost, other = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    held = hold(lost, prune(lost, 0.5))
    lost[0] = nn.Linear(4, 2)
    with hold(other, prune(other, 0.5)):
        other(torch.randn(2, 4)).sum().backward()
        torch.optim.SGD(other.parameters(), 0.1).step()
    lost(torch.randn(2, 4)).sum().backward()
    with pytest.raises(HoldError, match=r"another shape of its parameter '0\.weight'"):
        torch.optim.SGD(lost.parameters(), 0.1).step()
    with pytest.raises(HoldError, match=r"another shape of its parameter '0\.weight'"):
        held.check()
    held.release()
    torch.optim.SGD(lost.parameters(), 0.1).step()
