"""Fused attention kernels, looked into: what they compute, by operations that have rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch


def is_fused_attention(func: Any) -> bool:
    """Whether an operation is one of the kernels behind `F.scaled_dot_product_attention`."""
    name = func._schema.name
    return name.startswith("aten::_scaled_dot_product_") and "backward" not in name and "_math" not in name


def taken_apart(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """The output of such a kernel (first of what it returns), computed step by step."""
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
    out: torch.Tensor
    out, _ = torch.ops.aten._scaled_dot_product_attention_math(
        given["query"],
        given["key"],
        given["value"],
        given.get("attn_mask", given.get("attn_bias")),
        given.get("dropout_p", 0.0),
        given.get("is_causal", False),
        scale=given.get("scale"),
        enable_gqa=given["query"].shape[-3] != given["key"].shape[-3],
    )
    return out
