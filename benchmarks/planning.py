"""What pruning costs beside the forward passes over the same calibration batches: time and peak memory, in one run.

    python benchmarks/planning.py [--models bilstm,words,widths] [--methods reconstruct,iss-gm,magnitude] [--threads 2]

Asked of the default method: at most three times the plain passes and a second for the BiLSTM, three times and five
seconds for the language model, and there a peak of at most four times the memory of the weights, the model included.
All widths of a recogniser with 50 million parameters may take three times the passes and half a minute.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

import reprune
import reprune.torch
from reprune.core.errors import CalibrationWarning
from reprune.core.layers import Scope

MEGABYTE = 1 << 20 if sys.platform == "darwin" else 1 << 10
"""Peaks are told in kilobytes, on macOS in bytes: how many of them are a megabyte."""


class Tagger(nn.Module):
    """Two bidirectional layers; the last step is classified."""

    def __init__(self, units: int = 512) -> None:
        super().__init__()
        self.lstm = nn.LSTM(units, units, 2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * units, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(x)[0][:, -1])


class LanguageModel(nn.Module):
    """Two layers between an embedding and words."""

    def __init__(self, units: int = 2000, words: int = 10_000) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, units)
        self.lstm = nn.LSTM(units, units, 2)
        self.out = nn.Linear(units, words)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.lstm(self.embedding(ids))[0])


class Recogniser(nn.Module):
    """Convolutions over frames and bands, two BiLSTM layers, a gated linear unit with a way around it."""

    def __init__(self, units: int = 1024, words: int = 1000) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 128, 3, (1, 2), 1), nn.Conv2d(128, 128, 3, (1, 2), 1)
        self.norm, self.enter = nn.BatchNorm2d(128), nn.Linear(1280, units)
        self.lstm = nn.LSTM(units, units, 2, bidirectional=True, batch_first=True)
        self.gate, self.up = nn.Linear(2 * units, 1024), nn.Linear(2 * units, 1024)
        self.down, self.out = nn.Linear(1024, 2 * units), nn.Linear(2 * units, words)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.norm(self.first(frames[:, None])))))
        x, _ = self.lstm(torch.relu(self.enter(x.transpose(1, 2).flatten(2))))
        return self.out(x + self.down(torch.sigmoid(self.gate(x)) * self.up(x)))


@dataclass(frozen=True)
class Case:
    """A model, its batches, and what is asked.

    Attributes:
        title: What it is.
        model: Builds the model.
        batches: Draws the batches.
        extra: Seconds on top of three times the plain passes.
        memory: Peak over the memory of the weights; None if nothing is asked.
        scope: What counts as units.
    """

    title: str
    model: Callable[[], nn.Module]
    batches: Callable[[], list[torch.Tensor]]
    extra: float
    memory: float | None = None
    scope: Scope = "recurrent"


CASES = {
    "bilstm": Case("2 x BiLSTM 512, 12 x (16, 60)", Tagger, lambda: list(torch.randn(12, 16, 60, 512)), 1.0),
    "words": Case(
        "2 x LSTM 2000 on words, 10 x (35, 20)",
        LanguageModel,
        lambda: list(torch.randint(0, 10_000, (10, 35, 20))),
        5.0,
        4.0,
    ),
    "widths": Case(
        "every width of a recogniser, 4 x (8, 50, 40)",
        Recogniser,
        lambda: list(torch.randn(4, 8, 50, 40)),
        30.0,
        scope="all",
    ),
}


def measure(name: str, method: str, threads: int, repeats: int) -> str:
    """One line of the table; in a process of its own, whose peak is that of this model."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    case = CASES[name]
    model, batches = case.model().eval(), case.batches()
    weights = sum(weight.nbytes for weight in model.parameters()) / (1 << 20)

    def passes() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                model(batch)
        return time.perf_counter() - started

    with torch.no_grad():
        model(batches[0])
    plain = [passes() for _ in range(repeats)]
    with warnings.catch_warnings():
        # Random inputs of a few batches do for the time; the plans are of no use.
        warnings.simplefilter("ignore", CalibrationWarning)
        started = time.perf_counter()
        reprune.prune(model, batches, method=method, scope=case.scope)
        took = time.perf_counter() - started
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / MEGABYTE / weights
    plain += [passes() for _ in range(repeats)]
    cost = median(plain)
    line = f"{method:12} {cost:8.2f} {took:9.2f} {took / cost:7.1f}x {peak:7.1f}x"
    if method == "reconstruct":
        limit = 3 * cost + case.extra
        line += f"   {limit:.2f} s: {'met' if took <= limit else 'missed'}"
        if case.memory is not None:
            line += f", {case.memory:.0f}x: {'met' if peak <= case.memory else 'missed'}"
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(CASES))
    parser.add_argument("--methods", default="reconstruct,iss-gm,magnitude")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2, help="of the plain passes, before and after")
    options = parser.parse_args()
    # NumPy's linear algebra reads these when it is loaded, in the processes to come.
    os.environ.update({name: str(options.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")})
    for name in options.models.split(","):
        print(f"{CASES[name].title}, {options.threads} threads")
        print("method        passes, s  prune, s   ratio  memory   asked", flush=True)
        for method in options.methods.split(","):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(measure, (name, method, options.threads, options.repeats)), flush=True)
        print()


if __name__ == "__main__":
    main()
