"""Which ops count zero MACs by convention: named here, one set per reason, or by one of three rules.

The rules: an op of a namespace of communication alone; an aten op tagged ``torch.Tag.pointwise`` (a custom op by its
own tag); an aten op that returns a view of its argument. An in-place op counts as the op it is the in-place form of.

What is neither here nor has a formula is unknown, also in a later torch: no new op is silently zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._ops import OpOverload, OpOverloadPacket


def _in(namespace: str, names: str) -> frozenset[str]:
    return frozenset(f"{namespace}::{name}" for name in names.split())


NAMESPACES = frozenset(
    {"c10d", "_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "_dtensor", "fsdp", "streams"}
)
"""Namespaces of communication alone. ``symm_mem`` is not one: it also fuses collectives with matrix products."""

ELEMENT_WISE = _in(
    "aten",
    """
    __and__ __iand__ __ior__ __irshift__ __or__ _add_relu _efficientzerotensor _masked_scale
    _transform_bias_rescale_qkv absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh chalf complex divide
    fix floor_divide greater greater_equal hardswish isclose isreal less less_equal mish_backward multiply negative
    not_equal polar prelu _prelu_kernel _prelu_kernel_backward subtract special_digamma special_erf special_erfc
    special_erfinv special_exp2 special_expit special_expm1 special_gammainc special_gammaincc special_gammaln
    special_i0 special_log1p special_logit special_multigammaln special_ndtr special_polygamma special_psi
    special_round special_sinc special_xlogy elu_backward glu glu_backward glu_backward_jvp glu_jvp
    hardshrink_backward hardsigmoid_backward hardswish_backward hardtanh_backward
    infinitely_differentiable_gelu_backward leaky_relu_backward log_sigmoid log_sigmoid_backward log_sigmoid_forward
    rrelu_with_noise rrelu_with_noise_backward rrelu_with_noise_functional softplus_backward softshrink_backward
    gradient diff _foreach_abs _foreach_acos _foreach_add _foreach_addcdiv _foreach_addcmul _foreach_asin
    _foreach_atan _foreach_ceil _foreach_clamp_max _foreach_clamp_min _foreach_cos _foreach_cosh _foreach_div
    _foreach_erf _foreach_erfc _foreach_exp _foreach_expm1 _foreach_floor _foreach_frac _foreach_lerp
    _foreach_lgamma _foreach_log _foreach_log10 _foreach_log1p _foreach_log2 _foreach_maximum _foreach_minimum
    _foreach_mul _foreach_neg _foreach_pow _foreach_reciprocal _foreach_round _foreach_rsqrt _foreach_sigmoid
    _foreach_sign _foreach_sin _foreach_sinh _foreach_sqrt _foreach_sub _foreach_tan _foreach_tanh _foreach_trunc
""",
) | _in(
    "prims",
    """
    abs acos acosh add asin asinh atan atan2 atanh bessel_i0 bessel_i0e bessel_i1 bessel_i1e bessel_j0 bessel_j1
    bitwise_and bitwise_not bitwise_or bitwise_xor cbrt ceil conj_physical cos cosh digamma div eq erf erf_inv erfc
    erfcx exp exp2 expm1 floor fmax fmin fmod frexp gcd ge gt hypot igamma igammac isfinite le lgamma log log10 log1p
    log2 lt maximum minimum mul ndtri ne neg nextafter pow reciprocal remainder round rsqrt shift_left
    shift_right_arithmetic sign signbit sin sinh spherical_bessel_j0 sqrt sub tan tanh trunc where zeta
""",
)
"""Those of ``prims`` run where torch decomposes an op, as it does for the bias in the forward mode of ``linear``."""

OUTER_PRODUCTS = _in("aten", "addr ger kron linalg_cross cross linalg_vander outer vander")
"""Every product is an element of the result: nothing is summed."""

GATES = _in(
    "aten",
    """
    _thnn_differentiable_gru_cell_backward _thnn_differentiable_lstm_cell_backward _thnn_fused_gru_cell
    _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward
    _thnn_fused_lstm_cell_backward_impl
""",
)
"""The element-wise part of a recurrent cell; its matrix products are ops of their own."""

SOFTMAX = _in(
    "aten",
    """
    _log_softmax _log_softmax_backward_data _masked_softmax _masked_softmax_backward
    _nested_tensor_softmax_with_shape _safe_softmax _softmax _softmax_backward_data _sparse_log_softmax
    _sparse_log_softmax_backward_data _sparse_softmax _sparse_softmax_backward_data log_softmax softmax
    special_log_softmax special_softmax
""",
)

NORMALIZATION = _in(
    "aten",
    """
    _batch_norm_impl_index _batch_norm_impl_index_backward _batch_norm_no_update _batch_norm_with_update
    _batch_norm_with_update_functional _fused_rms_norm _fused_rms_norm_backward _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _weight_norm
    _weight_norm_differentiable_backward _weight_norm_interface _weight_norm_interface_backward batch_norm
    batch_norm_backward batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt
    batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats
    cudnn_batch_norm cudnn_batch_norm_backward group_norm instance_norm layer_norm miopen_batch_norm
    miopen_batch_norm_backward native_batch_norm native_batch_norm_backward native_group_norm
    native_group_norm_backward native_layer_norm native_layer_norm_backward quantized_batch_norm renorm rms_norm
""",
)

LOSSES = _in(
    "aten",
    """
    _ctc_loss _ctc_loss_backward _cudnn_ctc_loss binary_cross_entropy binary_cross_entropy_backward
    binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy_loss ctc_loss hinge_embedding_loss
    huber_loss huber_loss_backward kl_div l1_loss margin_ranking_loss miopen_ctc_loss mse_loss mse_loss_backward
    multi_margin_loss multi_margin_loss_backward multilabel_margin_loss multilabel_margin_loss_backward
    multilabel_margin_loss_forward nll_loss nll_loss2d nll_loss2d_backward nll_loss2d_forward nll_loss_backward
    nll_loss_forward nll_loss_nd poisson_nll_loss smooth_l1_loss smooth_l1_loss_backward soft_margin_loss
    soft_margin_loss_backward triplet_margin_loss
""",
)

REDUCTIONS = _in(
    "aten",
    """
    _aminmax _coalesce _coalesced _cummax_helper _cummin_helper _foreach_max _foreach_norm _foreach_powsum
    _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _is_all_true _is_any_true
    _logcumsumexp _nested_sum_backward _segment_reduce_backward _sparse_csr_prod _sparse_csr_sum _sparse_sum
    _sparse_sum_backward _unique _unique2 all allclose amax amin aminmax any argmax argmin argsort bincount
    cosine_similarity count_nonzero cummax cummaxmin_backward cummin cumprod cumprod_backward cumsum
    cumulative_trapezoid dist frobenius_norm hash_tensor histc histogram histogramdd isin kthvalue linalg__powsum
    linalg_vector_norm logcumsumexp logsumexp mean median mode msort nanmean nanmedian nanquantile nansum
    native_norm norm norm_except_dim pairwise_distance prod quantile segment_reduce sort special_logsumexp std
    std_mean sum sum_to_size topk trace trace_backward trapezoid trapz unique_consecutive unique_dim
    unique_dim_consecutive value_selecting_reduction_backward var var_mean
""",
) | _in("prims", "amax amin prod sum var xor_sum")

DISTANCES = _in("aten", "_cdist_backward _pdist_backward _pdist_forward pdist")
"""A reduction of element-wise differences. ``cdist`` has a formula, as it may run as a matrix product."""

POOLING = _in(
    "aten",
    """
    _adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_avg_pool3d_backward adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward avg_pool1d
    avg_pool2d avg_pool2d_backward avg_pool3d avg_pool3d_backward fractional_max_pool2d
    fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward max_pool1d
    max_pool1d_with_indices max_pool2d max_pool2d_backward max_pool2d_with_indices max_pool2d_with_indices_backward
    max_pool3d max_pool3d_with_indices max_pool3d_with_indices_backward max_unpool2d max_unpool3d
    mkldnn_adaptive_avg_pool2d mkldnn_adaptive_avg_pool2d_backward mkldnn_max_pool2d mkldnn_max_pool2d_backward
    mkldnn_max_pool3d mkldnn_max_pool3d_backward quantized_max_pool1d quantized_max_pool2d quantized_max_pool3d
""",
) | _in("torchvision", "ps_roi_pool _ps_roi_pool_backward roi_pool _roi_pool_backward nms")

INTERPOLATION = _in(
    "aten",
    """
    _grid_sampler_2d_cpu_fallback _grid_sampler_2d_cpu_fallback_backward _upsample_bicubic2d_aa
    _upsample_bicubic2d_aa_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward _upsample_lanczos2d_aa
    _upsample_lanczos2d_aa_backward _upsample_nearest_exact1d _upsample_nearest_exact1d_backward
    _upsample_nearest_exact2d _upsample_nearest_exact2d_backward _upsample_nearest_exact3d
    _upsample_nearest_exact3d_backward cudnn_grid_sampler cudnn_grid_sampler_backward grid_sampler grid_sampler_2d
    grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward upsample_bicubic2d upsample_bicubic2d_backward
    upsample_bilinear2d upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
    upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_nearest3d_backward upsample_trilinear3d upsample_trilinear3d_backward
""",
) | _in("torchvision", "ps_roi_align _ps_roi_align_backward roi_align _roi_align_backward")

LOOK_UPS = _in(
    "aten",
    """
    _embedding_bag _embedding_bag_backward _embedding_bag_dense_backward _embedding_bag_forward_only
    _embedding_bag_per_sample_weights_backward _embedding_bag_sparse_backward _gather_sparse_backward
    _index_put_impl _nested_select_backward _pack_padded_sequence _pack_padded_sequence_backward
    _pad_packed_sequence _spdiags _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate argwhere as_strided_scatter bucketize col2im diagonal_backward
    diagonal_scatter embedding embedding_backward embedding_bag embedding_dense_backward embedding_renorm
    embedding_sparse_backward fill_diagonal_ gather gather_backward im2col index index_add index_copy index_fill
    index_put index_reduce index_select index_select_backward lu_unpack masked_scatter masked_scatter_backward
    masked_select masked_select_backward nonzero nonzero_numpy nonzero_static one_hot put scatter scatter_add
    scatter_reduce searchsorted select_backward select_scatter slice_backward slice_scatter sparse_mask
    _sparse_mask_projection take take_along_dim tril triu unfold_backward
""",
) | _in("flex_lib", "zeros_and_scatter")
"""Embeddings, gathers, scatters and other indexing, with the additions of ``index_add`` and an embedding's backward."""

COPIES = _in(
    "aten",
    """
    _cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short _chunk_cat _conj_copy
    _copy_from _copy_from_and_resize _foreach_clone _foreach_copy _foreach_zero _fw_primal_copy _indices_copy
    _jagged_to_padded_dense_forward _lazy_clone _make_dual_copy _neg_view_copy _nested_from_padded
    _nested_from_padded_and_nested_example _nested_from_padded_tensor _nested_get_values_copy
    _nested_tensor_from_mask _nested_tensor_from_tensor_list _nested_view_from_buffer_copy
    _nested_view_from_jagged_copy _pad_circular _pad_enum _padded_dense_to_jagged_forward _pin_memory
    _reshape_alias_copy _reshape_copy _stack _to_copy _to_cpu _unsafe_view _values_copy alias_copy as_strided_copy
    atleast_1d atleast_2d atleast_3d block_diag broadcast_tensors cartesian_prod cat ccol_indices_copy
    channel_shuffle col_indices_copy column_stack combinations concat concatenate constant_pad_nd copy
    crow_indices_copy data detach_copy diag diag_embed diagflat diagonal_copy dstack expand_copy fft_fftshift
    fft_ifftshift fill flatten_dense_tensors flip fliplr flipud hstack indices_copy item lift lift_fresh_copy
    _local_scalar_dense meshgrid narrow_copy native_channel_shuffle nested_to_padded_tensor pad pad_sequence
    permute_copy pixel_shuffle pixel_unshuffle reflection_pad1d reflection_pad1d_backward reflection_pad2d
    reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward repeat repeat_interleave replication_pad1d
    replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
    replication_pad3d_backward roll rot90 row_indices_copy row_stack select_copy slice_copy split_copy
    split_with_sizes_copy squeeze_copy stack t_copy tile to_padded_tensor transpose_copy type_as unbind_copy
    unflatten_dense_tensors unfold_copy unsafe_chunk unsafe_split unsafe_split_with_sizes unsqueeze_copy values_copy
    view_as_complex_copy view_as_real_copy view_copy vstack zero
""",
) | _in(
    "prims",
    "as_strided_scatter cat clone collapse convert_element_type copy_strided copy_to device_put fill item reshape rev",
)
"""With changes of dtype and device, padding, and reordering."""

VIEWS = _in(
    "prims",
    """
    as_strided broadcast_in_dim collapse_view conj imag real split_dim squeeze transpose view_of view_of_dtype
""",
)
"""Those of aten are zero by rule."""

LAYOUTS = (
    _in(
        "aten",
        """
        _convert_indices_from_coo_to_csr _convert_indices_from_csr_to_coo _convert_weight_to_int4pack
        _convert_weight_to_int4pack_for_cpu _cudnn_rnn_flatten_weight _dyn_quant_pack_4bit_weight _mkldnn_reshape
        _mkldnn_transpose _reshape_from_tensor _saturate_weight_to_fp16 _sparse_broadcast_to_copy
        _sparse_bsc_tensor_unsafe _sparse_bsr_tensor_unsafe _sparse_compressed_tensor_unsafe
        _sparse_compressed_tensor_with_dims _sparse_coo_tensor_unsafe _sparse_coo_tensor_with_dims
        _sparse_coo_tensor_with_dims_and_tensors _sparse_csc_tensor_unsafe _sparse_csr_tensor_unsafe _to_dense
        _to_sparse _to_sparse_bsc _to_sparse_bsr _to_sparse_csc _to_sparse_csr _wrapped_linear_prepack
        copy_sparse_to_sparse fbgemm_pack_gemm_matrix_fp16 fbgemm_pack_quantized_matrix mkldnn_reorder_conv2d_weight
        mkldnn_reorder_conv3d_weight sparse_bsc_tensor sparse_bsr_tensor sparse_compressed_tensor sparse_coo_tensor
        sparse_csc_tensor sparse_csr_tensor to_dense to_dense_backward to_mkldnn to_mkldnn_backward to_sparse
        to_sparse_bsc to_sparse_bsr to_sparse_csc to_sparse_csr
""",
    )
    | _in("mkl", "_mkl_reorder_linear_weight")
    | _in(
        "mkldnn",
        """
        _reorder_convolution_transpose_weight _reorder_convolution_weight _reorder_linear_weight
        _reorder_mkldnn_rnn_layer_weight
""",
    )
    | _in("onednn", "linear_prepack_fp16 qconv_prepack qlinear_prepack")
)
"""Packing, and changes between dense, sparse and prepacked."""

QUANTIZATION = _in(
    "aten",
    """
    _choose_qparams_per_tensor _empty_affine_quantized _empty_per_channel_affine_quantized
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_channel_affine_backward
    _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_tensor_affine_backward
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper
    _fused_moving_avg_obs_fq_helper_functional _make_per_channel_quantized_tensor _make_per_tensor_quantized_tensor
    _rowwise_prune choose_qparams_optimized dequantize empty_quantized fake_quantize_per_channel_affine
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_channel_affine_cachemask_backward
    fake_quantize_per_tensor_affine fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_tensor_affine_cachemask_backward fbgemm_linear_quantize_weight fused_moving_avg_obs_fake_quant
    int_repr q_per_channel_axis q_per_channel_scales q_per_channel_zero_points q_scale q_zero_point qscheme
    quantize_per_channel quantize_per_tensor quantize_per_tensor_dynamic
""",
) | _in("quantization", "_Bfloat16QuantizedToFloat _FloatToBfloat16Quantized")

FACTORIES = _in(
    "aten",
    """
    _dim_arange _new_zeros_with_same_feature_meta arange bartlett_window blackman_window empty empty_like
    empty_permuted empty_strided eye fft_fftfreq fft_rfftfreq from_file full full_like hamming_window hann_window
    kaiser_window linspace logspace new_empty new_empty_strided new_full new_ones new_zeros ones ones_like range
    scalar_tensor tril_indices triu_indices zeros zeros_like
""",
) | _in("prims", "empty empty_permuted empty_strided full full_like iota scalar_tensor")

RANDOM = _in(
    "aten",
    """
    _cudnn_init_dropout_state _dirichlet_grad _fill_mem_eff_dropout_mask_ _fused_dropout _philox_key_fold_in
    _philox_key_split _philox_normal _philox_uniform _sample_dirichlet _sobol_engine_draw _sobol_engine_ff_
    _sobol_engine_initialize_state_ _sobol_engine_scramble_ _standard_gamma _standard_gamma_grad alpha_dropout
    bernoulli binomial cauchy dropout exponential feature_alpha_dropout feature_dropout geometric log_normal
    multinomial native_dropout normal normal_functional poisson rand rand_like randint randint_like randn randn_like
    random randperm uniform
""",
) | frozenset({"rngprims::philox_rand", "prims::normal", "prims::uniform"})

OPTIMIZERS = _in(
    "aten",
    """
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale _fused_adagrad _fused_adam _fused_adamw _fused_sgd
""",
)

COLLECTIVES = _in(
    "symm_mem",
    """
    _barrier _low_contention_all_gather _low_contention_reduce_scatter _rendezvous get_remote_tensors
    all_to_all_vdev all_to_all_vdev_2d all_to_all_vdev_2d_offset memset32_ multi_root_tile_reduce
    multimem_all_gather_out multimem_all_reduce_ multimem_one_shot_all_reduce multimem_one_shot_all_reduce_out
    multimem_one_shot_reduce_out nccl_get nccl_put nccl_put_signal nccl_put_with_signal nccl_reduce_scatter_offset
    nccl_wait_for_signal nccl_wait_signal nvshmem_all_to_all nvshmem_broadcast nvshmem_get nvshmem_put
    nvshmem_put_with_signal nvshmem_wait_for_signal one_shot_all_reduce one_shot_all_reduce_copy
    one_shot_all_reduce_copy_out one_shot_all_reduce_out reduce_scatter_out stream_write_value32_ tile_reduce
    two_shot_all_reduce_ two_shot_all_reduce_out
""",
) | _in("cplib", "flex_cp_allgather flex_cp_allgather_backward")

METADATA = (
    _in(
        "aten",
        """
        _add_batch_dim _assert_async _assert_scalar _assert_tensor_metadata _cufft_clear_plan_cache
        _cufft_get_plan_cache_max_size _cufft_get_plan_cache_size _cufft_set_plan_cache_max_size
        _debug_has_internal_overlap _dimI _dimV _functional_assert_async _functional_assert_scalar
        _functional_sym_constrain_range _functional_sym_constrain_range_for_size _fused_sdp_choice
        _has_compatible_shallow_copy_type _has_same_storage_numel _is_zerotensor _linalg_check_errors
        _make_dep_token _nested_compute_contiguous_strides_offsets _nested_get_jagged_dummy _nested_get_lengths
        _nested_get_max_seqlen _nested_get_min_seqlen _nested_get_offsets _nested_get_ragged_idx
        _nested_tensor_from_mask_left_aligned _nested_tensor_size _nested_tensor_storage_offsets
        _nested_tensor_strides _nnpack_available _nnz _print _propagate_xla_data _remove_batch_dim _resize_output
        _shape_as_tensor _use_cudnn_ctc_loss _use_cudnn_rnn_flatten_weight _use_miopen_ctc_loss
        _validate_compressed_sparse_indices _validate_sparse_bsc_tensor_args _validate_sparse_bsr_tensor_args
        _validate_sparse_compressed_tensor_args _validate_sparse_coo_tensor_args _validate_sparse_csc_tensor_args
        _validate_sparse_csr_tensor_args _version can_cast cudnn_is_acceptable dense_dim dim get_device is_coalesced
        is_complex is_conj is_contiguous is_distributed is_floating_point is_inference is_leaf is_neg is_nonzero
        is_pinned is_same_size is_set_to is_signed is_vulkan_available numel output_nr promote_types record_stream
        requires_grad_ resize resize_as resize_as_sparse result_type retain_grad retains_grad set set_data size
        sparse_dim sparse_resize sparse_resize_and_clear storage_offset stride sym_constrain_range
        sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride
""",
    )
    | _in("prim", "device dtype layout")
    | _in("prims", "_make_token _sink_tokens maximum_value minimum_value resize")
    | _in("profiler", "_record_function_enter _record_function_enter_new _record_function_exit")
    | _in("inductor", "_alloc_from_pool _reinterpret_tensor accumulate_grad_ resize_storage_bytes_")
    | _in("debug_mode_ops", "annotate")
    | _in(
        "mkldnn",
        """
        _get_mkldnn_serialized_md _is_mkldnn_acl_supported _is_mkldnn_bf16_supported _is_mkldnn_fp16_supported
        _nbytes
""",
    )
)

ZERO = {
    "element-wise": ELEMENT_WISE,
    "outer products": OUTER_PRODUCTS,
    "recurrent gates": GATES,
    "softmax": SOFTMAX,
    "normalization": NORMALIZATION,
    "losses": LOSSES,
    "reductions, sorting and counting": REDUCTIONS,
    "distances": DISTANCES,
    "pooling": POOLING,
    "interpolation": INTERPOLATION,
    "embeddings and indexing": LOOK_UPS,
    "copies": COPIES,
    "views": VIEWS,
    "memory layouts": LAYOUTS,
    "quantization": QUANTIZATION,
    "factories": FACTORIES,
    "random numbers": RANDOM,
    "optimizer steps": OPTIMIZERS,
    "collectives": COLLECTIVES,
    "metadata and checks": METADATA,
}
"""Reason -> the qualified names that count zero for it."""

_NAMED = frozenset[str]().union(*ZERO.values())


def is_zero(op: OpOverload, names: Sequence[str]) -> bool:
    """Whether an op counts zero by convention; ``names`` are the qualified names whose verdict it shares."""
    if op.namespace in NAMESPACES or not _NAMED.isdisjoint(names):
        return True
    if op.namespace != "aten":
        return torch.Tag.pointwise in op.tags
    return any(_is_zero_by_rule(name.removeprefix("aten::")) for name in names)


def _is_zero_by_rule(name: str) -> bool:
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, OpOverloadPacket):
        return False
    overloads = [getattr(packet, overload) for overload in packet._overload_names]
    # Any: the generated out= overloads of an element-wise op are not tagged, and some views have forms for lists.
    return any(torch.Tag.pointwise in overload.tags or overload.is_view for overload in overloads)
