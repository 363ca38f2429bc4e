"""What a graph read from a file may call: overloads of aten and a few scalar operators, by name, nothing else.

Left out on purpose: whatever draws random numbers (dropout apart, which is refused in training mode), reads or writes
files, resizes, sets storages, returns uninitialised memory (`empty`) or has a size that depends on values (`nonzero`);
and, tried with torch 2.13, what reads past the end of its tensors when sizes do not fit: `_reshape_alias`, the
`native_batch_norm` family, the CPU flash attention and the antialiased upsampling (batch_norm and
scaled_dot_product_attention stand for the first two).
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable

import torch

_ATEN = frozenset(
    """
    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding convolution.default
    conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input conv_tbc.default

    linear.default matmul.default mm.default mm.dtype bmm.default bmm.dtype addmm.default addmm.dtype
    addmm_.default baddbmm.default baddbmm.dtype baddbmm_.default addbmm.default addmv.default mv.default
    dot.default vdot.default inner.default outer.default ger.default einsum.default tensordot.default kron.default
    chain_matmul.default linalg_vecdot.default linalg_matmul.default bilinear.default cross.default
    linalg_cross.default cdist.default _cdist_forward.default

    batch_norm.default instance_norm.default layer_norm.default group_norm.default rms_norm.default
    _fused_rms_norm.default native_layer_norm.default native_group_norm.default norm.Scalar norm.ScalarOpt_dim
    norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype linalg_norm.default linalg_norm.ord_str
    linalg_vector_norm.default cosine_similarity.default pairwise_distance.default

    relu.default relu_.default relu6.default relu6_.default leaky_relu.default leaky_relu_.default elu.default
    elu_.default selu.default selu_.default celu.default celu_.default gelu.default gelu_.default silu.default
    silu_.default mish.default mish_.default hardswish.default hardswish_.default hardsigmoid.default
    hardsigmoid_.default hardtanh.default hardtanh_.default softplus.default softshrink.default hardshrink.default
    threshold.default threshold_.default prelu.default _prelu_kernel.default rrelu.default rrelu_.default
    glu.default log_sigmoid.default sigmoid.default sigmoid_.default tanh.default tanh_.default softmax.int
    _softmax.default log_softmax.int _log_softmax.default logsumexp.default logit.default

    max_pool1d.default max_pool2d.default max_pool3d.default max_pool1d_with_indices.default
    max_pool2d_with_indices.default max_pool3d_with_indices.default avg_pool1d.default avg_pool2d.default
    avg_pool3d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
    _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default adaptive_max_pool1d.default
    adaptive_max_pool2d.default adaptive_max_pool3d.default

    upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default upsample_nearest2d.vec
    upsample_nearest3d.default upsample_nearest3d.vec _upsample_nearest_exact1d.default
    _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec
    _upsample_nearest_exact3d.default _upsample_nearest_exact3d.vec upsample_linear1d.default
    upsample_linear1d.vec upsample_bilinear2d.default upsample_bilinear2d.vec upsample_bicubic2d.default
    upsample_bicubic2d.vec upsample_trilinear3d.default upsample_trilinear3d.vec pixel_shuffle.default
    pixel_unshuffle.default channel_shuffle.default grid_sampler.default affine_grid_generator.default
    im2col.default col2im.default unfold.default

    view.default view.dtype _unsafe_view.default reshape.default reshape_as.default view_as.default
    flatten.using_ints unflatten.int ravel.default squeeze.default squeeze.dim squeeze.dims squeeze_.default
    squeeze_.dim squeeze_.dims unsqueeze.default unsqueeze_.default permute.default transpose.int
    transpose_.default t.default t_.default numpy_T.default numpy_T.a mT.default mT.a swapaxes.default
    swapdims.default movedim.int movedim.intlist moveaxis.intlist moveaxis.int expand.default expand_as.default
    broadcast_to.default broadcast_tensors.default repeat.default repeat_interleave.Tensor
    repeat_interleave.self_Tensor repeat_interleave.self_int tile.default flip.default fliplr.default
    flipud.default roll.default rot90.default narrow.default narrow.Tensor select.int slice.Tensor split.Tensor
    split.sizes split.default split_with_sizes.default chunk.default tensor_split.sections tensor_split.indices
    tensor_split.tensor_indices_or_sections hsplit.int hsplit.array vsplit.int vsplit.array dsplit.int
    dsplit.array unbind.int unsafe_chunk.default unsafe_split.Tensor unsafe_split_with_sizes.default cat.default
    concat.default concatenate.default stack.default hstack.default vstack.default dstack.default
    column_stack.default atleast_1d.default atleast_1d.Sequence atleast_2d.default atleast_2d.Sequence
    atleast_3d.default atleast_3d.Sequence meshgrid.default meshgrid.indexing diagonal.default diag.default
    diag_embed.default tril.default tril_.default triu.default triu_.default pad.default constant_pad_nd.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default replication_pad1d.default
    replication_pad2d.default replication_pad3d.default _pad_circular.default _pad_enum.default
    select_scatter.default slice_scatter.default diagonal_scatter.default view_copy.default view_copy.dtype
    expand_copy.default permute_copy.default select_copy.int slice_copy.Tensor squeeze_copy.default
    squeeze_copy.dim squeeze_copy.dims unsqueeze_copy.default transpose_copy.int t_copy.default split_copy.Tensor
    split_with_sizes_copy.default unbind_copy.int alias_copy.default detach_copy.default sum_to_size.default

    index.Tensor index.Tensor_hacked_twin _unsafe_index.Tensor _unsafe_index.Tensor_hacked_twin
    index_select.default index_put.default index_put.hacked_twin index_put_.default index_put_.hacked_twin
    _unsafe_index_put.default _unsafe_index_put.hacked_twin index_add.default index_add_.default
    index_copy.default index_copy_.default index_fill.int_Tensor index_fill.int_Scalar index_fill_.int_Tensor
    index_fill_.int_Scalar gather.default scatter.value scatter.src scatter.reduce scatter.value_reduce
    scatter_.src scatter_.value scatter_.reduce scatter_.value_reduce scatter_add.default scatter_add_.default
    scatter_reduce.two scatter_reduce_.two take.default take_along_dim.default masked_fill.Scalar
    masked_fill.Tensor masked_fill_.Scalar masked_fill_.Tensor masked_scatter.default where.self where.ScalarOther
    where.ScalarSelf where.Scalar where.default clamp.default clamp.Tensor clamp_.default clamp_.Tensor
    clamp_min.default clamp_min.Tensor clamp_min_.default clamp_min_.Tensor clamp_max.default clamp_max.Tensor
    clamp_max_.default clamp_max_.Tensor clip.default clip.Tensor clip_.default clip_.Tensor nan_to_num.default
    nan_to_num_.default one_hot.default bucketize.Tensor bucketize.Scalar searchsorted.Tensor searchsorted.Scalar

    sum.dim_IntList sum.default mean.default mean.dim std.default std.dim std.correction var.default var.dim
    var.correction var_mean.default var_mean.dim var_mean.correction std_mean.default std_mean.dim
    std_mean.correction amax.default amin.default aminmax.default max.other max.default max.dim min.other
    min.default min.dim argmax.default argmin.default prod.default prod.dim_int all.default all.dim all.dims
    any.default any.dim any.dims median.default median.dim nanmedian.default nanmedian.dim mode.default
    cumsum.default cumsum_.default cumprod.default cumprod_.default cummax.default cummin.default
    logcumsumexp.default topk.default sort.default sort.stable argsort.default argsort.stable kthvalue.default
    count_nonzero.default count_nonzero.dim_IntList nansum.default nanmean.default quantile.default
    quantile.scalar nanquantile.default nanquantile.scalar diff.default trapezoid.x trapezoid.dx trapz.x trapz.dx

    add.Tensor add.Scalar add_.Tensor add_.Scalar sub.Tensor sub.Scalar sub_.Tensor sub_.Scalar rsub.Tensor
    rsub.Scalar mul.Tensor mul.Scalar mul_.Tensor mul_.Scalar div.Tensor div.Scalar div.Tensor_mode
    div.Scalar_mode div_.Tensor div_.Tensor_mode div_.Scalar div_.Scalar_mode divide.Tensor divide.Scalar
    divide.Tensor_mode divide.Scalar_mode true_divide.Tensor true_divide.Scalar floor_divide.default
    floor_divide.Scalar remainder.Tensor remainder.Scalar remainder.Scalar_Tensor remainder_.Tensor
    remainder_.Scalar fmod.Tensor fmod.Scalar pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar pow_.Scalar
    pow_.Tensor neg.default neg_.default negative.default positive.default abs.default abs_.default
    absolute.default sign.default sgn.default square.default square_.default sqrt.default sqrt_.default
    rsqrt.default rsqrt_.default reciprocal.default reciprocal_.default exp.default exp_.default exp2.default
    expm1.default log.default log_.default log2.default log10.default log1p.default sin.default sin_.default
    cos.default cos_.default tan.default asin.default acos.default atan.default atan2.default sinh.default
    cosh.default asinh.default acosh.default atanh.default erf.default erf_.default erfc.default erfinv.default
    lerp.Scalar lerp.Tensor lerp_.Scalar lerp_.Tensor addcmul.default addcmul_.default addcdiv.default
    addcdiv_.default hypot.default floor.default floor_.default ceil.default ceil_.default round.default
    round.decimals round_.default round_.decimals trunc.default trunc_.default frac.default maximum.default
    minimum.default fmax.default fmin.default logaddexp.default logaddexp2.default xlogy.Tensor xlogy.Scalar_Other
    xlogy.Scalar_Self special_xlogy.default special_xlogy.other_scalar special_xlogy.self_scalar
    special_expit.default special_erf.default special_logit.default special_softmax.default
    special_log_softmax.default sinc.default special_sinc.default multiply.Tensor multiply.Scalar multiply_.Tensor
    multiply_.Scalar subtract.Tensor subtract.Scalar subtract_.Tensor subtract_.Scalar deg2rad.default
    rad2deg.default copysign.Tensor copysign.Scalar heaviside.default

    eq.Tensor eq.Scalar eq_.Scalar eq_.Tensor ne.Tensor ne.Scalar ne_.Scalar ne_.Tensor lt.Tensor lt.Scalar
    le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar isnan.default isinf.default isfinite.default
    isclose.default logical_and.default logical_and_.default logical_or.default logical_or_.default
    logical_not.default logical_not_.default logical_xor.default bitwise_and.Tensor bitwise_and.Scalar
    bitwise_and.Scalar_Tensor bitwise_or.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_not.default
    bitwise_xor.Tensor bitwise_xor.Scalar bitwise_xor.Scalar_Tensor bitwise_left_shift.Tensor
    bitwise_left_shift.Tensor_Scalar bitwise_left_shift.Scalar_Tensor bitwise_right_shift.Tensor
    bitwise_right_shift.Tensor_Scalar bitwise_right_shift.Scalar_Tensor __and__.Scalar __and__.Tensor
    __or__.Tensor __or__.Scalar __xor__.Tensor __xor__.Scalar __lshift__.Tensor __lshift__.Scalar
    __rshift__.Tensor __rshift__.Scalar greater.Tensor greater.Scalar greater_equal.Tensor greater_equal.Scalar
    less.Tensor less.Scalar less_equal.Tensor less_equal.Scalar not_equal.Tensor not_equal.Scalar
    isin.Tensor_Tensor isin.Tensor_Scalar isin.Scalar_Tensor

    embedding.default embedding_bag.default embedding_bag.padding_idx

    lstm.input gru.input rnn_tanh.input rnn_relu.input lstm_cell.default gru_cell.default rnn_tanh_cell.default
    rnn_relu_cell.default

    scaled_dot_product_attention.default _safe_softmax.default

    arange.default arange.start arange.start_step linspace.Tensor_Tensor linspace.Tensor_Scalar
    linspace.Scalar_Tensor linspace.default zeros.default ones.default full.default zeros_like.default
    ones_like.default full_like.default new_zeros.default new_ones.default new_full.default scalar_tensor.default
    eye.default eye.m fill.Scalar fill.Tensor fill_.Scalar fill_.Tensor zero.default zero_.default copy.default
    copy_.default copy_.Tensor copy_.int copy_.float tril_indices.default triu_indices.default hann_window.default
    hann_window.periodic

    to.device to.dtype to.other to.prim_Device to.prim_dtype to.prim_other type_as.default _to_copy.default
    clone.default contiguous.default detach.default detach_.default alias.default lift.default lift_fresh.default
    lift_fresh_copy.default dropout.default dropout_.default native_dropout.default feature_dropout.default
    alpha_dropout.default alpha_dropout_.default feature_alpha_dropout.default _conj_physical.default
    resolve_conj.default resolve_neg.default

    sym_size.int sym_stride.int sym_numel.default sym_storage_offset.default
    """.split()
)

# Checks that torch.export puts into the graph. They guard sizes, which `InputSpec` carries too, and return nothing.
DROPPED = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_async.default",
        "_assert_async.msg",
        "_assert_scalar.default",
        "_assert_tensor_metadata.default",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
    )
)

# Arithmetic on sizes: name in the file -> (function, number of arguments). No pow, no shifts: they make huge numbers.
SCALAR_OPERATORS: dict[str, tuple[Callable[..., object], int]] = {
    "_operator.add": (operator.add, 2),
    "_operator.sub": (operator.sub, 2),
    "_operator.mul": (operator.mul, 2),
    "_operator.floordiv": (operator.floordiv, 2),
    "_operator.truediv": (operator.truediv, 2),
    "_operator.mod": (operator.mod, 2),
    "_operator.neg": (operator.neg, 1),
    "_operator.pos": (operator.pos, 1),
    "_operator.eq": (operator.eq, 2),
    "_operator.ne": (operator.ne, 2),
    "_operator.lt": (operator.lt, 2),
    "_operator.le": (operator.le, 2),
    "_operator.gt": (operator.gt, 2),
    "_operator.ge": (operator.ge, 2),
    "_operator.and_": (operator.and_, 2),
    "_operator.or_": (operator.or_, 2),
    "math.trunc": (math.trunc, 1),
    "math.floor": (math.floor, 1),
    "math.ceil": (math.ceil, 1),
    "torch.sym_int": (torch.sym_int, 1),
    "torch.sym_float": (torch.sym_float, 1),
    "torch.sym_max": (torch.sym_max, 2),
    "torch.sym_min": (torch.sym_min, 2),
    "torch.sym_not": (torch.sym_not, 1),
    "torch.sym_ite": (torch.sym_ite, 3),
}

# Return their input, or a view of it, although their schema does not say so.
HIDDEN_ALIASES = frozenset(
    {
        "aten::dropout", "aten::feature_dropout", "aten::alpha_dropout", "aten::feature_alpha_dropout", "aten::type_as",
        "aten::broadcast_tensors", "aten::meshgrid", "aten::einsum", "aten::sum_to_size", "aten::atleast_1d",
        "aten::atleast_2d", "aten::atleast_3d",
    }
)  # fmt: skip


@functools.cache
def aten_operator(name: str) -> torch._ops.OpOverload | None:
    """The operator of a name such as "torch.ops.aten.conv2d.default"; None: not on the list.

    The attribute look-up sees strings of the list above only, never one made up by a file.
    """
    short = name.removeprefix("torch.ops.aten.")
    if short == name or short not in _ATEN:
        return None
    packet, overload = short.split(".")
    # An overload that this torch does not have counts as not listed.
    return getattr(getattr(torch.ops.aten, packet, None), overload, None)
