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
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tasks import Polyphones
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import reprune

REPEATS = 30


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


def by_reprune(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    return reprune.prune(model, [example], 0.5, method="magnitude").model


def by_reprune_rebuilt(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    """The default method, which looks at the example as well."""
    return reprune.prune(model, [example], 0.5).model


def by_torch(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    """torch.nn.utils.prune: whole rows of the recurrent weights."""
    for module in model.modules():
        if isinstance(module, nn.LSTM):
            for name in [name for name, _ in module.named_parameters() if name.startswith("weight_hh")]:
                torch_prune.ln_structured(module, name, 0.5, n=2, dim=0)
                torch_prune.remove(module, name)
    return model


def by_torch_pruning(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    import torch_pruning

    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    options = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [head]}
    torch_pruning.pruner.BasePruner(model, example, **options).step()
    return model


def by_tinynn(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    from tinynn.prune import OneShotChannelPruner

    OneShotChannelPruner(model, example, {"sparsity": 0.5, "metrics": "l2_norm"}).prune()
    return model


def by_nncf(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    import nncf

    mode = nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL
    pruned = nncf.prune(model, mode=mode, ratio=0.5, examples_inputs=example)
    return nncf.strip(pruned, example_input=example)


def by_torchao(model: nn.Module, example: Any, head: nn.Module) -> nn.Module:
    from torchao.sparsity import WandaSparsifier

    sparsifier = WandaSparsifier(sparsity_level=0.5)
    sparsifier.prepare(
        model, [{"tensor_fqn": f"{n}.weight"} for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    )
    model(*example) if isinstance(example, tuple) else model(example)
    sparsifier.step()
    sparsifier.squash_mask()
    return model


TOOLS: Mapping[str, tuple[str, Callable[[nn.Module, Any, nn.Module], nn.Module]]] = {
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


def milliseconds(model: nn.Module, example: Any) -> float:
    """Median of many calls."""
    taken = []
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.perf_counter()
            model(*example) if isinstance(example, tuple) else model(example)
            taken.append(time.perf_counter() - start)
    return sorted(taken)[REPEATS // 2] * 1e3


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:90]


def tell(dense: nn.Module, example: Any, head: str, measure: Callable[[nn.Module], str]) -> None:
    """Print one row for every tool."""
    print(f"| dense | {size(dense):,} | {measure(dense)} |", flush=True)
    for name, (package, make) in TOOLS.items():
        model = copy.deepcopy(dense)
        try:
            small = make(model, example, model.get_submodule(head)).eval()
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
    torch.set_num_threads(1)
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    print("BiLSTM 128 + 128 → LSTM 128 → Linear, random weights, 8 sequences of 50 steps\n")
    print("| tool | parameters | ms |\n|---|---:|---:|")
    example = torch.randn(8, 50, 40)
    tell(Chain().eval(), example, "head", lambda model: f"{milliseconds(model, example):.1f}")
    print("\ng2pM, a packed BiLSTM 32 + 32, trained\n\n| tool | parameters | accuracy |\n|---|---:|---:|")
    task = Polyphones(data)
    sentences = tuple(part[:16] for part in next(iter(task.calibration()))[:3])
    tell(task.build().eval(), sentences, "logit_layer.2", lambda model: f"{task.evaluate(model):.4f}")
    try:
        print(f"\n{tfmot_row()}")
    except ImportError:
        print("\ntfmot: not installed", file=sys.stderr)


if __name__ == "__main__":
    main()
