"""What other tools make of recurrent models: half of the units asked for, on a chain of layers and on g2pM's BiLSTM.

Every tool is called as its documentation says, with magnitudes as its criterion. *Parameters* are what the model that
it returns holds; accuracy is that of g2pM's test set, without any training after pruning. Tools that are not installed
are left out; none of them is a requirement of this project.

    pip install torch-pruning nncf torchao tensorflow-model-optimization tf_keras
    PYTHONPATH=TinyNeuralNetwork python benchmarks/others.py    # a clone of alibaba/TinyNeuralNetwork
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tasks import Polyphones
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import reprune


class Chain(nn.Module):
    """BiLSTM 128 + 128 → LSTM 128 → Linear: what a tool can be expected to follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(40, 128, batch_first=True, bidirectional=True)
        self.second = nn.LSTM(256, 128, batch_first=True)
        self.head = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of every step."""
        return self.head(self.second(self.first(x)[0])[0])


def by_reprune(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    return reprune.prune(model, batches, 0.5, method="magnitude").model


def by_reprune_rebuilt(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    """The default method, which is calibrated, without labels."""
    return reprune.prune(model, batches, 0.5).model


def by_torch(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    """torch.nn.utils.prune: whole rows of the recurrent weights."""
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            for name in [name for name, _ in module.named_parameters() if name.startswith("weight_hh")]:
                torch_prune.ln_structured(module, name, 0.5, n=2, dim=0)
                torch_prune.remove(module, name)
    return model


def by_torch_pruning(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    import torch_pruning

    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [head]}
    torch_pruning.pruner.BasePruner(model, batches[0], **options).step()
    return model


def by_tinynn(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    from tinynn.prune import OneShotChannelPruner

    OneShotChannelPruner(model, batches[0], {"sparsity": 0.5, "metrics": "l2_norm"}).prune()
    return model


def by_nncf(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    import nncf

    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL
    pruned = nncf.prune(model, mode=mode, ratio=0.5, examples_inputs=batches[0])
    return nncf.strip(pruned, example_input=batches[0])


def by_torchao(model: nn.Module, batches: Sequence[Any], head: nn.Module) -> nn.Module:
    from torchao.sparsity import WandaSparsifier

    sparsifier = WandaSparsifier(sparsity_level=0.5)
    sparsifier.prepare(
        model, [{"tensor_fqn": f"{n}.weight"} for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    )
    run(model, batches[0])
    sparsifier.step()
    sparsifier.squash_mask()
    return model


TOOLS: Mapping[str, tuple[str, Callable[[nn.Module, Sequence[Any], nn.Module], nn.Module]]] = {
    "reprune, magnitude": ("reprune", by_reprune),
    "reprune, default": ("reprune", by_reprune_rebuilt),
    "torch.nn.utils.prune": ("torch", by_torch),
    "Torch-Pruning": ("torch-pruning", by_torch_pruning),
    "TinyNeuralNetwork": ("", by_tinynn),
    "NNCF": ("nncf", by_nncf),
    "torchao": ("torchao", by_torchao),
}


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def run(model: nn.Module, batch: Any) -> Any:
    return model(*batch) if isinstance(batch, tuple) else model(batch)


def units(model: nn.Module) -> str:
    return ", ".join(
        str(m.hidden_sizes if hasattr(m, "hidden_sizes") else m.hidden_size)
        for m in model.children()
        if hasattr(m, "input_size")
    )


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:90]


def tell(dense: nn.Module, batches: Sequence[Any], head: str, measure: Callable[[nn.Module], str]) -> None:
    """Print one row for every tool."""
    print(f"| dense | {size(dense):,} | {measure(dense)} |", flush=True)
    for name, (package, make) in TOOLS.items():
        model = copy.deepcopy(dense)
        try:
            small = make(model, batches, model.get_submodule(head)).eval()
            row = f"{version(package)} | {size(small):,} | {measure(small)}"
        except ImportError as error:
            row = f"| | not installed: {error}"
        except Exception as error:  # Whatever a tool raises on such a model is the finding.
            row = f"{version(package)} | | {said(error)}"
        print(f"| {name} {row} |", flush=True)


def version(package: str) -> str:
    return importlib.metadata.version(package) if package else ""


def tfmot_row() -> str:
    """Keras's own pruning, on the chain without its direction backwards, which it refuses."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    layers = keras.layers
    model = keras.Sequential(
        [layers.LSTM(128, return_sequences=True, input_shape=(50, 40)), layers.LSTM(128), layers.Dense(10)]
    )
    sparsity = tfmot.sparsity.keras
    pruned = sparsity.strip_pruning(sparsity.prune_low_magnitude(model, sparsity.ConstantSparsity(0.5, 0)))
    sizes = f"{model.count_params():,} parameters, then {pruned.count_params():,}"
    return f"tfmot {version('tensorflow-model-optimization')}, LSTM → LSTM → Dense: {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    print("BiLSTM 128 + 128 → LSTM 128 → Linear, random weights\n")
    print("| tool | parameters | hidden units |\n|---|---:|---|")
    noise = [torch.randn(8, 50, 40) for _ in range(20)]
    tell(Chain().eval(), noise, "head", units)
    print("\ng2pM, a packed BiLSTM 32 + 32, trained\n\n| tool | parameters | accuracy |\n|---|---:|---:|")
    task = Polyphones(data)
    sentences = [tuple(part[:64] for part in batch[:3]) for batch in task.calibration()]
    # The first is what tools trace; how long that takes grows with the sentences for some of them.
    sentences.insert(0, tuple(part[:16] for part in sentences[0]))
    tell(task.build().eval(), sentences, "logit_layer.2", lambda model: f"{task.evaluate(model):.4f}")
    try:
        print(f"\n{tfmot_row()}")
    except ImportError:
        print("\ntfmot: not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
