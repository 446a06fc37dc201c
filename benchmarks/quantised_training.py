"""What 8 bits cost a small classifier, and what training with the rounding gives back.

    python benchmarks/quantised_training.py            # Japanese vowels, three seeds, two minutes

An LSTM of 64 units tells nine speakers apart. Three quarters of its multiply-accumulates are removed and it is trained
on; then it is written in 8 bits as it is, after as many steps again without rounding, and after those steps with
`reprune.torch.fake_quantise`. Accuracies are those of the `.onnx` files on the 370 test recordings; the divergence is
that of a file's answers from those of the model it was made from.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import warnings
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tasks import Vowels
from torch import nn

import reprune

Rows = dict[str, list[tuple[float, float]]]


def measure(task: Vowels, model: nn.Module, name: str, rows: Rows, folder: Path) -> None:
    """Accuracy and divergence of a model's files."""
    frames, lengths, speakers = task.sets[1]
    with torch.no_grad():
        own = torch.log_softmax(model(frames, lengths), 1)

    def quality(run: Any) -> float:
        answers = torch.log_softmax(torch.from_numpy(run(frames.numpy(), lengths.numpy())[0]), 1)
        found.append((float((answers.argmax(1) == speakers).double().mean()), kl(own, answers)))
        return found[-1][0]

    calibration = [batch[:2] for batch in task.calibration()]
    for way in ("dynamic", "static"):
        found: list[tuple[float, float]] = []
        given = calibration if way == "static" else None
        example = (frames[:2], lengths[:2])
        reprune.export(model, example, folder / "model.onnx", int8=way, calibration=given, evaluate=quality)
        rows[f"{name}, in single precision"] += found[:1] if way == "dynamic" else []
        rows[f"{name}, {way} 8 bits"] += found[1:]


def kl(own: torch.Tensor, other: torch.Tensor) -> float:
    return float((own.exp() * (own - other)).sum(1).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("REPRUNE_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    task, rows = Vowels(options.data), defaultdict[str, list[tuple[float, float]]](list)
    steps = task.finetune_steps
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            dense = task.dense(seed)
            batches = task.calibration()
            small = reprune.prune(dense, batches, ratio=0.75, of="macs", forward=task.forward).model
            small = task.train(small, steps, seed)
            aware = reprune.torch.fake_quantise(copy.deepcopy(small))
            kinds = {
                "trained": small,
                "trained as long without rounding": task.train(copy.deepcopy(small), steps, seed + 100),
                "trained as long with rounding": task.train(aware, steps, seed + 100),
            }
            for name, model in kinds.items():
                measure(task, model, name, rows, Path(folder))
    print("| pruned model | accuracy | divergence |\n|---|---:|---:|")
    for name, found in rows.items():
        accuracy, divergence = np.mean(found, 0)
        print(f"| {name} | {accuracy:.4f} | {divergence:.1e} |")


if __name__ == "__main__":
    main()
