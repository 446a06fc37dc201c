"""What statistics and soft pruning cost a training step of the paper's model.

python benchmarks/soft_pruning.py [--every 200] [--batch 4] [--frames 60] [--device cuda]

Two copies of the model train on the same batches, one step each in turn, one of them with a `Pruner` that selects and
silences units every so many steps. Printed is the ratio of the times of both over one whole period, on the clock and
of the processor, and what the step that selects takes.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.nn import functional

from reprune.torch import Pruner
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    plain, pruned = Training(options, pruned=False), Training(options, pruned=True)
    generator = torch.Generator().manual_seed(1)
    for step in range(options.every + 1):
        frames = torch.randint(0, 256, (options.batch, options.frames, FEATURES), generator=generator).byte()
        labels = (torch.rand(options.batch, CLASSES, generator=generator) < 3 / CLASSES).float()
        lengths = torch.full((options.batch,), options.frames)
        # The first step traces the model and warms up; each side goes first every other time.
        for side in (plain, pruned) if step % 2 else (pruned, plain):
            side.step(frames.to(plain.device), lengths, labels.to(plain.device), timed=step > 0)
    for name in ("clock", "processor"):
        without, with_pruner = getattr(plain, name), getattr(pruned, name)
        print(
            f"{name}: {sum(without):.1f} s without, {sum(with_pruner):.1f} s with: "
            f"{sum(with_pruner) / sum(without):.3f} times; the step that selects took "
            f"{with_pruner[-1] - without[-1]:.2f} s more"
        )


if __name__ == "__main__":
    main()
