"""Networks with recurrent state from Hugging Face transformers, tiny, with random weights: what of them can be pruned.

Of each, all widths are inspected, half of the units that can go without changing a normalisation are removed at random,
and the smaller model is compared with the masked one on other inputs. Needs `pip install transformers`.

    python benchmarks/hugging_face.py [NAME …]
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import torch
import transformers
from torch import nn

import reprune
from reprune.core.decide import free_blocks
from reprune.core.rehearsal import random_plan

WORDS = 24
SMALL = {"vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 2}
ATTENTION = {"intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
SCAN = {"state_size": 4, "expand": 2, "conv_kernel": 3}
SCAN_2 = {"mamba_d_state": 4, "mamba_d_conv": 3, "mamba_expand": 2}
HEADS = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_chunk_size": 4}
SHARED = {"n_mamba_heads": 4, "mamba_headdim": 8, "mamba_ngroups": 2, "chunk_size": 4, "use_mem_eff_path": False}
MODELS: dict[str, dict[str, Any]] = {
    "Mamba": {**SCAN, "time_step_rank": 3},
    "FalconMamba": {**SCAN, "time_step_rank": 3},
    "Mamba2": {**SCAN, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "Rwkv": {"attention_hidden_size": 16, "intermediate_size": 32, "context_length": 32},
    "xLSTM": {
        "num_heads": 2,
        "num_blocks": 2,
        "chunk_size": 4,
        "chunkwise_kernel": "chunkwise--native_autograd",
        "sequence_kernel": "native_sequence__native",
        "step_kernel": "native",
    },
    "RecurrentGemma": {
        **ATTENTION,
        "num_hidden_layers": 3,
        "head_dim": 4,
        "lru_width": 16,
        "attention_window_size": 8,
        "conv1d_width": 3,
    },
    "Zamba2": {
        **ATTENTION,
        **SCAN_2,
        **SHARED,
        "num_key_value_heads": 4,
        "num_hidden_layers": 3,
        "hybrid_layer_ids": [1],
        "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
    },
    "Bamba": {**ATTENTION, **SCAN_2, **HEADS, "attn_layer_indices": [1]},
    "FalconH1": {**ATTENTION, **SCAN_2, **HEADS, "head_dim": 4, "mamba_d_ssm": 32},
    "Lfm2": {**ATTENTION, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1], "conv_L_cache": 3},
    "Jamba": {
        **ATTENTION,
        **SCAN_2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_dt_rank": 3,
        "use_mamba_kernels": False,
    },
    "Qwen3Next": {
        **ATTENTION,
        "num_hidden_layers": 4,
        "head_dim": 8,
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 0,
        "mlp_only_layers": [0, 1, 2, 3],
    },
}


def answer(model: nn.Module, words: torch.Tensor) -> torch.Tensor:
    """Logits, without a cache."""
    found: torch.Tensor = model(words, use_cache=False).logits
    return found


def row(name: str) -> str:
    """One model as a line of the table."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **MODELS[name]})
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    structure = reprune.inspect(model, [torch.randint(WORDS, (2, 6))], forward=answer, scope="all").structure
    layers = structure.layers
    blocks = [[layer for group in entry for layer in group] for entry in free_blocks(structure)]
    exact = [block for block in blocks if not any(layers[layer].approximate for layer in block)]
    plan = random_plan(structure, exact)
    small, masked = reprune.apply(model, plan), reprune.mask(model, plan)
    words = torch.randint(WORDS, (3, 9))
    with torch.no_grad():
        found, expected = answer(small, words), answer(masked, words)
    error = float((found - expected).abs().max() / expected.abs().max())
    kinds = {layer: entry.pin or entry.approximate for layer, entry in layers.items()}
    pinned = sum(layers[layer].pin is not None for layer in kinds)
    near = sum(kind is not None for kind in kinds.values()) - pinned
    sizes = [sum(p.numel() for p in each.parameters()) for each in (model, small)]
    return f"{name:15} {len(kinds) - near - pinned:6} {near:11} {pinned:7} {sizes[0]:7} {sizes[1]:7} {error:9.1e}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    print("model            exact approximate  pinned  weights  pruned     error")
    for name in parser.parse_args().names:
        print(row(name), flush=True)


if __name__ == "__main__":
    main()
