"""The overloads of ATen operations that rules know: others of the same name may mean something else.

`view.dtype` reinterprets bits, where `view` changes a shape; `div.Tensor_mode` rounds; `clamp.Tensor` has bounds for
each element; `mm.dtype` makes another type. A rule is given a node only if its overload is listed here.
"""

from __future__ import annotations

from collections.abc import Mapping

_LISTED = """
conv1d default padding
conv2d default padding
convolution default
conv_transpose1d default
conv_transpose2d input
linear default
matmul default
mm default
bmm default
addmm default
batch_norm default
_native_batch_norm_legit_no_training default
layer_norm default
rms_norm default
max_pool1d default
max_pool2d default
max_pool2d_with_indices default
avg_pool1d default
avg_pool2d default
adaptive_avg_pool1d default
adaptive_avg_pool2d default
_adaptive_avg_pool2d default
scaled_dot_product_attention default
softmax int
_softmax default
mean dim
sum dim_IntList
linalg_vector_norm default
relu default
relu6 default
silu default
sigmoid default
tanh default
hardswish default
hardsigmoid default
gelu default
leaky_relu default
hardtanh default
clamp default
clamp_min default
threshold default
erf default
sqrt default
rsqrt default
square default
neg default
pow Tensor_Scalar
add Tensor Scalar
sub Tensor Scalar
rsub Tensor Scalar
mul Tensor Scalar
div Tensor Scalar
addcmul default
dropout default
feature_dropout default
alpha_dropout default
contiguous default
clone default
detach default
alias default
lift_fresh_copy default
positive default
to device dtype other dtype_layout
_to_copy default
type_as default
expand default
expand_as default
view default
view_copy default
view_as default
_unsafe_view default
reshape default
reshape_as default
flatten using_ints
unflatten int
squeeze default dim dims
unsqueeze default
permute default
transpose int
swapaxes default
swapdims default
movedim int intlist
moveaxis int intlist
mT default
t default
slice Tensor
narrow default
select int
split Tensor sizes
split_with_sizes default
chunk default
unbind int
cat default
concat default
concatenate default
stack default
roll default
pad default
constant_pad_nd default
repeat_interleave self_int
channel_shuffle default
upsample_nearest2d default vec
upsample_bilinear2d default vec
upsample_bicubic2d default vec
new_zeros default
new_ones default
new_full default
"""

OVERLOADS: Mapping[str, frozenset[str]] = {
    name: frozenset(overloads) for name, *overloads in (line.split() for line in _LISTED.strip().splitlines())
}
"""Name of an operation -> its overloads that have the meaning which rules read"""
