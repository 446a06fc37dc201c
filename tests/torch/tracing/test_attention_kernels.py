"""Fused attention kernels are taken apart: every one of PyTorch's, by the equations of attention."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reprune.torch.tracing.attention import is_fused_attention, taken_apart

KERNELS = [getattr(torch.ops.aten, name) for name in dir(torch.ops.aten) if "scaled_dot_product" in name]
FUSED = {
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
}  # fmt: skip


def test_which_kernels_are_taken_apart() -> None:
    operations = [getattr(packet, overload) for packet in KERNELS for overload in packet.overloads()]
    assert {each._schema.name.removeprefix("aten::") for each in operations if is_fused_attention(each)} == FUSED
    assert len(operations) > len(FUSED)
    assert not is_fused_attention(torch.ops.aten.mm.default)


@pytest.mark.parametrize("name", sorted(FUSED))
@pytest.mark.parametrize("heads", [4, 2])
def test_what_a_kernel_computes(name: str, heads: int) -> None:
    """Softmax over keys, in NumPy; queries share keys and values where there are fewer of these."""
    kernel = getattr(torch.ops.aten, name).default
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 4, 5, 3))
    k, v = rng.normal(size=(2, 2, heads, 5, 3))
    bias = rng.normal(size=(2, 4, 5, 5))
    arguments = [argument.name for argument in kernel._schema.arguments]
    masked = next((argument for argument in ("attn_mask", "attn_bias") if argument in arguments), None)
    for causal, scale, mask in ((False, None, False), (True, 0.3, False), *([(False, None, True)] if masked else [])):
        given = {"query": q, "key": k, "value": v} | ({masked: bias} if mask else {})
        options = ({"is_causal": True} if causal else {}) | ({} if scale is None else {"scale": scale})
        scores = q @ np.repeat(k, 4 // heads, 1).swapaxes(-1, -2) * (scale or 1 / math.sqrt(3)) + mask * bias
        scores = np.where(np.tril(np.ones((5, 5))) if causal else True, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        expected = weights / weights.sum(-1, keepdims=True) @ np.repeat(v, 4 // heads, 1)
        tensors = {key: torch.from_numpy(value) for key, value in given.items()}
        by_name = taken_apart(kernel, [], {**tensors, **options})
        np.testing.assert_allclose(by_name.numpy(), expected, rtol=1e-12, atol=1e-12)
        in_order = [tensors[key] for key in arguments[:3]]
        rest = {key: value for key, value in tensors.items() if key == masked}
        np.testing.assert_allclose(taken_apart(kernel, in_order, {**rest, **options}).numpy(), expected, atol=1e-12)
    torch.manual_seed(0)
    dropped = taken_apart(kernel, [], {"query": torch.ones(1, heads, 5, 3), "key": torch.ones(1, heads, 5, 3),
                                       "value": torch.ones(1, heads, 5, 3), "dropout_p": 0.5})  # fmt: skip
    assert not torch.allclose(dropped, torch.ones(1, heads, 5, 3))
