"""The ATen operations that a graph in a file may have: functions of their arguments alone (and of torch's random state,
where a model drops out in use), which write to none of them, read no file and give no memory that nobody has written.
"""

from __future__ import annotations

_POINTWISE = """
__and__ __or__ __xor__ __lshift__ __rshift__ diff bitwise_left_shift bitwise_right_shift
_to_copy abs acos add addcdiv addcmul alias alpha_dropout asin atan atan2 bitwise_and bitwise_not bitwise_or
bitwise_xor ceil celu clamp clamp_max clamp_min clone contiguous copysign cos cosh cumprod cumsum detach div divide
dropout elu eq erf erfc exp expm1 feature_dropout fill float_power floor floor_divide fmod frac ge gelu glu greater
greater_equal gt hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan le leaky_relu lerp less less_equal
lift_fresh_copy log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or logical_xor logit lt
masked_fill maximum minimum mish mul multiply nan_to_num ne neg not_equal positive pow prelu reciprocal relu relu6
remainder round rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus softshrink sqrt square sub subtract tan
tanh threshold to true_divide trunc type_as where xlogy
"""

_REDUCTIONS = """
_log_softmax _softmax all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin kthvalue
linalg_vector_norm log_softmax logcumsumexp logsumexp max mean median min norm prod softmax sort std std_mean sum topk
var var_mean
"""

_SHAPES = """
_shape_as_tensor _unsafe_view adjoint as_strided_copy atleast_1d atleast_2d atleast_3d block_diag broadcast_to
bucketize cartesian_prod cat cdist channel_shuffle chunk col2im column_stack concat concatenate constant_pad_nd cross
diag_embed diagonal dsplit dstack embedding expand expand_as expand_copy flatten flip fliplr flipud gather hsplit
hstack im2col index index_add index_put index_select isin mT masked_scatter masked_select meshgrid moveaxis movedim
narrow nonzero nonzero_static numpy_T one_hot pad permute permute_copy pixel_shuffle pixel_unshuffle ravel repeat
repeat_interleave reshape reshape_as roll rot90 scatter scatter_add searchsorted select select_scatter slice
slice_scatter split split_with_sizes squeeze stack swapaxes swapdims t take_along_dim tensor tensor_split tile
transpose tril triu unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze view view_as view_copy vsplit vstack
"""

_FACTORIES = """
arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor tril_indices triu_indices
zeros zeros_like
"""

_LAYERS = """
_adaptive_avg_pool2d _fft_c2r _fft_r2c _native_batch_norm_legit_no_training
_scaled_dot_product_flash_attention_for_cpu _upsample_bicubic2d_aa _upsample_bilinear2d_aa adaptive_avg_pool1d
adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addbmm addmm addmv addr
affine_grid_generator avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bmm chain_matmul conv1d conv2d
conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution cosine_similarity dot einsum grid_sampler
grid_sampler_2d group_norm gru gru_cell inner instance_norm kron layer_norm linalg_matmul linalg_norm linear lstm
lstm_cell matmul max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mm mv native_batch_norm native_group_norm
native_layer_norm outer reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
replication_pad3d rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell scaled_dot_product_attention sym_numel
sym_size tensordot upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
upsample_nearest3d upsample_trilinear3d
"""

ALLOWED = frozenset(" ".join((_POINTWISE, _REDUCTIONS, _SHAPES, _FACTORIES, _LAYERS)).split())
