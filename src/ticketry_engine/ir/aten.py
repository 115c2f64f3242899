"""Checks and runs torch nodes (nodes that torch runs), which are ATen operations or arithmetic on sizes.

A node ``aten.NAME.OVERLOAD`` has the attributes ``{"args": [...], "kwargs": {...}}`` in JSON. A JSON object with one
entry stands for an argument that JSON cannot express:

- ``{"value": name}`` is an input of the node, and ``{"tensor": name}`` a weight of the graph;
- ``{"dtype": name}``, ``{"memory_format": name}``, ``{"float": "inf" | "-inf" | "nan"}`` and ``{"complex": "(1+2j)"}``
  are constants;
- ``{"device": "own"}`` is the device on which the graph runs.

A node ``operator.NAME`` computes with single numbers, or takes an entry of a list.

A graph may come from a file of unknown origin. Such a graph may use only the operations in `ALLOWED`. A graph that was
captured in this process may also use a model's custom operations (``NAMESPACE.NAME.OVERLOAD``) that do not write to
their arguments.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.errors import GraphError
from ticketry_engine.ir.native import DTYPES, UNFILED, Json, Node, short_repr

LEAST_INT, LARGEST_INT = -(1 << 63), (1 << 63) - 1  # the largest is what torch takes for the end of an axis

_MEMORY_FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
NOT_FINITE = ("inf", "-inf", "nan")
"""Spelling of the floats that JSON cannot represent."""


def is_number(value: Any) -> bool:
    """Return whether a value is a 64-bit integer or a finite float, which both torch and JSON can represent."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and LEAST_INT <= value <= LARGEST_INT


def _parse_number(value: Any) -> Any:
    if is_number(value):
        return value
    raise GraphError(f"{short_repr(value)} is no number that sizes are computed with")


def _with_number_checks(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *numbers: _parse_number(function(*map(_parse_number, numbers)))


def _bounded_power(base: Any, exponent: Any) -> Any:
    """Return ``base ** exponent``; raise `GraphError` if an estimate of the power exceeds the range of floats."""
    try:
        near = math.pow(base, exponent)
    except (OverflowError, ValueError) as error:
        raise GraphError(
            f"{short_repr(base)} ** {short_repr(exponent)} is no number that sizes are computed with"
        ) from error
    return base**exponent if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0 else near


def _entry_of_sequence(sequence: Any, index: int) -> Any:
    if not isinstance(sequence, (list, tuple)) or type(index) is not int:
        raise GraphError(f"no entry can be taken from {type(sequence).__name__}")
    return sequence[index]


OPERATORS: Mapping[str, tuple[int, Callable[..., Any]]] = {
    **{
        name: (2, _with_number_checks(getattr(operator, name)))
        for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "eq", "ne", "lt", "le", "gt", "ge")
    },
    "neg": (1, _with_number_checks(operator.neg)),
    "pow": (2, _with_number_checks(_bounded_power)),
    "sqrt": (1, _with_number_checks(lambda value: float(_bounded_power(value, 0.5)))),
    "max": (2, _with_number_checks(max)),
    "min": (2, _with_number_checks(min)),
    "int": (1, _with_number_checks(int)),
    "float": (1, _with_number_checks(float)),
    "getitem": (2, _entry_of_sequence),
}
"""Name of an operation on numbers or lists -> (number of arguments, function)."""


def find_operation(op: str, *, trusted: bool = False) -> Any:
    """Return the torch function of the operation `op`.

    Raise `GraphError` if there is no such operation, or if it is not allowed in model files and `trusted` is False.
    """
    kind, _, rest = op.partition(".")
    if kind == "operator" and rest in OPERATORS:
        return OPERATORS[rest][1]
    name, _, overload = rest.partition(".")
    if not trusted and not is_portable(op):
        raise GraphError(f"the operation {op[:80]!r} is not one that a graph in a file may have")
    packet = getattr(getattr(torch.ops, kind), name, None)
    if packet is None or overload not in packet.overloads():
        raise GraphError(f"torch {torch.__version__} has no operation {op[:80]!r}: use the torch of the graph's maker")
    function = getattr(packet, overload)
    if not has_no_written_argument(function):
        raise GraphError(f"the operation {op[:80]!r} writes to its arguments")
    if not trusted and not all(str(one.type) in _RESULTS for one in function._schema.returns):
        raise GraphError(f"the operation {op[:80]!r} makes neither tensors nor numbers")
    return function


_RESULTS = ("Tensor", "List[Tensor]", "int", "float", "bool", "number")
"""Result types of operations allowed in files.

The types exclude overloads on lists or texts (``aten.mul.left_t``), whose results could grow without limit.
"""


def is_portable(op: str) -> bool:
    """Return whether a model file may contain the torch operation `op`."""
    kind, _, rest = op.partition(".")
    return rest in OPERATORS if kind == "operator" else kind == "aten" and rest.partition(".")[0] in ALLOWED


def has_no_written_argument(overload: Any) -> bool:
    """Return whether a torch operation writes to none of its arguments."""
    arguments = overload._schema.arguments
    return not any(one.alias_info is not None and one.alias_info.is_write for one in arguments)


def check_torch_node(node: Node, *, trusted: bool = False) -> None:
    """Raise `GraphError` unless the operation is allowed and the node's arguments match its schema and inputs.

    If `trusted`, operations are allowed that a model file may not contain.
    """
    where = f"{node.op[:80]} -> {node.output[:80]}"
    function = find_operation(node.op, trusted=trusted)
    if set(node.attrs) != {"args", "kwargs"}:
        raise GraphError(f"{where}: its attributes have to be args and kwargs")
    args, kwargs = node.attrs["args"], node.attrs["kwargs"]
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise GraphError(f"{where}: its arguments are no list and no object")
    named: dict[str, set[str]] = {"value": set(), "tensor": set()}
    for kind, name in _iterate_references([*args, *kwargs.values()], where):
        named[kind].add(name)
    if named["value"] != set(node.inputs) or len(set(node.inputs)) != len(node.inputs):
        raise GraphError(f"{where}: its arguments name other values than its inputs")
    if named["tensor"] != set(node.weights) or any(role != name for role, name in node.weights.items()):
        raise GraphError(f"{where}: its arguments name other tensors than its weights")
    if node.op.startswith("operator."):
        if kwargs or len(args) != OPERATORS[node.op.partition(".")[2]][0]:
            raise GraphError(f"{where}: it has not the number of arguments that it takes")
        return
    arguments = function._schema.arguments
    names = [one.name for one in arguments]
    given = {*names[: len(args)], *kwargs}
    missing = [one.name for one in arguments if not one.has_default_value() and one.name not in given]
    if len(args) > len(names) or set(kwargs) - set(names[len(args) :]) or missing:
        raise GraphError(f"{where}: its arguments are not those of the operation, {', '.join(names)}")


def replace_objects(attrs: Mapping[str, Json], change: Callable[[str, str], Json]) -> dict[str, Json]:
    """Return the attributes of a node that torch runs, with each JSON object changed.

    An object {kind: content}, such as {"dtype": "float32"}, is replaced by the result of `change(kind, content)`.
    """

    def replace_inside(value: Json) -> Json:
        if isinstance(value, list):
            return [replace_inside(part) for part in value]
        return change(*next(iter(value.items()))) if isinstance(value, dict) else value

    return {
        "args": replace_inside(attrs["args"]),
        "kwargs": {name: replace_inside(value) for name, value in attrs["kwargs"].items()},
    }


_DEEPEST = 8


def _iterate_references(value: Json, where: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield ("value", name) or ("tensor", name) for each value or weight that a JSON argument refers to.

    Raise `GraphError` for any other JSON object, and for lists that are nested too deep. `where` begins the message,
    and `depth` is the number of lists around `value`.
    """
    if value is None or isinstance(value, (bool, str)):
        return
    if isinstance(value, (int, float)):
        if not is_number(value):
            raise GraphError(
                f"{where}: {short_repr(value)} in its arguments is too large: not finite, or no integer of 64 bits"
            )
        return
    if isinstance(value, list) and depth < _DEEPEST:
        for part in value:
            yield from _iterate_references(part, where, depth + 1)
        return
    if isinstance(value, dict) and len(value) == 1:
        ((kind, content),) = value.items()
        if isinstance(content, str):
            if kind in ("value", "tensor"):
                yield kind, content
                return
            if content in _CONTENTS.get(kind, ()) or (kind == "complex" and _is_complex(content)):
                return
    raise GraphError(f"{where}: {short_repr(value)} is no argument")


def _is_complex(text: str) -> bool:
    try:
        return str(complex(text)) == text
    except ValueError:
        return False


_CONTENTS: Mapping[str, Any] = {
    "dtype": DTYPES | UNFILED,
    "memory_format": _MEMORY_FORMATS,
    "float": NOT_FINITE,
    "device": ("own",),
}


def bind_torch_node(node: Node, tensors: Mapping[str, Tensor], device: str | torch.device) -> Callable[..., Any]:
    """Return a function that computes the node's output from its inputs, in order.

    `tensors` are the weights of the graph by name. The node must have passed `check_torch_node`. `device` replaces the
    JSON argument ``{"device": "own"}``.
    """
    function = find_operation(node.op, trusted=True)
    if node.op in _OF_PLAIN_MEMORY or node.op.partition(".")[0] not in ("aten", "operator"):
        function = _with_contiguous_arguments(function)
    elif not node.attrs["kwargs"]:
        function = _IN_PYTHON.get(node.op, function)
    positions = {name: index for index, name in enumerate(node.inputs)}

    def decode_argument(value: Json) -> Any:
        """Return a JSON argument as a Python object; return a `_ComputedArgument` if the argument depends on inputs."""
        if isinstance(value, list):
            parts = [decode_argument(part) for part in value]
            if not any(isinstance(part, _ComputedArgument) for part in parts):
                return parts
            return _ComputedArgument(
                lambda inputs: [part.compute(inputs) if isinstance(part, _ComputedArgument) else part for part in parts]
            )
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "value":
            position = positions[content]
            return _ComputedArgument(lambda inputs: inputs[position])
        if kind == "tensor":
            return tensors[content]
        if kind in ("float", "complex"):
            return complex(content) if kind == "complex" else float(content)
        return torch.device(device) if kind == "device" else getattr(torch, content)

    args = [decode_argument(value) for value in node.attrs["args"]]
    kwargs = {name: decode_argument(value) for name, value in node.attrs["kwargs"].items()}
    count = len(node.inputs)
    if node.attrs["args"][:count] == [{"value": name} for name in node.inputs]:
        rest = args[count:]
        if not any(isinstance(value, _ComputedArgument) for value in [*rest, *kwargs.values()]):
            return lambda *inputs: function(*inputs, *rest, **kwargs)  # the usual case, and the quickest
    early = {name: value for name, value in kwargs.items() if not isinstance(value, _ComputedArgument)}
    late = {name: value.compute for name, value in kwargs.items() if isinstance(value, _ComputedArgument)}

    def call_function(*inputs: Any) -> Any:
        given = [value.compute(inputs) if isinstance(value, _ComputedArgument) else value for value in args]
        return function(*given, **early, **{name: of(inputs) for name, of in late.items()})

    return call_function


_OF_PLAIN_MEMORY = frozenset(
    f"aten.{name}"
    for name in (
        *("view_as_complex.default", "view_as_real.default", "view.dtype", "view_copy.dtype"),
        *("as_strided.default", "as_strided_copy.default", "as_strided_scatter.default", "_reshape_alias.default"),
    )
)
"""Operations that read a tensor's memory, and therefore need a contiguous tensor without a pending conjugation."""


def _with_contiguous_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes every tensor argument contiguous, and then calls `function`.

    This is for operations whose result depends on how their arguments lie in memory.
    """

    def make_contiguous(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(make_contiguous, value)) if type(value) in (list, tuple) else value
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return value
        value = value.resolve_conj().resolve_neg()
        whole = value.is_contiguous() and not value.storage_offset()
        return value if whole else value.clone(memory_format=torch.contiguous_format)

    return lambda *args, **kwargs: function(
        *map(make_contiguous, args), **{name: make_contiguous(one) for name, one in kwargs.items()}
    )


_IN_PYTHON: Mapping[str, Callable[..., Any]] = {
    **{f"aten.{name}.Tensor": getattr(torch, name) for name in ("add", "sub", "mul", "div")},
    **{
        f"aten.{name}.default": getattr(torch, name)
        for name in (
            *("exp", "neg", "matmul", "bmm", "unsqueeze", "permute"),
            *("reshape", "cat", "stack", "sigmoid", "tanh"),
        )
    },
    "aten.select.int": torch.select,
    "aten.transpose.int": torch.transpose,
}
"""Operation -> equivalent torch function.

A call of the function has half the overhead, so that models with many small operations are not slower than in eager
torch.
"""


class _ComputedArgument:
    """An argument of a torch function that depends on a node's inputs; `compute(inputs)` returns its value."""

    __slots__ = ("compute",)

    def __init__(self, compute: Callable[[tuple[Any, ...]], Any]) -> None:
        self.compute = compute


# -- what a graph in a file may have -----------------------------------------------------------------------------------

_POINTWISE = """
__and__ __lshift__ __or__ __rshift__ __xor__ _to_copy abs absolute acos acosh add addcdiv addcmul alias alpha_dropout
arccos arcsin arctan asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or
bitwise_right_shift bitwise_xor ceil celu clamp clamp_max clamp_min clip clone contiguous copy copysign cos cosh cumprod
cumsum deg2rad detach diff digamma div divide dropout elu eq erf erfc erfinv exp exp2 expm1 feature_dropout fill
float_power floor floor_divide fmax fmin fmod frac ge gelu glu greater greater_equal gt hardshrink hardsigmoid hardswish
hardtanh heaviside hypot isfinite isinf isnan isneginf isposinf le leaky_relu lerp less less_equal lgamma
lift_fresh_copy log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or logical_xor logit lt
masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative not_equal positive pow prelu rad2deg reciprocal
relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink sqrt
square sub subtract tan tanh threshold to true_divide trunc type_as where xlogy zero
"""

_REDUCTIONS = """
_log_softmax _softmax all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin dist kthvalue
linalg_vector_norm log_softmax logcumsumexp logsumexp max mean median min nanmean nanquantile nansum norm
pairwise_distance prod quantile softmax sort std std_mean sum topk trace var var_mean
"""

_SHAPES = """
_shape_as_tensor _unsafe_view adjoint as_strided_copy atleast_1d atleast_2d atleast_3d block_diag broadcast_to bucketize
cartesian_prod cat cdist channel_shuffle chunk col2im column_stack concat concatenate constant_pad_nd cross diag
diag_embed diagonal dsplit dstack embedding expand expand_as expand_copy flatten flip fliplr flipud gather hsplit hstack
im2col index index_add index_copy index_fill index_put index_select isin mT masked_scatter masked_select meshgrid
moveaxis movedim narrow narrow_copy native_channel_shuffle nonzero nonzero_static numpy_T one_hot pad permute
permute_copy pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape reshape_as roll rot90 scatter
scatter_add scatter_reduce searchsorted select select_copy select_scatter slice slice_copy slice_scatter split
split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor tensor_split tile transpose tril triu
unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as view_copy vsplit vstack
"""

_FACTORIES = """
arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices
zeros zeros_like
"""

_LAYERS = """
_adaptive_avg_pool2d _fft_c2r _fft_r2c _native_batch_norm_legit_no_training _scaled_dot_product_flash_attention_for_cpu
_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d addbmm addmm addmv addr affine_grid_generator avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm
bilinear bmm chain_matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution
cosine_similarity dot einsum grid_sampler grid_sampler_2d group_norm gru gru_cell inner instance_norm kron layer_norm
linalg_matmul linalg_norm linear lstm lstm_cell matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mm mv
native_batch_norm native_group_norm native_layer_norm outer reflection_pad1d reflection_pad2d reflection_pad3d
replication_pad1d replication_pad2d replication_pad3d rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell
scaled_dot_product_attention sym_numel sym_size tensordot upsample_bicubic2d upsample_bilinear2d upsample_linear1d
upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
"""

ALLOWED = frozenset(" ".join((_POINTWISE, _REDUCTIONS, _SHAPES, _FACTORIES, _LAYERS)).split())
"""Names of the ATen operations that a graph in a file may contain.

Their results depend only on their arguments, or on torch's random state in case of dropout. They write to no argument,
read no file and return no uninitialised memory.
"""
