"""Every method that acts on training, at half of the units, on spoken digits: GAP beside that of the dense model.

python benchmarks/training_methods.py [--seeds 5] [--only iss-group-lasso,neuron-selection] [--out out/training-methods]

The data are those of `make spoken-digits`, in $REPRUNE_DATA, with its settings. The dense model is trained by itself,
with the same seed and for as long. A run that was interrupted goes on where it was; a table follows each seed.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

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


def options(method: str, schedule: str, seed: int) -> Options:
    return Options(
        train=(str(DATA / "train*.tfrecord"),),
        validate=(str(DATA / "validate*.tfrecord"),),
        test=(str(DATA / "test00.tfrecord"),),
        features={"audio": 128},
        classes=16,
        hidden=128,
        batch_size=32,
        learning_rate=3e-3,
        epochs=15,
        method=method,
        schedule=schedule,
        seed=seed,
        accelerator="cpu",
        progress=False,
    )


def table(found: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="methods, separated by commas, beside the first row's; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/training-methods"))
    given = parser.parse_args()
    wanted = given.only.split(",") if given.only else [method for method, _ in RUNS]
    runs = [run for run in RUNS if run == RUNS[0] or run[0] in wanted]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in range(given.seeds):
        for method, schedule in runs:
            folder = given.out / f"{method}-{schedule.replace(':', '-')}-{seed}"
            summary = youtube8m.run(options(method, schedule, seed), folder, resume=True)
            found.setdefault((method, schedule), []).append(summary)
        print(f"{table(found)}\n", flush=True)


if __name__ == "__main__":
    main()
