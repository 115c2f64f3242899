"""Activation functions on float32 vectors, which kernels apply before they store their results.

    exp(x) = 2^n * p(r),   n = round(x / ln 2),   r = x - n * ln 2,   p a polynomial of degree 6

Other functions are computed from exp, for example silu(x) = x / (1 + exp(-x)); no function calls a maths library. For
finite inputs whose result is a normal number, the relative error is about 1e-6; for GELU it is 1e-5 where the result
is closer to 0 than 1e-6. An infinite input gives the function's limit or NaN; NaN stays NaN.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.emitter import I32, Emitter, splat_constant
from ticketry_engine.kernels.jit import ir

Activation = str | tuple[str, float] | None
"""An activation: its name, (name, parameter), or None for the identity. Kernels store activations in this form."""

_LOG2_E = 1.4426950408889634
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6
_ROUND = 12582912.0
"""1.5 * 2**23: the low bits of the float32 sum ``x + _ROUND`` hold the integer nearest to x."""

_EXP = (
    *(1.0, 1.0, 0.4999999146757567, 0.16666420344695165),
    *(0.04166836140914733, 0.008374812702164443, 0.0013829361274767455),
)
"""Coefficients of exp(r) for abs(r) <= ln(2) / 2, lowest power first: Chebyshev fit, relative error 4e-9."""

_TANH = (-0.333332871334848, 0.13331561137605988, -0.05374844201579714, 0.02066472368341192, -0.005731194760048102)
"""Coefficients of (tanh(x) - x) / x**3 in powers of x**2 for abs(x) <= 0.625: least-squares fit, relative error 5e-9.
"""

_ERFC = (
    *(0.28208347657421584, 0.28243352931485066, 0.24263226777399674, 0.20473551472076573),
    *(-0.031876625087447964, 0.2862428641999111, -0.4947925118992943, 0.28843953083919144),
    -0.05989809557173538,
)
"""Coefficients of erfc(z) * exp(z**2) / t in powers of t = 1 / (1 + z / 2), for 0 <= z <= 9.4: Chebyshev fit, relative
error 5e-8."""


def parse_activation(act: str | Mapping[str, float] | tuple[str, float] | None) -> Activation:
    """Return `act`, a name or ``{"leaky_relu": slope}``, as the hashable value that kernels store."""
    if act is None or (isinstance(act, str) and act in _PLAIN):
        return act
    if isinstance(act, Mapping) and len(act) == 1:
        act = next(iter(act.items()))
    if isinstance(act, tuple) and len(act) == 2 and act[0] in _WITH_PARAMETER:
        return act[0], float(act[1])
    raise EngineError(f"no activation {act!r} in kernels: choose from {', '.join([*_PLAIN, *_WITH_PARAMETER])}")


def activate(e: Emitter, act: str | Mapping[str, float] | tuple[str, float] | None, vector: Any) -> Any:
    """Emit code for the activation `act` of a vector of any width, and return the result.

    The code of an activation with an exponential is long, so it becomes a function in the LLVM module. A kernel then
    contains it only once per vector width.
    """
    act = parse_activation(act)
    if act is None:
        return vector
    if not isinstance(act, str):
        return _WITH_PARAMETER[act[0]](e, vector, act[1])
    if act in _WITH_EXPONENTIAL:
        return e.b.call(_call_function(e, act, _PLAIN[act], vector.type), [vector])
    return _PLAIN[act](e, vector)


def activate_all(
    e: Emitter, act: str | Mapping[str, float] | tuple[str, float] | None, vectors: Sequence[Any]
) -> list[Any]:
    """Emit the activation `act` of each vector; activations with an exponential process several vectors at once."""
    act = parse_activation(act)
    if act not in _WITH_EXPONENTIAL:
        return [activate(e, act, vector) for vector in vectors]
    most, found = _VECTORS_AT_ONCE if e.target.registers >= 32 else _VECTORS_AT_ONCE // 2, []
    for at in range(0, len(vectors), most):
        some = vectors[at : at + most]
        found += _split_vectors(e, activate(e, act, _concatenate(e, some)), len(some))
    return found


_VECTORS_AT_ONCE = 4
"""Vectors processed at once with 32 registers (half as many with 16), so that intermediate results fit in registers."""


def _concatenate(e: Emitter, vectors: Sequence[Any]) -> Any:
    """Concatenate vectors into one wide vector, padded with repeated vectors to a power of two."""
    while len(vectors) > 1:
        lanes = vectors[0].type.count
        whole = ir.Constant(ir.VectorType(I32, 2 * lanes), list(range(2 * lanes)))
        pairs = [(a, vectors[at + 1] if at + 1 < len(vectors) else a) for at, a in enumerate(vectors) if at % 2 == 0]
        vectors = [e.b.shuffle_vector(a, b, whole) for a, b in pairs]
    return vectors[0]


def _split_vectors(e: Emitter, wide: Any, count: int) -> list[Any]:
    """Split a wide vector into vectors of the target's width, and return the first `count` of them."""
    width = e.target.lanes
    if count == 1:
        return [wide]
    picks = [ir.Constant(ir.VectorType(I32, width), list(range(at * width, (at + 1) * width))) for at in range(count)]
    return [e.b.shuffle_vector(wide, wide, pick) for pick in picks]


def emit_slope(e: Emitter, act: str, vector: Any) -> Any:
    """Return the derivative of an activation at each value of a vector."""
    if act not in SLOPES:
        raise EngineError(f"no derivative of {act!r} in kernels: choose from {', '.join(SLOPES)}")
    return e.b.call(_call_function(e, f"{act}.slope", SLOPES[act], vector.type), [vector])


def _call_function(e: Emitter, what: str, write: Callable[[Emitter, Any], Any], kind: Any) -> Any:
    """Return the LLVM function named `what` for vectors of type `kind`; on first use, `write` emits its body."""
    name = f"{what}.{kind.count}"
    if name not in e.module.globals:
        function = ir.Function(e.module, ir.FunctionType(kind, [kind]), name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        builder, e.b = e.b, ir.IRBuilder(function.append_basic_block("entry"))
        e.b.ret(write(e, function.args[0]))
        e.b = builder
    return e.module.globals[name]


def relu(e: Emitter, x: Any) -> Any:
    return _max_keeping_nan(e, x, 0.0)


def relu6(e: Emitter, x: Any) -> Any:
    return _min_keeping_nan(e, _max_keeping_nan(e, x, 0.0), 6.0)


def leaky_relu(e: Emitter, x: Any, slope: float) -> Any:
    return e.select(e.b.fcmp_ordered("<", x, _constant_like(x, 0.0)), e.b.fmul(x, _constant_like(x, slope)), x)


def hardsigmoid(e: Emitter, x: Any) -> Any:
    return e.b.fmul(relu6(e, e.b.fadd(x, _constant_like(x, 3.0))), _constant_like(x, 1 / 6))


def hardswish(e: Emitter, x: Any) -> Any:
    return e.b.fmul(x, hardsigmoid(e, x))


def sigmoid(e: Emitter, x: Any) -> Any:
    one = _constant_like(x, 1.0)
    return e.b.fdiv(one, e.b.fadd(one, exp(e, e.b.fneg(x))))


def silu(e: Emitter, x: Any) -> Any:
    return e.b.fdiv(x, e.b.fadd(_constant_like(x, 1.0), exp(e, e.b.fneg(x))))


def inverse_root(e: Emitter, x: Any) -> Any:
    """Return 1 / sqrt(max(x, 1e-30)), so that padding, where x is 0, gives a finite number."""
    return e.b.fdiv(_constant_like(x, 1.0), e.intrinsic("llvm.sqrt", _max_keeping_nan(e, x, 1e-30)))


def tanh(e: Emitter, x: Any) -> Any:
    """Return tanh(x): 1 - 2 / (exp(2x) + 1), or a polynomial near 0, where that formula loses digits."""
    b = e.b
    square = b.fmul(x, x)
    near = e.fma(b.fmul(square, x), _polynomial(e, square, _TANH), x)
    size = e.intrinsic("llvm.fabs", x)
    one = _constant_like(x, 1.0)
    far = b.fsub(one, b.fdiv(_constant_like(x, 2.0), b.fadd(exp(e, b.fadd(size, size)), one)))
    return e.select(b.fcmp_ordered("<", size, _constant_like(x, 0.625)), near, e.intrinsic("llvm.copysign", far, x))


def gelu(e: Emitter, x: Any) -> Any:
    """Return x times the normal CDF, computed from erfc so that it stays accurate for very negative x."""
    b = e.b
    return b.fmul(x, _normal_cdf_and_exp(e, x)[0])


def _normal_cdf_and_exp(e: Emitter, x: Any) -> tuple[Any, Any]:
    """Return the normal CDF of x, and exp(-x²/2)."""
    b = e.b
    z = b.fmul(e.intrinsic("llvm.fabs", x), _constant_like(x, 0.7071067811865476))
    one = _constant_like(x, 1.0)
    t = b.fdiv(one, e.fma(z, _constant_like(x, 0.5), one))
    bell = exp(e, b.fneg(b.fmul(z, z)))
    tail = b.fmul(b.fmul(t, _polynomial(e, t, _ERFC)), bell)
    half = b.fmul(tail, _constant_like(x, 0.5))
    return e.select(b.fcmp_ordered("<", x, _constant_like(x, 0.0)), half, b.fsub(one, half)), bell


def gelu_tanh(e: Emitter, x: Any) -> Any:
    """Return GELU with the tanh approximation as x * sigmoid(2u), which equals x * 0.5 * (1 + tanh(u))."""
    b = e.b
    cubic = e.fma(b.fmul(x, x), _constant_like(x, 0.044715), _constant_like(x, 1.0))
    twice = b.fmul(b.fmul(x, cubic), _constant_like(x, -2 * 0.7978845608028654))
    return b.fdiv(x, b.fadd(_constant_like(x, 1.0), exp(e, twice)))


def _gelu_slope(e: Emitter, x: Any) -> Any:
    share, bell = _normal_cdf_and_exp(e, x)
    return e.fma(e.b.fmul(x, _constant_like(x, 0.3989422804014327)), bell, share)


def _gelu_tanh_slope(e: Emitter, x: Any) -> Any:
    """Return the derivative of `gelu_tanh`, s + x * s * (1 - s) * 2u' with s = sigmoid(2u)."""
    b, square, one, twice = e.b, e.b.fmul(x, x), _constant_like(x, 1.0), _constant_like(x, 2 * 0.7978845608028654)
    s = sigmoid(e, b.fmul(b.fmul(x, twice), e.fma(square, _constant_like(x, 0.044715), one)))
    inner = b.fmul(twice, e.fma(square, _constant_like(x, 3 * 0.044715), one))
    return e.fma(b.fmul(b.fmul(x, inner), s), b.fsub(one, s), s)


def _silu_slope(e: Emitter, x: Any) -> Any:
    one, s = _constant_like(x, 1.0), sigmoid(e, x)
    return e.b.fmul(s, e.fma(x, e.b.fsub(one, s), one))


def _sigmoid_slope(e: Emitter, x: Any) -> Any:
    s = sigmoid(e, x)
    return e.b.fmul(s, e.b.fsub(_constant_like(x, 1.0), s))


def _tanh_slope(e: Emitter, x: Any) -> Any:
    t = tanh(e, x)
    return e.b.fsub(_constant_like(x, 1.0), e.b.fmul(t, t))


def _slope_between(e: Emitter, x: Any, low: float, high: float, slope: float) -> Any:
    """Return `slope` for values between `low` and `high`, and 0 for any other value."""
    above, below = (e.b.fcmp_ordered(sign, x, _constant_like(x, bound)) for sign, bound in ((">", low), ("<", high)))
    return e.select(e.b.and_(above, below), _constant_like(x, slope), _constant_like(x, 0.0))


def _hardswish_slope(e: Emitter, x: Any) -> Any:
    """Return the derivative of hardswish: x / 3 + 1/2 between -3 and 3, 0 below -3, and 1 above 3."""
    middle = e.fma(x, _constant_like(x, 1 / 3), _constant_like(x, 0.5))
    outside = e.select(e.b.fcmp_ordered(">", x, _constant_like(x, 0.0)), _constant_like(x, 1.0), _constant_like(x, 0.0))
    return e.select(e.b.fcmp_ordered("<", e.intrinsic("llvm.fabs", x), _constant_like(x, 3.0)), middle, outside)


def exp(e: Emitter, x: Any) -> Any:
    """Return exp(x) as 2**n * exp(r), where n is the integer nearest to x / ln 2; x is clamped to [-87, 88.3]."""
    b = e.b
    x = _min_keeping_nan(e, _max_keeping_nan(e, x, -87.0), 88.3)
    shifted = e.fma(x, _constant_like(x, _LOG2_E), _constant_like(x, _ROUND))
    n = b.fsub(shifted, _constant_like(x, _ROUND))
    r = e.fma(n, _constant_like(x, -_LN2_HIGH), x)
    r = e.fma(n, _constant_like(x, -_LN2_LOW), r)
    integers = ir.VectorType(I32, x.type.count)
    exponent = b.shl(b.bitcast(shifted, integers), ir.Constant(integers, [23] * x.type.count))
    return b.bitcast(b.add(b.bitcast(_polynomial(e, r, _EXP), integers), exponent), x.type)


def _polynomial(e: Emitter, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Return a polynomial's value at x by Horner's rule; `coefficients` start at the lowest power."""
    value = _constant_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = e.fma(value, x, _constant_like(x, coefficient))
    return value


def _max_keeping_nan(e: Emitter, x: Any, bound: float) -> Any:
    """Return max(x, bound), or NaN where x is NaN."""
    return e.select(e.b.fcmp_ordered("<", x, _constant_like(x, bound)), _constant_like(x, bound), x)


def _min_keeping_nan(e: Emitter, x: Any, bound: float) -> Any:
    return e.select(e.b.fcmp_ordered(">", x, _constant_like(x, bound)), _constant_like(x, bound), x)


def _constant_like(like: Any, value: float) -> Any:
    """Return a vector of the type of `like` with `value`, rounded to float32, in every lane."""
    rounded = struct.unpack("f", struct.pack("f", value))[0]
    return splat_constant(like.type, rounded)


_PLAIN: dict[str, Callable[[Emitter, Any], Any]] = {
    "relu": relu,
    "relu6": relu6,
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "hardswish": hardswish,
    "hardsigmoid": hardsigmoid,
    "sigmoid": sigmoid,
    "tanh": tanh,
    "inverse_root": inverse_root,
}
SLOPES: dict[str, Callable[[Emitter, Any], Any]] = {
    "relu6": lambda e, x: _slope_between(e, x, 0.0, 6.0, 1.0),
    "silu": _silu_slope,
    "gelu": _gelu_slope,
    "gelu_tanh": _gelu_tanh_slope,
    "hardswish": _hardswish_slope,
    "hardsigmoid": lambda e, x: _slope_between(e, x, -3.0, 3.0, 1 / 6),
    "sigmoid": _sigmoid_slope,
    "tanh": _tanh_slope,
}
"""By activation name: the function that emits the activation's derivative."""
_WITH_EXPONENTIAL = {"silu", "gelu", "gelu_tanh", "sigmoid", "tanh"}
_WITH_PARAMETER: dict[str, Callable[[Emitter, Any, float], Any]] = {"leaky_relu": leaky_relu}
