"""What every operation does to labels. An operation without a rule pins the units it touches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reprune.torch.tracing.labels import storage_id
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.rules.elementwise import copy, glu, like, nothing, pointwise, real_and_complex, unknown
from reprune.torch.tracing.rules.movement import check_view, fold, move
from reprune.torch.tracing.rules.normalisation import batch_norm, group_norm, layer_norm, weight_norm
from reprune.torch.tracing.rules.op import Op, Rule
from reprune.torch.tracing.rules.products import bilinear, convolution, dot, embedding, embedding_renorm, matmul, matvec
from reprune.torch.tracing.rules.reductions import over_dims, pooling
from reprune.torch.tracing.rules.size_uses import record_sizes
from reprune.torch.tracing.tracer import Tracer

__all__ = ["RULES", "apply_rule", "record_sizes"]

KEEP = {"fill", "zero", "bernoulli_", "normal_", "uniform", "normal", "bernoulli", "exponential"}
POINTWISE = {
    "clone", "contiguous", "_to_copy", "native_dropout", "masked_fill", "where", "lerp", "addcmul", "addcdiv",
    "nan_to_num", "_conj", "hardtanh", "prelu", "threshold", "rrelu_with_noise", "dropout", "_fused_dropout",
    "lift_fresh_copy", "complex", "polar", "angle", "_prelu_kernel", "abs", "native_alpha_dropout", "feature_dropout",
    "resolve_conj", "positive",
}  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "stack", "index", "index_select", "gather", "flip", "roll", "repeat", "constant_pad_nd",
                     "masked_select", "tril", "triu", "im2col", "_pack_padded_sequence", "take", "reflection_pad1d",
                     "reflection_pad2d", "replication_pad1d", "replication_pad2d", "unfold_copy", "expand_copy",
                     "repeat_interleave", "view_copy", "permute_copy", "take_along_dim", "pixel_shuffle"), move(0)),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter"), move(0, 1)),
    **dict.fromkeys(("index_put", "_index_put_impl"), move(0, 2)),
    **dict.fromkeys(("scatter", "index_copy", "masked_scatter"), move(0, 3)),
    "col2im": fold,
    "copy": copy,
    "glu": glu,
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
                     "bernoulli"), like),
    **dict.fromkeys(("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "arange",
                     "new_empty_strided", "empty_strided", "rand", "randn", "randint", "randperm", "scalar_tensor",
                     "empty_permuted", "argmax", "argmin", "sym_size", "_assert_async", "_assert_tensor_metadata",
                     "nonzero", "eye", "linspace", "one_hot", "resize", "set"), nothing),
    "sum": over_dims(1, sums=True),
    **dict.fromkeys(("linalg_vector_norm", "norm"), over_dims(2, sums=True)),
    **dict.fromkeys(("mean", "amax", "amin", "prod", "logsumexp", "max", "min", "median", "mode", "any", "all", "std",
                     "var", "argmax", "argmin", "std_mean", "var_mean", "nanmedian"), over_dims(1)),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "logcumsumexp", "cummax",
                     "cummin", "_safe_softmax"), over_dims(1, reduces=False)),
    **dict.fromkeys(("topk", "kthvalue"), over_dims(2, reduces=False)),
    "mm": matmul(0), "bmm": matmul(0), "addmm": matmul(1, 0), "baddbmm": matmul(1, 0),
    "mv": matvec, "addmv": matvec, "dot": dot, "vdot": dot,
    "convolution": convolution, "convolution_overrideable": convolution,
    "embedding": embedding, "embedding_renorm": embedding_renorm,
    "_trilinear": bilinear,
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                     "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
                     "upsample_nearest2d", "upsample_bilinear2d", "max_pool2d"), pooling(2)),
    **dict.fromkeys(("avg_pool1d", "upsample_nearest1d", "upsample_linear1d", "adaptive_avg_pool1d"), pooling(1)),
    **dict.fromkeys(("view_as_real", "view_as_complex", "_view_as_complex"), real_and_complex),
}  # fmt: skip


def apply_rule(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Label the outputs of an operation that just ran."""
    name = func._schema.name.split("::")[-1]
    name = name if name.startswith("__") else name.rstrip("_")
    inputs = list(tensors_in((args, kwargs)))
    _follow_states(tracer, name, inputs, out)
    op = Op(tracer, name, func, args, kwargs, out)
    outputs = [*tensors_in(out)]
    if not func._schema.is_mutable and outputs and name not in RULES:
        sources = {storage_id(tensor) for tensor in inputs}
        if all(storage_id(tensor) in sources for tensor in outputs):
            check_view(op, inputs[0], outputs)
            return
    rule = RULES.get(name)
    if rule is None and (torch.Tag.pointwise in func.tags or name in POINTWISE):
        rule = pointwise
    if rule is None:
        rule = unknown
    labels = rule(op)
    if not isinstance(labels, (list, tuple)):
        labels = [labels] + [None] * (len(outputs) - 1)
    if name in KEEP:
        return
    for tensor, found in zip(outputs, labels, strict=False):
        tracer.memory.set(tensor, found)


def _follow_states(tracer: Tracer, name: str, inputs: Sequence[torch.Tensor], out: Any) -> None:
    """Note when a stacked final state is used; the recurrent modules' own handling of it does not count."""
    for tensor in inputs:
        if not tracer.is_stacked_state(tensor) or tracer.inside_piece or name in ("detach", "alias"):
            continue
        if tracer.inside_module:
            for result in tensors_in(out):
                tracer.states.setdefault(storage_id(result), tracer.states[storage_id(tensor)])
        else:
            tracer.touch(tensor)
