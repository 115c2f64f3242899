"""What single weights do, by what goes into their layers and the gradients of what comes out.

Without weight w an output of its layer changes by w x, x being the input that it multiplies, and whatever has gradient
g there by g w x. Where gradients, inputs and places are uncorrelated, as K-FAC has them (Martens & Grosse 2015; Grosse
& Martens 2016), the expected square of that over examples is

    w^2 · E[x^2] · sum of g^2 over examples and places

One backward pass tells it for each example apart, where gradients of weights are sums over a batch already. A weight of
a transposed convolution meets each place of the input once, and so as many places of its outputs: that share of the
sum.

Layers are linear ones and convolutions, and whatever else multiplies by a weight, by some of its rows or by its
transpose, with torch's `linear`: attention, a last layer that shares its weight with another, a decoder that has the
encoder's. What the model does with a weight in any other way is not known, and an error: it would count for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ticketry.errors import UsageError


class Call:
    """A layer in one call: the mean squares of its inputs by channel, and the squared gradients of its outputs."""

    def __init__(
        self,
        x: Tensor,
        output: Tensor,
        *,
        axes: int = 2,
        groups: int = 1,
        first: int = 0,
        layer: bool = True,
        transposed: bool = False,
    ) -> None:
        """Of a weight of so many axes and groups, whose rows from the `first` on make the output.

        Args:
            layer: whether it is a layer that is called, whose first axis is of examples.
            transposed: whether the weight's first axis is of inputs.
        """
        self._groups, self._first = groups, first
        self._channel = 1 - axes  # from the end, where a convolution has its places: examples need not be stacked
        self._inputs = _by_channel(x.detach(), self._channel, mean=True)
        self._transposed = transposed
        if transposed:
            self._inputs *= _places(x, self._channel) / max(1, _places(output, self._channel))
        self.examples = 0 if not layer else len(x) if x.dim() >= axes else 1
        """0 where that is not told."""
        self.moved = torch.zeros_like(output, requires_grad=True)
        """A zero that is added to the output: its gradient is the output's."""
        self.pulls: Tensor | None = None
        """float64 [output channels], sums over examples and places; None before any gradient came."""

    def add(self, gradient: Tensor, share: float = 1.0) -> None:
        """Take note of a gradient of `moved`, whose squares count by a share."""
        pulls = share * _by_channel(gradient, self._channel, mean=False)
        self.pulls = pulls if self.pulls is None else self.pulls + pulls

    def add_to(self, factors: Tensor) -> None:
        """Add what the square of each weight is multiplied by, float64 [output channels, input channels of one], or
        [input channels, output channels of one]."""
        if self.pulls is None:
            return
        inputs = self._inputs if bool(self._inputs.any()) else torch.ones_like(self._inputs)  # an example of zeros
        pulls = self.pulls.view(self._groups, -1, 1)
        found = pulls * inputs.view(self._groups, 1, -1)
        found = (found.transpose(1, 2) if self._transposed else found).flatten(0, 1)
        factors[self._first : self._first + len(found)] += found


@contextmanager
def watched(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], others: set[str] | None = None
) -> Iterator[dict[str, list[Call]]]:
    """The calls of the layers whose weights these are, in a block; empty for weights that no layer is called with.

    Args:
        others: gets the names of those that a call uses by another function, where that is no error.

    Raises:
        UsageError: in the block, if a call of `model` uses one of them by another function than its layer or `linear`.
    """
    names = {id(parameter): name for name, parameter in parameters.items()}
    calls: dict[str, list[Call]] = {name: [] for name in parameters}
    inside = set[str]()

    def enter(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        inside.add(name)

    def watch(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        inside.discard(name)
        axes, groups = module.get_parameter("weight").dim(), int(getattr(module, "groups", 1))
        x = args[0] if args else named["input"]
        calls[name].append(Call(x, output, axes=axes, groups=groups, transposed=isinstance(module, _TRANSPOSED)))
        return output + calls[name][-1].moved

    with ExitStack() as undone:
        for module in model.modules():
            name = names.get(id(module._parameters.get("weight")))
            if name is not None and has_factors(module):
                undone.callback(module.register_forward_pre_hook(partial(enter, name)).remove)
                undone.callback(module.register_forward_hook(partial(watch, name), with_kwargs=True).remove)
        products = undone.enter_context(_Products(names, calls, inside, others))
        undone.callback(model.register_forward_pre_hook(products.enter).remove)
        undone.callback(model.register_forward_hook(products.leave, always_call=True).remove)
        yield calls


class _Products(TorchFunctionMode):
    """Watches torch's `linear` with a weight, some of its rows or its transpose, where no layer of its own does it."""

    def __init__(
        self,
        names: Mapping[int, str],
        calls: Mapping[str, list[Call]],
        inside: Set[str],
        others: set[str] | None = None,
    ) -> None:
        super().__init__()
        self._names, self._calls, self._inside, self._others = names, calls, inside, others
        self._depth = 0

    def enter(self, model: nn.Module, args: object) -> None:
        """From here on the model computes; a loss may use weights in any way, for a penalty on them."""
        self._depth += 1

    def leave(self, model: nn.Module, args: object, output: object) -> None:
        self._depth -= 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:  # its own products are to be seen
                return _attention(*args, **kwargs)
        output = func(*args, **kwargs)
        if func is F.linear:
            x: Tensor = args[0] if args else kwargs["input"]
            weight: Tensor = args[1] if len(args) > 1 else kwargs["weight"]
            name, first, transposed = self._rows(weight)
            if name and name not in self._inside:
                self._calls[name].append(Call(x, output, first=first, layer=False, transposed=transposed))
                return output + self._calls[name][-1].moved
            if name:
                return output
        if (right := _right_factor(func, args, kwargs)) is not None:
            x, factor = right
            name, first, transposed = self._rows(factor.t()) if factor.dim() == 2 else ("", 0, False)
            if name and name not in self._inside:
                self._calls[name].append(Call(x, output, first=first, layer=False, transposed=transposed))
                return output + self._calls[name][-1].moved
        if self._depth and torch.is_grad_enabled() and func not in _HARMLESS:
            self._refuse_others(func, (args, kwargs), output)
        return output

    def _rows(self, weight: Tensor) -> tuple[str, int, bool]:
        """Of which parameter a tensor is some of the rows, the first of these, and whether it is all of it, transposed;
        ("", 0, False) if of none."""
        whole = weight if weight._base is None else weight._base
        name = self._names.get(id(whole), "")
        if not name or whole.dim() != 2 or weight.dim() != 2:
            return "", 0, False
        if weight.stride() == whole.stride() and weight.shape[1] == whole.shape[1]:
            return name, (weight.storage_offset() - whole.storage_offset()) // max(1, whole.stride(0)), False
        if weight.stride() == whole.stride()[::-1] and weight.shape == whole.shape[::-1]:
            return name, 0, True
        return "", 0, False

    def _refuse_others(self, func: Any, given: object, output: object) -> None:
        """Raise UsageError if real numbers are computed of a weight here; views of it are looked at where they go."""
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for leaf in tree_leaves(given) if made else ():
            if not isinstance(leaf, Tensor):
                continue
            whole = leaf if leaf._base is None else leaf._base
            name = self._names.get(id(whole), "")
            if name and name not in self._inside and not all(each is whole or each._base is whole for each in made):
                if self._others is not None:
                    self._others.add(name)
                    continue
                raise UsageError(
                    f"what {name} does to an output is not known: the model uses it in"
                    f" {getattr(func, '__name__', func)!r}, and not by calling its linear layer or convolution, or by"
                    " torch's linear; spare it in the scope, or give another score (score=), such as fisher"
                )


def _right_factor(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """Return activations and what they are multiplied by from the right, of a plain product of matrices."""
    if kwargs or func not in _RIGHT or len(args) != 2 + _RIGHT[func]:
        return None
    x, factor = args[_RIGHT[func] :]
    return (x, factor) if isinstance(x, Tensor) and isinstance(factor, Tensor) and x.dim() > 1 else None


_RIGHT: dict[Any, int] = {
    **dict.fromkeys((torch.mm, torch.matmul, Tensor.mm, Tensor.matmul, Tensor.__matmul__), 0),
    **dict.fromkeys((torch.addmm, Tensor.addmm), 1),
}
"""Function that multiplies two matrices -> which of its arguments is the first of them."""

_HARMLESS = frozenset(
    (
        *(F.embedding, torch.embedding, F.embedding_bag, torch.embedding_bag, Tensor.detach),
        Tensor.data.__get__,  # type: ignore[attr-defined]
    )
)
"""What is not a product with a weight: looking up rows of one that a last layer shares; copies without a gradient."""


_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**vars(F), "has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
"""torch's function without the question whether somebody else, who watches, carries it out."""


_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def has_factors(module: nn.Module) -> bool:
    """Whether a layer is linear or a convolution."""
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED))


def add_gradients(value: Tensor, calls: Mapping[str, list[Call]], share: float = 1.0, *, again: bool = False) -> None:
    """Add to calls the gradients of a number at the outputs.

    Args:
        again: whether gradients of something else of the same pass are to follow.
    """
    every = [call for made in calls.values() for call in made]
    gradients = torch.autograd.grad(value, [call.moved for call in every], retain_graph=again, allow_unused=True)
    for call, gradient in zip(every, gradients, strict=True):
        if gradient is not None:
            call.add(gradient, share)


def squares(weight: Tensor, calls: list[Call]) -> Tensor:
    """float64 [as the weight]: its squares, each times what its input brings and its output does in all calls."""
    factors = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for call in calls:
        call.add_to(factors)
    return weight.detach().cpu().double().square() * factors.view(*factors.shape, *[1] * (weight.dim() - 2))


def _places(values: Tensor, channel: int) -> int:
    return values.numel() // max(1, values.shape[channel])


def _by_channel(values: Tensor, channel: int, *, mean: bool) -> Tensor:
    """float64 [channels], on the processor: sums or means of the squares."""
    others = [axis for axis in range(-values.dim(), 0) if axis != channel]
    if not values.numel():  # of an expert that no example was sent to
        return torch.zeros(values.shape[channel], dtype=torch.float64)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    largest = values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)  # or small numbers have squares of 0
    norms = torch.linalg.vector_norm(values / largest, dim=others) if others else values / largest
    found = (norms.double() * largest.double()).square()
    return (found / _places(values, channel) if mean else found).cpu()
