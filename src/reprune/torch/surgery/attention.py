"""`nn.MultiheadAttention` for inputs and outputs of other widths than its heads."""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

_PARAMETERS = (
    "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias", "bias_k", "bias_v"
)  # fmt: skip


@final
class NarrowAttention(nn.Module):
    """What is left of an `nn.MultiheadAttention` whose query, key, value or output lost features.

    PyTorch's module insists on one width for the query, the heads and the output. Here the heads keep theirs, and the
    matrices before and after them are as narrow as what they read and feed. Called as the original is, with parameters
    of the same names.

    Args:
        source: The module, its weights sliced already. The parameters are shared with it.

    Example:
        >>> attention = NarrowAttention(nn.MultiheadAttention(8, 2))
        >>> attention(*[torch.randn(5, 3, 8)] * 3)[0].shape
        torch.Size([5, 3, 8])
    """

    in_proj_weight: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor
    _qkv_same_embed_dim = False  # What transformer layers ask for before they take a kernel that knows only one width.

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = source.embed_dim, source.num_heads
        self.head_dim = source.embed_dim // source.num_heads
        self.dropout, self.batch_first, self.add_zero_attn = source.dropout, source.batch_first, source.add_zero_attn
        for name in _PARAMETERS:
            self.register_parameter(name, getattr(source, name))
        self.out_proj: nn.Linear = source.out_proj
        self.training = source.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Output and attention weights; arguments and shapes as for `nn.MultiheadAttention`."""
        batched = query.dim() == 3
        query, key, value = (self._batch_first(x, batched) for x in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(attn_mask, key_padding_mask, k, batched, grown=k.shape[2] - key.shape[1])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            found = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights.squeeze(0)
        else:
            found = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = self.out_proj(found.transpose(1, 2).flatten(2))
        if batched:
            return (output if self.batch_first else output.transpose(0, 1)), weights
        return output.squeeze(0), weights

    def _batch_first(self, x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value by head: (B, heads, T, head_dim)."""
        if self.in_proj_weight is not None:
            matrices = tuple(self.in_proj_weight.chunk(3))
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), matrices, biases, strict=True))
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(len(k), 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(len(v), 1, -1)], 1)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return tuple(x.view(*x.shape[:2], self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v))

    def _mask(
        self, attn_mask: Tensor | None, padding: Tensor | None, keys: Tensor, batched: bool, grown: int
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, (B or 1, heads or 1, T or 1, S)."""
        total: Tensor | None = None
        if attn_mask is not None:
            attn_mask = F.pad(_additive(attn_mask, keys.dtype), (0, grown))
            if attn_mask.dim() == 3:
                total = attn_mask.view(-1, self.num_heads, *attn_mask.shape[1:])
            else:
                total = attn_mask[None, None]
        if padding is not None:
            padding = F.pad(_additive(padding if batched else padding.unsqueeze(0), keys.dtype), (0, grown))
            padding = padding[:, None, None, :]
            total = padding if total is None else total + padding
        return total


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(mask, float("-inf"))
