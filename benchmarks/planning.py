"""Time to plan the 2×1500-unit language model of the ISS paper from given statistics, and what observing costs.

python benchmarks/planning.py [--units 1500] [--methods reconstruct,iss-gm]
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

import reprune.torch as verbs
from reprune.core.errors import CalibrationWarning


class LanguageModel(nn.Module):
    def __init__(self, units: int, words: int = 10_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, units)
        self.lstm = nn.LSTM(units, units, 2)
        self.out = nn.Linear(units, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=1500)
    parser.add_argument("--methods", default="reconstruct,iss-gm")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--repeats", type=int, default=5, help="of the passes, plain and observed in turn")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = LanguageModel(options.units).eval()
    batches = [torch.randint(0, 10_000, (options.steps, 20)) for _ in range(options.batches)]
    methods = options.methods.split(",")
    with warnings.catch_warnings(), torch.no_grad():
        # Random inputs of a few batches do for the time; the plans are of no use.
        warnings.simplefilter("ignore", CalibrationWarning)
        structure = verbs.trace(model, batches[0][:, :1])
        model(batches[0])
        pairs = [
            (
                seconds(lambda: [model(batch) for batch in batches]),
                seconds(lambda: verbs.observe(model, structure, batches, readings=True)),
            )
            for _ in range(options.repeats)
        ]
        ratio = median(observed / forward for forward, observed in pairs)
        calibration = verbs.calibrate(model, batches, methods=methods, verify=False)
    forward, observed = (median(part) for part in zip(*pairs, strict=True))
    print(f"forward passes {forward:.2f} s, observed {observed:.2f} s: {ratio:.2f} times, median of {options.repeats}")
    for method in methods:
        wall, processor = time.perf_counter(), time.process_time()
        calibration.plan(0.5, method=method)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        print(f"{method}: planned in {wall:.1f} s ({processor:.1f} s of processor time)", flush=True)


if __name__ == "__main__":
    main()
