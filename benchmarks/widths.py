"""A convolutional recurrent network on spoken digits: recurrent units alone, or every width, at a quarter of its MACs.

The dense model is trained, pruned both ways, fine-tuned for equal steps, and timed on one thread beside the others.
Where recurrent units cannot save as many MACs, three quarters of them go. The data's folder is $REPRUNE_DATA.

    python benchmarks/widths.py [--steps 250] [--finetune-steps 80] [--seed 0]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tasks import Digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import reprune
from reprune.core.budget.cost import CostModel
from reprune.youtube8m.torch_batches import dequantize


class Crnn(nn.Module):
    """Convolutions over frames and bands, halving the bands, then a BiLSTM over frames and a mean over time."""

    def __init__(self, channels: int = 64, units: int = 256, classes: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 5, stride=(1, 4), padding=2)
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=(1, 2), padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.lstm = nn.LSTM(channels * 8, units, batch_first=True, bidirectional=True)
        self.output = nn.Linear(2 * units, classes)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B × classes) of frames as records hold them (B × T × 128)."""
        x = F.relu(self.norms[0](self.stem(dequantize(frames, lengths)[:, None])))
        for block, norm in zip(self.blocks, list(self.norms)[1:], strict=True):
            x = F.relu(norm(block(x)))
        x = self.lstm(x.transpose(1, 2).flatten(2))[0]
        heard = (torch.arange(x.shape[1], device=x.device) < lengths[:, None])[..., None]
        logits: Tensor = self.output((x * heard).sum(1) / lengths[:, None])
        return logits


class Sounds(Digits):
    """Spoken digits, for a network with convolutions."""

    def build(self) -> nn.Module:
        return Crnn()


def milliseconds(models: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], rounds: int = 30) -> dict[str, float]:
    """Median time of one call of each, in turn, so that what else the machine does meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.no_grad():
        for _ in range(rounds):
            for name, model in models.items():
                started = time.thread_time()
                model(*inputs)
                times[name].append(1000 * (time.thread_time() - started))
    return {name: statistics.median(found[3:]) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--finetune-steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = Sounds(Path(os.environ.get("REPRUNE_DATA", "../shared/data")))
    torch.manual_seed(options.seed)
    dense = task.train(task.build(), options.steps, options.seed)
    models = {"dense": dense}
    plans: dict[str, Any] = {}
    for name, budget in {
        "recurrent": {"ratio": 0.75, "of": "units", "scope": "recurrent"},
        "all": {"ratio": 0.75, "of": "macs", "scope": "all"},
    }.items():
        batches = list(islice(task.batches(0), 20))
        result = reprune.prune(dense, batches, forward=task.forward, **budget)
        plans[name], models[name] = result.plan, result.model
    shot = {name: task.evaluate(model) for name, model in models.items()}
    for name in plans:
        task.train(models[name], options.finetune_steps, options.seed + 1)
    example = next(iter(task.tested))
    times = {size: milliseconds(models, (example.frames[:size], example.lengths[:size])) for size in (1, 8)}
    print(f"{'scope':10} {'MACs':>6} {'batch 1, ms':>16} {'batch 8, ms':>16} {'GAP, one shot':>14} {'fine-tuned':>11}")
    for name, model in models.items():
        left = 1.0
        if name in plans:
            cost = CostModel(plans[name].structure)
            left = cost("macs", plans[name].counts()) / cost("macs", plans[name].structure.counts())
        faster = [f"{found[name]:7.2f} ({found['dense'] / found[name]:4.2f}x)" for found in times.values()]
        print(f"{name:10} {left:6.0%} {faster[0]:>16} {faster[1]:>16} {shot[name]:14.4f} {task.evaluate(model):11.4f}")


if __name__ == "__main__":
    main()
