"""Every operation of PyTorch's own list is in a class: it has a rule, is taken apart before a trace sees it, holds no
tensor, belongs to the backward pass, or pins what it touches, with the reason. A new one fails here.
"""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import pytest
import torch

from reprune.torch.tracing.rules.movement import RESHAPES
from reprune.torch.tracing.rules.table import CLASSES, class_of

PINNED: dict[str, tuple[str, ...]] = {
    "never run in a forward pass: optimisers, gradient scalers, derivatives, PyTorch's own tests": (
        "_foreach_*", "_fused_ada*", "_fused_sgd*", "_amp_*", "_test_*", "_foobar", "*_jvp", "_standard_gamma_grad",
        "_dirichlet_grad", "_make_dual_copy", "_fw_primal_copy", "_compute_linear_combination", "_new_zeros_with_same*",
    ),
    "recurrent kernels and attention of other devices: traced where Python calls them, or switched off meanwhile": (
        "_thnn_fused_*", "_cudnn_rnn*", "_cudnn_init_dropout_state", "miopen_rnn", "mkldnn_rnn_layer", "_lstm_mps",
        "_scaled_dot_product_*", "_flash_attention_forward*", "_efficient_attention_forward",
        "_cudnn_attention_forward", "_triton_*", "_native_multi_head_attention", "_transformer_encoder_layer_fwd",
        "_transform_bias_rescale_qkv",
        "_fill_mem_eff_dropout_mask",
    ),
    "kernels of other devices, below the operations that a trace sees": (
        "cudnn_*", "miopen_*", "mkldnn_*", "_mkldnn_*", "_mps_*", "_nnpack_*", "_slow_conv2d_forward", "slow_conv*",
        "conv_depthwise3d", "_conv_depthwise2d", "_grid_sampler_2d_cpu_fallback", "_convolution", "linear", "softmax",
        "log_softmax", "_cummax_helper", "_cummin_helper", "batch_norm_*", "_batch_norm_with_update_functional",
        "_native_batch_norm_legit_functional", "quantized_batch_norm", "to_mkldnn", "_copy_from*", "_use_*",
        "_philox_*",
    ),
    "quantised tensors and packed weights: the float model is pruned first": (
        "quantize*", "*quantized*", "_make_per_*", "fake_quantize*", "_fake_quantize*", "_fused_moving_avg_obs*",
        "dequantize", "q_*", "qscheme", "int_repr", "_empty_affine*", "_empty_per_channel*", "_weight_int*",
        "_convert_weight*", "_dyn_quant_*", "_int_mm", "_mixed_dtypes_linear", "_scaled_mm*", "_scaled_grouped_mm*",
        "_grouped_mm",
    ),
    "sparse and nested tensors have no element of their own for every unit": (
        "*sparse*", "_nested_*", "*_jagged_*", "to_padded_tensor", "_coalesce*", "_convert_indices_*", "*_indices_copy",
        "indices_copy", "_indices_copy", "values_copy", "_values_copy", "_cslt_*", "_to_dense", "_spdiags", "_spsolve",
        "hspmm", "sspaddmm", "_validate_compressed*",
    ),
    "every entry of a matrix counts in every entry of the result": (
        "linalg_*", "_linalg_*", "cholesky*", "_cholesky*", "geqrf", "ormqr", "lu_unpack", "triangular_solve", "trace",
        "renorm", "_pdist_forward",
    ),
    "entries are compared, counted or sorted out by their values": (
        "histc", "histogram", "_histogramdd*", "bincount", "searchsorted", "unique*", "_unique*", "hash_tensor",
    ),
    "losses, which are taken of answers and not of units": (
        "*_loss", "*_loss_forward", "*_loss2d_forward", "_ctc_loss", "_cudnn_ctc_loss", "binary_cross_entropy*",
    ),
    "pooling that remembers positions, sampling grids": (
        "max_unpool*", "fractional_max_pool*", "affine_grid_generator", "_unsafe_masked_index*",
    ),
    "outer products and sums of products over a batch": ("addr", "addbmm", "conv_tbc"),
    "memory that is given another shape": (
        "put", "_chunk_cat", "as_strided", "resize_as", "_resize_output", "native_norm",
    ),
    "a value leaves PyTorch": ("_local_scalar_dense",),
    "draws whose parameters belong together": ("_sample_dirichlet",),
}  # fmt: skip


@cache
def operators() -> dict[str, list[Any]]:
    """Every registered operation of aten, in-place ones by the name of the others, with its overloads."""
    found: dict[str, list[Any]] = defaultdict(list)
    for full in torch._C._dispatch_get_all_op_names():
        space, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if space == "aten":
            base = name if name.startswith("__") else name.rstrip("_")
            found[base].append(getattr(getattr(torch.ops.aten, name), overload or "default"))
    return found


def kind(name: str, overloads: list[Any]) -> str | None:
    """The class of an operation."""
    schemas = [overload._schema for overload in overloads]
    if (rule := class_of(name)) is not None:
        return rule
    if "backward" in name:
        return "backward"
    if not any("Tensor" in str(value.type) for schema in schemas for value in schema.arguments):
        return "no tensor"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if all(has_kernel(overload.name(), "CompositeImplicitAutograd") for overload in overloads):
        return "composite"
    aliases = [value.alias_info for schema in schemas for value in schema.returns]
    if name in RESHAPES or any(alias is not None and not alias.is_write for alias in aliases):
        return "view"
    return next((why for why, globs in PINNED.items() if any(fnmatchcase(name, glob) for glob in globs)), None)


def test_every_operation_is_in_a_class() -> None:
    homeless = sorted(name for name, overloads in operators().items() if kind(name, overloads) is None)
    assert not homeless, "give each a rule in rules/table.py, or a reason here"


def test_no_reason_stands_for_nothing() -> None:
    names = [name for name in operators() if class_of(name) is None]
    unused = [glob for globs in PINNED.values() for glob in globs if not any(fnmatchcase(n, glob) for n in names)]
    assert not unused


@pytest.mark.parametrize("rules", CLASSES.values(), ids=CLASSES)
def test_every_rule_is_of_an_operation_that_exists(rules: dict[str, Any]) -> None:
    assert not [name for name in rules if not hasattr(torch.ops.aten, name)]


def test_no_operation_has_two_rules() -> None:
    names = [name for rules in CLASSES.values() for name in rules]
    assert len(names) == len(set(names))
