"""What statistics and soft pruning cost a training step of the paper's model.

python benchmarks/soft_pruning.py [--every 200] [--periods 1] [--batch 4] [--frames 60] [--device cuda]

Two copies of the model train on the same batches, one step each in turn, one of them with a `Pruner` that selects and
silences units every so many steps. Steps are put together in blocks, each with one pass that is looked at, and the
median over all blocks of the ratio of both sides' times is taken: whatever else the machine does falls on a few blocks.
The step that selects is apart: what it takes more, the median over the periods, is shared out over its period.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional

from reprune.torch import Pruner
from reprune.torch.training.selection import PASSES
from reprune.youtube8m.model import VideoClassifier

FEATURES, CLASSES, HIDDEN = 1152, 3862, 1024


class Training:
    def __init__(self, options: argparse.Namespace, *, pruned: bool) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        self.model = VideoClassifier(FEATURES, CLASSES, HIDDEN).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4)
        schedule = f"soft:{options.every}"
        self.pruner = Pruner(self.model, ratio=0.5, method="iss-gm", schedule=schedule) if pruned else None
        self.clock: list[float] = []
        self.processor: list[float] = []

    def step(self, frames: torch.Tensor, lengths: torch.Tensor, labels: torch.Tensor, *, timed: bool) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        self.optimizer.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(self.model(frames, lengths), labels)
        loss.backward()
        self.optimizer.step()
        if self.pruner is not None and timed:
            self.pruner.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        if timed:
            self.clock.append(time.perf_counter() - clock)
            self.processor.append(time.process_time() - processor)


def report(name: str, without: list[float], pruned: list[float], every: int) -> None:
    """One line for the times of both sides, step by step."""
    block = max(every // PASSES, 1)
    ratios, selections = [], []
    for start in range(0, len(without), every):
        plain, other = without[start : start + every], pruned[start : start + every]
        # The last block ends with the step that selects.
        for first in range(0, every - block, block):
            ratios.append(sum(other[first : first + block]) / sum(plain[first : first + block]))
        selections.append((other[-1] - plain[-1]) / (statistics.median(plain) * every))
    looking, selecting = statistics.median(ratios), statistics.median(selections)
    print(
        f"{name}: {looking + selecting:.3f} times: {looking:.3f} by looking at passes (of {len(ratios)} blocks), "
        f"{selecting:+.3f} by selecting; a step without takes {statistics.median(without):.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--periods", type=int, default=1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    plain, pruned = Training(options, pruned=False), Training(options, pruned=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(options.every * options.periods + 1):
        frames = torch.randint(0, 256, (options.batch, options.frames, FEATURES), generator=generator).byte()
        labels = (torch.rand(options.batch, CLASSES, generator=generator) < 3 / CLASSES).float()
        lengths = torch.full((options.batch,), options.frames)
        # The first step traces the model and warms up; each side goes first every other time.
        for side in (plain, pruned) if step % 2 else (pruned, plain):
            side.step(frames.to(plain.device), lengths, labels.to(plain.device), timed=step > 0)
    report("clock", plain.clock, pruned.clock, options.every)
    report("processor", plain.processor, pruned.processor, options.every)


if __name__ == "__main__":
    main()
