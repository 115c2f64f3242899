"""A model's state dict, put back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """`model.load_state_dict` of tensors that `model` itself, or one built like it, gave.

    A state dict of torch's also says which version of each module's class it is of. A plain mapping of tensors does
    not, and is taken for one of before there were versions: a class may convert it, or refuse it (torchvision's
    MNASNet). Here the tensors are of the versions that `model` has.

    Args:
        tensors: by the names that `model` uses; all of them.

    Raises:
        RuntimeError: if names or shapes differ.
    """
    state = model.state_dict()
    state.clear()  # the versions stay: they are an attribute of the dictionary
    state.update(tensors)
    model.load_state_dict(state)
