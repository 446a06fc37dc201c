"""How much faster pruned models run where they are deployed: ONNX Runtime (8-bit weights too) and PyTorch, on a CPU.

    python benchmarks/deployment.py            # both models, about ten minutes on a machine that does nothing else
    python benchmarks/deployment.py --quick    # a twentieth of the steps

Weights are random: times do not depend on them. Sizes kept are multiples of 16, as vector units like them.
"""

from __future__ import annotations

import argparse
import platform
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import reprune
from reprune.recipes.bench.bench import Comparison, Row, bench

REDUCTIONS = (2, 4, 8, 16)
TARGETS = {"onnxruntime": 0.85, "torch": 0.7}
"""Measured speed-up that we aim at, as a fraction of the MAC reduction."""
INT8_TARGET = 1.5
"""How many times as fast as in single precision 8-bit weights are to be."""


class VideoClassifier(nn.Module):
    """The paper's network: 1152 → BiLSTM 512+512 → LSTM 1024 → 3862."""

    def __init__(self) -> None:
        super().__init__()
        self.both_ways = nn.LSTM(1152, 512, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(1024, 1024, batch_first=True)
        self.output = nn.Linear(1024, 3862)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.lstm(self.both_ways(frames)[0])[1][0][-1])


class LanguageModel(nn.Module):
    """Two LSTMs of 1500 units between an embedding and 10 000 words."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10_000, 1500)
        self.lstm = nn.LSTM(1500, 1500, num_layers=2, batch_first=True)
        self.output = nn.Linear(1500, 10_000)

    def forward(self, words: Tensor) -> Tensor:
        return self.output(self.lstm(self.embedding(words))[0])


def family(model: nn.Module, example: Tensor) -> dict[str, nn.Module]:
    """The dense model and its pruned forms."""
    models = {"dense": model}
    for times in REDUCTIONS:
        options = {"of": "macs", "method": "magnitude", "round_to": 16, "uniform": True, "verify": False}
        try:
            models[f"MACs ÷ {times}"] = reprune.prune(model, [example], ratio=1 - 1 / times, **options).model
        except reprune.BudgetError as error:
            print(f"÷ {times}: {error}")
    return models


def summary(found: Comparison) -> str:
    """A table in Markdown: a row per model, and whether each number reaches what we aim at."""
    rows = {(row.runtime, row.model): row for row in found.rows}
    lines = [
        "| MACs | ONNX Runtime, ms | faster | 8 bits, ms | on top | PyTorch, ms | faster | MB | 8 bits, MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(row.model for row in found.rows):
        plain, small, torch_row = (rows[key, name] for key in ("onnxruntime", "onnxruntime-int8", "torch"))
        on_top = plain.median_ms / small.median_ms
        cells = [
            "dense" if name == "dense" else f"÷ {found.reduction(plain):.2f}",
            f"{plain.median_ms:.2f}", speed_up(found, plain),
            f"{small.median_ms:.2f}", f"{on_top:.2f}{mark(on_top >= INT8_TARGET)}",
            f"{torch_row.median_ms:.2f}", speed_up(found, torch_row),
            f"{plain.size_mb:.2f}", f"{small.size_mb:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    aims = ", ".join(f"{share} of the MAC reduction in {runtime}" for runtime, share in TARGETS.items())
    return "\n".join([*lines, "", f"Aims: {aims}, {INT8_TARGET} times more with 8 bits; ✗ marks what misses them."])


def speed_up(found: Comparison, row: Row) -> str:
    times = found.speed_up(row)
    reached = row.model == "dense" or times >= TARGETS[row.runtime] * found.reduction(row)
    return f"{times:.2f}{mark(reached)}"


def mark(reached: bool) -> str:
    return "" if reached else " ✗"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=["video", "language"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    steps = {"video": 300, "language": 35}
    if arguments.quick:
        steps = {name: max(2, count // 20) for name, count in steps.items()}
    print(f"{platform.machine()}, torch {torch.__version__}, {arguments.threads} thread(s)")
    cases = {
        "video": (VideoClassifier, torch.randn(1, steps["video"], 1152)),
        "language": (LanguageModel, torch.randint(0, 10_000, (1, steps["language"]))),
    }
    for name, (kind, example) in cases.items():
        if arguments.only not in (None, name):
            continue
        models = family(kind().eval(), example)
        runtimes = ("onnxruntime", "onnxruntime-int8", "torch")
        found = bench(models, example, runtimes=runtimes, threads=[arguments.threads], repeats=arguments.repeats)
        print(f"\n{kind.__doc__} Input {tuple(example.shape)}, medians of {arguments.repeats} calls in turn\n")
        print(f"{summary(found)}\n\n{found}", flush=True)
        if arguments.json:
            arguments.json.with_stem(f"{arguments.json.stem}-{name}").write_text(found.to_json())


if __name__ == "__main__":
    main()
