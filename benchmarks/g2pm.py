"""Test accuracy of g2pM's trained BiLSTM, dense and with a quarter, a half and three quarters of its units removed.

One shot: calibrated on the development set without labels, no fine-tuning. The data (see the project's data folder, or
set REPRUNE_DATA) holds the trained weights and both sets.

    python benchmarks/g2pm.py [--methods iss-gm,reconstruct] [--ratios 0.25,0.5,0.75] [--samples 3000]
    python benchmarks/g2pm.py --calibration 30,100,300,1000,3000,9893   # how many samples are enough
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import reprune
from reprune.core.errors import CalibrationWarning
from reprune.core.methods import get_method

METHODS = (
    "reconstruct",
    "iss-gm",
    "iss-gm+mean",
    "iss-gm+reconstruct",
    "iss-gm-structure",
    "iss-gm-responses",
    "iss-gm-medoid",
    "iss-gm-weiszfeld",
    "iss-norm",
    "pfa-en",
    "pfa-kl",
    "pfa-kl+reconstruct",
    "fsdp",
    "taylor",
    "taylor+reconstruct",
    "variance",
    "random",
    "random+reconstruct",
)
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class G2pM(nn.Module):
    """Embedding → BiLSTM → the output at one position → Linear → ReLU → Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5398, 64)
        self.lstm = nn.LSTM(64, 32, bidirectional=True, batch_first=True)
        self.logit_layer = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 876))

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True)
        return self.logit_layer(out[torch.arange(len(out)), position])


class Split:
    """A set of sentences, each with one character to read."""

    def __init__(self, path: Path, samples: int | None = None, size: int = 256) -> None:
        with np.load(path) as data:
            self.arrays = {name: torch.from_numpy(data[name][:samples]).long() for name in data.files}
        self.size = size

    def __len__(self) -> int:
        return -(-len(self.arrays["ids"]) // self.size)

    def parts(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, len(self.arrays["ids"]), self.size):
            part = {name: array[start : start + self.size] for name, array in self.arrays.items()}
            part["ids"] = part["ids"][:, : int(part["lengths"].max())]
            yield part

    def __iter__(self) -> Iterator[Batch]:
        for part in self.parts():
            yield part["ids"], part["lengths"], part["position"]


class Labelled:
    """The same batches with labels and candidates."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for part in self.split.parts():
            yield part["ids"], part["lengths"], part["position"], part["label"]


def build(folder: Path) -> G2pM:
    """The trained model."""
    model = G2pM()
    with np.load(folder / "weights.npz") as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights.files})
    return model.eval()


def accuracy(model: nn.Module, split: Split) -> float:
    """Share of characters read right: arg max over the candidates."""
    right = 0
    with torch.no_grad():
        for part in split.parts():
            logits = model(part["ids"], part["lengths"], part["position"])
            candidates = part["candidates"]
            scores = logits.gather(1, candidates.clamp(min=0)).masked_fill(candidates < 0, -torch.inf)
            chosen = candidates.gather(1, scores.argmax(1, keepdim=True))[:, 0]
            right += int((chosen == part["label"]).sum())
    return right / len(split.arrays["ids"])


def table_of_sizes(model: nn.Module, test: Split, folder: Path, sizes: list[int], ratios: list[float]) -> str:
    """Accuracy of reconstruct by number of calibration samples: mean over five draws of them."""
    lines = [f"| samples | {' | '.join(f'{ratio:.0%}' for ratio in ratios)} |", f"|---:|{'---:|' * len(ratios)}"]
    for size in sizes:
        found = []
        for seed in range(5):
            some = Split(folder / "dev.npz")
            drawn = torch.randperm(len(some.arrays["ids"]), generator=torch.Generator().manual_seed(seed))[:size]
            some.arrays = {name: array[drawn] for name, array in some.arrays.items()}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CalibrationWarning)
                calibration = reprune.calibrate(
                    model, some, methods=["reconstruct"], forward=lambda net, batch: net(*batch[:3])
                )
            found.append([accuracy(calibration.prune(ratio).model, test) for ratio in ratios])
        means, spreads = np.mean(found, axis=0), np.std(found, axis=0, ddof=1)
        cells = [f"{mean:.4f} ± {spread:.4f}" for mean, spread in zip(means, spreads, strict=True)]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--ratios", default="0.25,0.5,0.75")
    parser.add_argument("--of", default="units")
    parser.add_argument("--samples", type=int, help="of the test set")
    parser.add_argument("--calibration", help="numbers of samples of the development set: reconstruct with each")
    options = parser.parse_args()
    folder = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data")) / "g2pm"
    if not folder.is_dir():
        sys.exit(f"{folder} does not exist: set REPRUNE_DATA to the folder that holds g2pm/.")
    methods = options.methods.split(",")
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    model, test, dev = build(folder), Split(folder / "test.npz", options.samples), Split(folder / "dev.npz")
    if options.calibration:
        sizes = [int(size) for size in options.calibration.split(",")]
        print(table_of_sizes(model, test, folder, sizes, ratios))
        return
    with_labels = any(get_method(name).needs_labels or get_method(name).needs_loss for name in methods)
    started = time.perf_counter()
    calibration = reprune.calibrate(
        model,
        Labelled(dev) if with_labels else dev,
        methods=methods,
        labels=(lambda batch: batch[3]) if with_labels else None,
        loss=(lambda net, batch: nn.functional.cross_entropy(net(*batch[:3]), batch[3])) if with_labels else None,
        forward=lambda net, batch: net(*batch[:3]),
    )
    print(f"calibrated in {time.perf_counter() - started:.1f} s; dense accuracy {accuracy(model, test):.4f}\n")
    print(f"| method | {' | '.join(f'{ratio:.0%}' for ratio in ratios)} |")
    print(f"|---|{'---:|' * len(ratios)}", flush=True)
    for name in methods:
        found = []
        for ratio in ratios:
            small = calibration.prune(ratio, of=options.of, method=name).model
            found.append(accuracy(small, test))
        print(f"| {name} | {' | '.join(f'{value:.4f}' for value in found)} |", flush=True)


if __name__ == "__main__":
    main()
