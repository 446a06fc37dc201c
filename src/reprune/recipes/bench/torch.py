"""What `bench` asks of PyTorch models: an input, a forward pass, an exported file, and how many MACs it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reprune.core.errors import RepruneError
from reprune.runtimes.torch_export import pytorch_threads
from reprune.torch.export import export
from reprune.torch.export.recurrent import recurrent_modules
from reprune.torch.tracing.running.calling import call

__all__ = ["count_macs", "export", "forward", "random_input", "size"]


def random_input(model: nn.Module, batch: int, frames: int, features: int | None) -> Tensor:
    """An input of the size that the model's first layer reads: ids for an embedding, else batch × frames × features.

    Raises:
        RepruneError: When the first layer does not say what it reads.
    """
    recurrent = {module for _, module in recurrent_modules(model)}
    for module in model.modules():
        if features is None and isinstance(module, nn.Embedding):
            return torch.randint(module.num_embeddings, (batch, frames))
        if features is None and (module in recurrent or isinstance(module, (nn.RNNCellBase, nn.Linear))):
            reads: Any = module.in_features if isinstance(module, nn.Linear) else module.input_size
            features = int(reads)
        if features is not None:
            swapped = module in recurrent and not module.batch_first
            return torch.randn(*((frames, batch) if swapped else (batch, frames)), features)
        if any(True for _ in module.parameters(recurse=False)):
            break
    raise RepruneError(f"{type(model).__name__} does not begin with a layer whose input is known: give --example.")


def forward(model: nn.Module, example: Any, threads: int) -> Callable[[], Any]:
    """A forward pass on the CPU with so many threads."""
    twin = copy.deepcopy(model).cpu().eval()

    def run() -> Any:
        with pytorch_threads(threads), torch.inference_mode():
            return call(twin, example)

    return run


def size(model: nn.Module) -> float:
    """Bytes of the parameters."""
    return float(sum(tensor.numel() * tensor.element_size() for tensor in model.parameters()))


def count_macs(model: nn.Module, example: Any) -> float:
    """Multiply-accumulates of recurrent, linear and convolutional layers in one call of the model.

    Raises:
        RepruneError: When the model does not take the example.
    """
    total = 0.0
    twin = copy.deepcopy(model).cpu().eval()

    def recurrent(module: Any, args: Any, output: Any) -> None:
        nonlocal total
        data = output[0].data if not isinstance(output[0], Tensor) else output[0]
        matrices = [weight for weight in module.parameters(recurse=False) if weight.dim() == 2]
        total += sum(weight.numel() for weight in matrices) * (data.numel() // data.shape[-1])

    def product(module: Any, args: Any, output: Any) -> None:
        nonlocal total
        total += module.weight[0].numel() * output.numel()

    for _, module in recurrent_modules(twin):
        module.register_forward_hook(recurrent)
    for module in twin.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.register_forward_hook(product)
    try:
        with torch.inference_mode():
            call(twin, example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise RepruneError(
            f"{type(model).__name__} does not take this input: {error}. Give --example, or the size in --features."
        ) from error
    return total
