"""Every method that acts on training, at half of the units, on spoken digits: GAP beside that of the dense model.

python benchmarks/training_methods.py [--seeds 5] [--only iss-group-lasso,neuron-selection] [--out out/training-methods]
python benchmarks/training_methods.py --beside-keras --seeds 1 [--hidden 64] [--epochs 8]

The data are those of `make spoken-digits`, in $REPRUNE_DATA, with its settings. The dense model is trained by itself,
with the same seed and for as long. A run that was interrupted goes on where it was; a table follows each seed.
With --beside-keras both frameworks run, from the same initial weights and on the same batches.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from reprune.recipes.run.options import Options
from reprune.recipes.video import recipe as youtube8m

DATA = Path(os.environ.get("REPRUNE_DATA", "../shared/data")) / "spoken_digits_yt8m"
RUNS = (
    ("iss-gm", "after"),
    ("iss-gm", "soft:200"),
    ("iss-gm", "fractional:200"),
    ("iss-gm", "gradual:200"),
    ("reconstruct", "gradual:200"),
    ("iss-group-lasso", "after"),
    ("neuron-selection", "after"),
)
Found = dict[tuple[str, str], list[dict[str, Any]]]


def options(method: str, schedule: str, seed: int, framework: str, given: argparse.Namespace) -> Options:
    return Options(
        train=(str(DATA / "train*.tfrecord"),),
        validate=(str(DATA / "validate*.tfrecord"),),
        test=(str(DATA / "test00.tfrecord"),),
        features={"audio": 128},
        classes=16,
        hidden=given.hidden,
        batch_size=32,
        learning_rate=3e-3,
        epochs=given.epochs,
        method=method,
        schedule=schedule,
        seed=seed,
        accelerator="cpu",
        progress=False,
        framework=framework,
    )


def table(found: Found) -> str:
    """One row for each run: means over the seeds, and the least favourable one."""
    dense = [summary["dense"]["gap"] for summary in found[RUNS[0]]]
    lines = [
        "| method | schedule | GAP | dense − pruned, mean | worst | MACs left | seeds |",
        "|---|---|---:|---:|---:|---:|---:|",
        f"| dense | | {statistics.mean(dense):.4f} | | | 100% | {len(dense)} |",
    ]
    for (method, schedule), summaries in found.items():
        gaps = [summary["pruned"]["gap"] for summary in summaries]
        losses = [before - after for before, after in zip(dense, gaps, strict=False)]
        left = statistics.mean(summary["pruned"]["macs"] / summary["dense"]["macs"] for summary in summaries)
        lines.append(
            f"| `{method}` | `{schedule}` | {statistics.mean(gaps):.4f} | {statistics.mean(losses):+.4f} | "
            f"{max(losses):+.4f} | {left:.0%} | {len(gaps)} |"
        )
    return "\n".join(lines)


def beside(torch: Found, keras: Found) -> str:
    """One row for each run: GAP in both frameworks, means over the seeds."""
    lines = ["| method | schedule | PyTorch | Keras | Keras − PyTorch |", "|---|---|---:|---:|---:|"]
    rows: list[tuple[str, str, str]] = [(method, schedule, "pruned") for method, schedule in torch]
    for method, schedule, which in [(*RUNS[0], "dense"), *rows]:
        gaps = [statistics.mean(s[which]["gap"] for s in found[method, schedule]) for found in (torch, keras)]
        name = f"`{method}` | `{schedule}`" if which == "pruned" else "dense |"
        lines.append(f"| {name} | {gaps[0]:.4f} | {gaps[1]:.4f} | {gaps[1] - gaps[0]:+.4f} |")
    return "\n".join(lines)


def start_alike() -> Any:
    """Within this context, the dense model of the recipe in Keras starts from the weights of that in PyTorch."""
    from reprune.recipes.video import keras_recipe, torch_recipe

    made = keras_recipe.YouTube8M.build

    def build(recipe: Any) -> Any:
        like, model = torch_recipe.YouTube8M(recipe.options).build(), made(recipe)
        model.set_weights(as_in_keras({name: value.numpy() for name, value in like.state_dict().items()}))
        return model

    return patch.object(keras_recipe.YouTube8M, "build", build)


def as_in_keras(weights: dict[str, Any]) -> Sequence[Any]:
    """The weights of a `VideoClassifier` in the order of `video_classifier`."""
    found: list[Any] = []
    for prefix, suffix in (("bidirectional", "l0"), ("bidirectional", "l0_reverse"), ("recurrent", "l0")):
        ours, state, bias, state_bias = (
            weights[f"{prefix}.{part}_{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        found += [ours.T, state.T, bias + state_bias]
    return [*found, weights["output.weight"].T, weights["output.bias"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="methods, separated by commas, beside the first row's; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/training-methods"))
    parser.add_argument("--beside-keras", action="store_true")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=15)
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else [method for method, _ in RUNS]
    runs = [run for run in RUNS if run == RUNS[0] or run[0] in wanted]
    found: dict[str, Found] = {framework: {} for framework in ("torch", "keras")[: 1 + given.beside_keras]}
    for seed in range(given.seeds):
        for method, schedule in runs:
            for framework, summaries in found.items():
                folder = given.out / f"{method}-{schedule.replace(':', '-')}-{seed}" / framework
                with start_alike() if framework == "keras" else nullcontext():
                    summary = youtube8m.run(options(method, schedule, seed, framework, given), folder, resume=True)
                summaries.setdefault((method, schedule), []).append(summary)
        print(f"{beside(**found) if given.beside_keras else table(found['torch'])}\n", flush=True)


if __name__ == "__main__":
    main()
