"""Which operation has which rule, class by class. One that is in no class pins the units it touches."""

from __future__ import annotations

from functools import cache

import torch

from reprune.torch.tracing.rules.accumulating import accumulate, index_put, segments
from reprune.torch.tracing.rules.convolutions import convolution
from reprune.torch.tracing.rules.elementwise import compare, copy, glu, like, nothing, pointwise, real_and_complex
from reprune.torch.tracing.rules.embeddings import embedding, embedding_renorm
from reprune.torch.tracing.rules.movement import fold, move, pixel_shuffle
from reprune.torch.tracing.rules.normalisation import batch_norm, group_norm, layer_norm, weight_norm
from reprune.torch.tracing.rules.op import Rule
from reprune.torch.tracing.rules.products import (
    add,
    bilinear,
    distance,
    distances,
    dot,
    matmul,
    matvec,
)
from reprune.torch.tracing.rules.reductions import along_last, over_dims, pooling, where_not_zero, within_matrices

# Elements are moved, copied or left out; each keeps its label.
MOVES: dict[str, Rule] = {
    **dict.fromkeys((
        "cat", "stack", "_stack", "block_diag", "index", "_unsafe_index", "index_select", "gather", "take",
        "take_along_dim", "masked_select", "flip", "roll", "rot90", "repeat", "repeat_interleave", "constant_pad_nd",
        "tril", "triu",
        "im2col", "_pack_padded_sequence", "pixel_unshuffle", "channel_shuffle", "diag_embed",
        "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
        "replication_pad3d", "unsafe_split", "unsafe_split_with_sizes",
        "unfold_copy", "expand_copy", "view_copy", "permute_copy", "_reshape_copy", "_reshape_alias_copy", "alias_copy",
        "as_strided_copy", "detach_copy", "diagonal_copy", "narrow_copy", "select_copy", "slice_copy", "split_copy",
        "split_with_sizes_copy", "squeeze_copy", "t_copy", "transpose_copy", "unbind_copy", "unsqueeze_copy",
    ), move(0)),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter"), move(0, 1)),
    "index_copy": move(0, 3),
    "masked_scatter": move(0, 2),
    "pixel_shuffle": pixel_shuffle,
    "copy": copy,
}  # fmt: skip

# Entries are added up, or the like, where an index sends them.
ACCUMULATING: dict[str, Rule] = {
    **dict.fromkeys(("scatter", "scatter_add", "index_add", "scatter_reduce", "index_reduce"), accumulate),
    **dict.fromkeys(("index_put", "_index_put_impl", "_unsafe_index_put"), index_put),
    "segment_reduce": segments,
    "col2im": fold,
}

# A new tensor with a place for every unit of the one it is like, and none of its values.
LIKE: dict[str, Rule] = dict.fromkeys(
    ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "zero", "random",
     "uniform", "exponential", "geometric", "cauchy", "log_normal"), like
)  # fmt: skip

# A result that holds no values of units: sizes, constants.
NOTHING: dict[str, Rule] = dict.fromkeys(
    ("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "arange", "new_empty_strided",
     "empty_strided", "rand", "randn", "randint", "randperm", "scalar_tensor", "empty_permuted", "sym_size",
     "_assert_async", "_functional_assert_async", "_assert_tensor_metadata", "eye", "linspace", "one_hot", "resize",
     "set", "is_same_size", "is_pinned", "is_set_to", "is_coalesced",
     "_has_same_storage_numel", "sparse_dim", "dense_dim", "_dimI", "_dimV", "_nnz", "record_stream",
     "_fused_sdp_choice", "_efficientzerotensor", "_functional_assert_scalar", "_functional_sym_constrain_range",
     "_functional_sym_constrain_range_for_size", "bartlett_window", "blackman_window", "hamming_window", "hann_window",
     "kaiser_window", "fft_fftfreq", "fft_rfftfreq", "from_file", "logspace", "range", "tril_indices", "triu_indices"),
    nothing
)  # fmt: skip

# Operations along dimensions: exact, or not at all, where these hold units.
ALONG: dict[str, Rule] = {
    **dict.fromkeys(("sum", "nansum", "count_nonzero"), over_dims(1, sums=True)),
    **dict.fromkeys(("linalg_vector_norm", "linalg__powsum", "norm"), over_dims(2, sums=True)),
    **dict.fromkeys(("mean", "amax", "amin", "prod", "logsumexp", "max", "min", "median", "mode", "any", "all", "std",
                     "argmax", "argmin", "var", "std_mean", "var_mean", "nanmedian", "aminmax", "_aminmax",
                     "_is_all_true", "_is_any_true"), over_dims(1)),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "logcumsumexp",
                     "_logcumsumexp", "cummax", "cummin", "_safe_softmax", "_fft_r2c", "_fft_c2r", "_fft_c2c"),
                    over_dims(1, reduces=False)),
    **dict.fromkeys(("topk", "kthvalue", "_masked_softmax"), over_dims(2, reduces=False)),
    "multinomial": along_last,
    **dict.fromkeys(("nonzero", "nonzero_static"), where_not_zero),
    **dict.fromkeys(("linalg_solve_triangular", "linalg_inv_ex", "linalg_cholesky_ex", "linalg_matrix_exp"),
                    within_matrices),
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
                     "adaptive_max_pool2d", "max_pool2d", "grid_sampler_2d", "upsample_nearest2d",
                     "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
                     "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"), pooling(2)),
    **dict.fromkeys(("avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_linear1d",
                     "_upsample_nearest_exact1d"), pooling(1)),
    **dict.fromkeys(("max_pool3d_with_indices", "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d",
                     "adaptive_max_pool3d", "grid_sampler_3d", "upsample_nearest3d", "upsample_trilinear3d",
                     "_upsample_nearest_exact3d"), pooling(3)),
}  # fmt: skip

# Units are contracted: with a weight, which reads them, or with each other.
PRODUCTS: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "_sparse_mm"), matmul(0)),
    **dict.fromkeys(("addmm", "baddbmm", "_addmm_activation", "_sparse_addmm"), matmul(1, 0)),
    **dict.fromkeys(("mv", "addmv"), matvec),
    **dict.fromkeys(("dot", "vdot"), dot),
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), distances),
    "dist": distance,
    **dict.fromkeys(("convolution", "convolution_overrideable"), convolution),
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), embedding),
    "embedding_renorm": embedding_renorm,
    "_trilinear": bilinear,
}

NORMALISATIONS: dict[str, Rule] = {
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                     "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
}  # fmt: skip

# Operands that share a position belong together. PyTorch's own tag names most of these operations.
POINTWISE: dict[str, Rule] = {
    **dict.fromkeys((
        "clone", "contiguous", "_to_copy", "native_dropout", "masked_fill", "where", "lerp", "addcmul", "addcdiv",
        "nan_to_num", "_conj", "_conj_copy", "_conj_physical", "_neg_view_copy", "hardtanh", "prelu", "threshold",
        "rrelu_with_noise", "rrelu_with_noise_functional", "dropout", "_fused_dropout", "_masked_scale",
        "lift", "lift_fresh_copy", "complex", "polar", "angle", "_prelu_kernel", "abs",
        "feature_dropout", "resolve_conj", "positive", "log_sigmoid_forward", "_add_relu", "floor_divide", "bucketize",
        "isin", "_pin_memory", "_lazy_clone", "__irshift__", "hardswish", "fill",
        # Draws whose chances are values.
        "bernoulli", "binomial", "poisson", "_standard_gamma", "normal", "normal_functional",
    ), pointwise),
    "index_fill": like,
    "add": add,
    **dict.fromkeys(("view_as_real", "view_as_complex", "view_as_real_copy", "view_as_complex_copy"), real_and_complex),
    **dict.fromkeys(("equal", "allclose"), compare),
    "glu": glu,
}  # fmt: skip

CLASSES: dict[str, dict[str, Rule]] = {
    "moves": MOVES,
    "accumulates": ACCUMULATING,
    "like": LIKE,
    "nothing": NOTHING,
    "along dimensions": ALONG,
    "product": PRODUCTS,
    "normalisation": NORMALISATIONS,
    "pointwise": POINTWISE,
}


@cache
def class_of(name: str) -> str | None:
    """The class of an operation of `torch.ops.aten`, given by its name without the underscore of in-place ones.

    Example:
        >>> class_of("cat"), class_of("tanh"), class_of("linalg_svd")
        ('moves', 'pointwise', None)
    """
    for kind, rules in CLASSES.items():
        if name in rules:
            return kind
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return None
    # The in-place variant may lack the tag.
    tagged = any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in packet.overloads())
    return "pointwise" if tagged else None


@cache
def is_view(name: str) -> bool:
    """Whether an operation gives its argument another shape without moving elements, in place as well: `squeeze_`."""
    packet = getattr(torch.ops.aten, name, None)
    schemas = [] if packet is None else [getattr(packet, overload)._schema for overload in packet.overloads()]
    aliases = [value.alias_info for schema in schemas for value in schema.returns]
    return any(alias is not None and not alias.is_write for alias in aliases)


@cache
def rule_of(name: str) -> Rule | None:
    """The rule of an operation, or None for one that cannot be followed."""
    kind = class_of(name)
    return None if kind is None else CLASSES[kind].get(name, pointwise)
