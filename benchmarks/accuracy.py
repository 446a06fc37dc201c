"""Methods on four real tasks, one shot and after equal fine-tuning, over seeds: mean and standard deviation.

Dense models are trained from scratch for every seed (g2pM's is given). *Distilled* are models that learn from the dense
one's answers to training batches, without labels. All results are kept in --out: interrupted, the same command
goes on. The data's folder is $REPRUNE_DATA.

    python benchmarks/accuracy.py [--tasks g2pm,vowels,digits,words] [--seeds 5] [--out out/accuracy]
    python benchmarks/accuracy.py --tasks words --in-training    # methods that prune while the model trains, too
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS, Task

import reprune
from reprune.recipes.compare import compare
from reprune.report.compare_table import Cell

ONE_SHOT = ("reconstruct", "iss-gm", "iss-gm+reconstruct", "iss-norm", "random", "random+reconstruct")
FINETUNED = ("reconstruct", "iss-gm")
DISTILLED, DISTILL_STEPS = "reconstruct, distilled", 400
RATIOS = (0.25, 0.5, 0.75)
IN_TRAINING = (
    ("iss-gm", "soft:100"),
    ("iss-gm", "fractional:100"),
    ("iss-gm", "gradual:100"),
    ("reconstruct", "gradual:100"),
    ("iss-group-lasso", "after"),
    ("neuron-selection", "after"),
    ("random", "before"),
)


def dense(task: Task, seed: int, folder: Path) -> torch.nn.Module:
    """The trained model of a seed, from the folder if it is there."""
    path = folder / "dense.pt"
    if path.exists():
        model = task.build()
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    model = task.dense(seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


def measure(task: Task, seed: int, folder: Path) -> list[Cell]:
    """All cells of one seed."""
    model = dense(task, seed, folder)
    most = task.finetune_steps
    grids: dict[str, dict[str, Any]] = {
        "one_shot": {"methods": ONE_SHOT, "ratios": RATIOS},
        "finetuned": {"methods": FINETUNED, "ratios": (0.5,), "finetune_steps": (most // 4, most)},
    }
    found: dict[tuple[object, ...], Cell] = {}
    for name, grid in grids.items():
        cells = _compare(
            task, model, seed, folder / name, **grid, finetune=lambda small, steps: task.train(small, steps, seed)
        )
        found |= {(cell.method, cell.ratio, cell.steps): cell for cell in cells}
    cells = _compare(
        task,
        model,
        seed,
        folder / "distilled",
        methods=("reconstruct",),
        ratios=RATIOS,
        finetune_steps=DISTILL_STEPS,
        finetune=lambda small, steps: reprune.distill(
            small, model, task.lessons(seed, steps), steps, forward=task.forward
        ),
    )
    taught = [replace(cell, method=DISTILLED, steps=0) for cell in cells if cell.steps]
    return [*found.values(), *taught]


def _compare(task: Task, model: torch.nn.Module, seed: int, folder: Path, **grid: Any) -> list[Cell]:
    return compare(
        model,
        task.calibration(),
        task.evaluate,
        folder,
        forward=task.forward,
        metric=task.metric,
        seed=seed,
        say=lambda line: print(f"  {line}", flush=True),
        **grid,
    )


def measure_in_training(task: Task, seed: int, folder: Path) -> list[Cell]:
    """Half of the units removed while the model trains from scratch as long as the dense one; then fine-tuned alike.

    Beside them, `before`: a model that has only half of its units when its training begins.
    """
    most, cells = task.finetune_steps, []
    for method, schedule in IN_TRAINING:
        name = method if schedule == "after" else f"{method}, {schedule}"
        path = folder / "in_training" / f"{name.replace(', ', '-').replace(':', '-')}.json"
        if not path.exists():
            torch.manual_seed(seed)
            model = task.build()
            if schedule == "before":
                model = reprune.prune(model, task.calibration(), 0.5, method=method, forward=task.forward).model
                model = task.train(model, task.train_steps, seed)
            else:
                model = task.train(model, task.train_steps, seed, ratio=0.5, method=method, schedule=schedule)
            metrics = {0: task.evaluate(model)}
            metrics[most] = task.evaluate(task.train(model, most, seed))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(metrics))
            print(f"  {name}: {metrics}", flush=True)
        found = json.loads(path.read_text())
        cells += [Cell(name, 0.5, int(steps), metric, 0, 0, 0, 0.0) for steps, metric in found.items()]
    return cells


def table(name: str, task: type[Task], runs: list[list[Cell]]) -> str:
    """Mean ± standard deviation over seeds, as Markdown."""
    values: dict[tuple[str, float, int], list[float]] = defaultdict(list)
    for cells in runs:
        for cell in cells:
            values[cell.method, cell.ratio, cell.steps].append(cell.metric)

    def text(*key: object) -> str:
        held = values.get(key)  # type: ignore[call-overload]
        if not held:
            return ""
        digits = 1 if np.mean(held) > 10 else 4
        return f"{np.mean(held):.{digits}f}" + (f" ± {np.std(held, ddof=1):.{digits}f}" if len(held) > 1 else "")

    most = task.finetune_steps
    lines = [
        f"{name}: {task.metric}, dense {text('dense', 0.0, 0)}, {len(runs)} seeds",
        "",
        f"| method | 25% | 50% | 75% | 50%, {most // 4} steps | 50%, {most} steps |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    others = sorted({method for method, *_ in values} - {"dense", DISTILLED, *ONE_SHOT})
    for method in (DISTILLED, *ONE_SHOT, *others):
        cells = [text(method, ratio, 0) for ratio in RATIOS] + [text(method, 0.5, s) for s in (most // 4, most)]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    base = np.array(values["dense", 0.0, 0])
    rises = {m: abs(float(np.mean(np.array(values[m, 0.5, 0]) - base))) for m in FINETUNED}
    lines += ["", f"Change at 50%: reconstruct's is {rises['reconstruct'] / rises['iss-gm']:.2f} of iss-gm's."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/accuracy"))
    parser.add_argument("--in-training", action="store_true", help="methods that prune while the model trains, too")
    options = parser.parse_args()
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    for name in options.tasks.split(","):
        task, runs = TASKS[name](data), []
        for seed in range(options.seeds):
            print(f"{name}, seed {seed}", flush=True)
            folder = options.out / name / str(seed)
            runs.append(measure(task, seed, folder))
            if options.in_training:
                runs[-1] += measure_in_training(task, seed, folder)
            print(f"\n{table(name, TASKS[name], runs)}\n", flush=True)


if __name__ == "__main__":
    main()
