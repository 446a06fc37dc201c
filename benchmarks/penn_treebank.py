"""Penn Treebank: the large model of Zaremba et al. made some twenty times as fast, beside the published numbers.

From one trained dense model: what pruning costs in one shot, then students that learn from the text and from the dense
model's answers (`--teach` of the language recipe, with answers computed once: of the 10,000 probabilities of a word the
64 largest are kept). Methods that act on the training itself start from the dense model as well. Whatever is done is in
--out: interrupted, or out of --minutes, the same command goes on.

    python benchmarks/penn_treebank.py --text DIR --out DIR [--minutes 9] [--device cuda]
    python benchmarks/penn_treebank.py --text DIR --out DIR --words 20000 --epochs 1    # a look at it, on a CPU

DIR holds ptb.train.txt, ptb.valid.txt and ptb.test.txt, which the LDC licenses. The dense model is that of
$REPRUNE_DATA/ptb_lstm_2x1500.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import reprune
import reprune.torch
from reprune import Method
from reprune.recipes.bench.bench import bench
from reprune.recipes.language.text import Vocabulary
from reprune.recipes.language.word_model import WordModel

WORDS, UNITS, UNROLL, STREAMS, KEPT = 10_000, 1500, 35, 20, 64
PUBLISHED = (
    ("ISS (Wen et al. 2018)", "373 + 315", 78.57, 78.65, "10.59"),
    ("neuron selection (Wen et al. 2020)", "", 78.57, 78.57, "nearly 20"),
)
ONE_SHOT: dict[str, str | Method] = {
    "reconstruct": "reconstruct",
    "split by cost": Method("cost", "reconstruction", "least-squares"),
    "equal shares": Method("uniform", "reconstruction", "least-squares"),
    "split by energy": Method("energy", "reconstruction", "least-squares"),
    "iss-gm+reconstruct": "iss-gm+reconstruct",
    "magnitude": "magnitude",
    "iss-gm": "iss-gm",
}
RATIOS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Student:
    """A small model, and how it is taught.

    Attributes:
        method: How it is pruned; methods that act on the training do so for `pruned_in` epochs first.
        ratio: Fraction of the units to remove.
        counts: Units that the two layers keep; None where the method decides.
        dropout: Fraction dropped.
        rate: First step size of gradient descent, falling to zero along a cosine.
        share: Of the dense model's answers in what is learned; the rest is the text's.
        pruned_in: See `method`.
    """

    method: str
    ratio: float
    counts: tuple[int, int] | None = None
    dropout: float = 0.25
    rate: float = 1.0
    share: float = 0.5
    pruned_in: int = 0


STUDENTS = {
    "size of ISS": Student("reconstruct", 1 - 688 / 3000, (373, 315)),
    "20 times as fast": Student("iss-norm+reconstruct", 0.77, (345, 345)),
    "20 times as fast (measured split)": Student("reconstruct", 0.77),
    "ISS group lasso": Student("iss-group-lasso", 0.77, pruned_in=4),
    "neuron selection": Student("neuron-selection", 0.77, pruned_in=4),
}


class Text:
    """A text in streams (T × B), window by window."""

    def __init__(self, numbers: Tensor, streams: int = STREAMS) -> None:
        length = (len(numbers) - 1) // streams
        shifted = (numbers[shift : shift + length * streams].view(streams, length).T for shift in (0, 1))
        self.words, self.following = (part.contiguous() for part in shifted)

    @property
    def pieces(self) -> list[slice]:
        """Where the windows are."""
        return [slice(start, start + UNROLL) for start in range(0, len(self.words), UNROLL)]

    def windows(self, device: str) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Where each window is, its words, and the words that follow them."""
        for piece in self.pieces:
            yield piece, self.words[piece].to(device), self.following[piece].to(device)


def dense_model(folder: Path) -> WordModel:
    """The stored model: rows of 8 bits, each with a scale."""
    packed = zlib.decompress(b"".join((folder / f"dense.{part}.bin").read_bytes() for part in range(4)))
    state, at = {}, 0
    for name, shape in json.loads((folder / "dense.json").read_text()).items():
        rows, columns = shape[0], math.prod(shape[1:])
        values = np.frombuffer(packed, np.int8, rows * columns, at).reshape(rows, columns)
        scales = np.frombuffer(packed, "<f4", rows, at + rows * columns)
        state[name] = torch.from_numpy(values * scales[:, None]).reshape(shape)
        at += rows * columns + 4 * rows
    model = WordModel(WORDS, UNITS, 2)
    model.load_state_dict(state)
    return model.eval()


@torch.no_grad()
def perplexity(model: nn.Module, text: Text, device: str) -> float:
    """Of a text, every stream from a zero state."""
    model.to(device).eval()
    total, state = 0.0, None
    for _, words, following in text.windows(device):
        logits, state = model(words, state)
        total += float(functional.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum"))
    return math.exp(total / text.words.numel())


class Answers:
    """The dense model's answers to a text: the largest probabilities of each next word, and which words they are of."""

    def __init__(self, model: nn.Module, text: Text, folder: Path, device: str) -> None:
        paths, done = (folder / "answers.npy", folder / "words.npy"), folder / "answers.done"
        if not done.exists():
            shape = (*text.words.shape, KEPT)
            values = np.lib.format.open_memmap(paths[0], "w+", np.float16, shape)
            which = np.lib.format.open_memmap(paths[1], "w+", np.uint16, shape)
            state = None
            with torch.no_grad():
                for piece, words, _ in text.windows(device):
                    logits, state = model.to(device)(words, state)
                    largest = logits.softmax(-1).topk(KEPT)
                    values[piece] = largest.values.half().cpu().numpy()
                    which[piece] = largest.indices.cpu().numpy()
            done.touch()
        self._values, self._which = (np.load(path, mmap_mode="r") for path in paths)

    def cross_entropy(self, piece: slice, logits: Tensor) -> Tensor:
        """Of a window with its answers, mean over words."""
        values = torch.from_numpy(self._values[piece].astype(np.float32)).to(logits.device)
        which = torch.from_numpy(self._which[piece].astype(np.int64)).to(logits.device)
        found = -(values * logits.log_softmax(-1).gather(-1, which)).sum(-1)
        return (found / values.sum(-1)).mean()


@dataclass
class Run:
    """Everything that a run works on."""

    dense: WordModel
    train: Text
    valid: Text
    test: Text
    device: str
    out: Path
    until: float
    epochs: int

    def calibration(self) -> list[Any]:
        """Sixty windows spread over the text."""
        pieces = self.train.pieces[:-1]
        return [self.train.words[piece].to(self.device) for piece in pieces[:: max(len(pieces) // 60, 1)]][:60]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What was found out before, or is found out now."""
        path = self.out / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(make()))
        return json.loads(path.read_text())


def one_shot(run: Run) -> None:
    """Print what pruning costs without any training."""
    calibration, rows = None, []
    for name, method in ONE_SHOT.items():
        cells = []
        for ratio in RATIOS:

            def measure(method: str | Method = method, ratio: float = ratio) -> Any:
                nonlocal calibration
                if calibration is None:
                    given = {"forward": lambda model, words: model(words)[0], "divergence": "kl"}
                    calibration = reprune.calibrate(run.dense.to(run.device), run.calibration(), **given)
                result = calibration.prune(ratio, method=method)
                return [list(result.plan.counts().values()), perplexity(result.model, run.test, run.device)]

            counts, value = run.kept(f"one shot, {name}, {ratio}", measure)
            cells.append(f"{counts[0]} + {counts[1]}: {value:.1f}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)


def pruned(student: Student, run: Run) -> WordModel:
    """The student before it is taught."""
    if student.pruned_in:
        return pruned_while_training(student, run)
    counts = None if student.counts is None else {f"recurrent.{i}:l0": n for i, n in enumerate(student.counts)}
    result = reprune.prune(
        run.dense.to(run.device),
        run.calibration(),
        student.ratio,
        method=student.method,
        counts=counts,
        divergence="kl",
        forward=lambda model, words: model(words)[0],
    )
    return result.model


def pruned_while_training(student: Student, run: Run) -> WordModel:
    """What a method makes of the dense model that acts on its training."""
    model = WordModel(WORDS, UNITS, 2, dropout=0.5)
    model.load_state_dict(run.dense.state_dict())
    model.to(run.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    steps = student.pruned_in * len(run.train.pieces)
    given = {"ratio": student.ratio, "method": student.method, "optimizer": optimizer, "total_steps": steps}
    pruner = reprune.torch.Pruner(model, run.train.words[:8, :2].to(run.device), **given)
    for _ in range(student.pruned_in):
        state = None
        for _, words, following in run.train.windows(run.device):
            logits, state = model(words, detached(state))
            loss = functional.cross_entropy(logits.flatten(0, 1), following.flatten()) * len(words)
            step(model, optimizer, loss + pruner.loss())
            pruner.step()
    return pruner.finish()


def teach(name: str, student: Student, run: Run, answers: Answers) -> WordModel | None:
    """The student, once it has been taught for all epochs; None when the time is over before."""
    path = run.out / f"{name}.pt"
    held = torch.load(path, map_location=run.device, weights_only=False) if path.exists() else None
    small = pruned(student, run) if held is None else held["model"]
    small.dropout.p = student.dropout
    small.to(run.device)
    done, log = (0, [perplexity(small, run.test, run.device)]) if held is None else (held["epoch"], held["log"])
    optimizer, took = torch.optim.SGD(small.parameters(), lr=student.rate), 0.0
    for epoch in range(done, run.epochs):
        if time.monotonic() + took > run.until:
            return None
        started = time.monotonic()
        torch.manual_seed(epoch)
        one_epoch(small, optimizer, epoch, student, run, answers)
        log.append(perplexity(small, run.valid, run.device))
        took = time.monotonic() - started
        print(f"{name}: epoch {epoch + 1} of {run.epochs}, valid {log[-1]:.2f}, {took:.0f} s", flush=True)
        part = path.with_suffix(".part")
        torch.save({"model": small, "epoch": epoch + 1, "log": log}, part)
        part.replace(path)
    return small


def one_epoch(
    small: WordModel, optimizer: torch.optim.Optimizer, epoch: int, student: Student, run: Run, answers: Answers
) -> None:
    """One pass over the text, which the student learns together with the dense model's answers."""
    small.train()
    state = None
    for number, (piece, words, following) in enumerate(run.train.windows(run.device)):
        done = (epoch + number / len(run.train.pieces)) / run.epochs
        optimizer.param_groups[0]["lr"] = student.rate * (1 + math.cos(math.pi * done)) / 2
        logits, state = small(words, detached(state))
        text = functional.cross_entropy(logits.flatten(0, 1), following.flatten())
        loss = (1 - student.share) * text + student.share * answers.cross_entropy(piece, logits)
        # Summed over the window, averaged over the streams, as the step sizes of the paper are meant.
        step(small, optimizer, loss * len(words))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of gradient descent."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 10.0)
    optimizer.step()


def detached(state: Any) -> Any:
    """A state without its history."""
    return None if state is None else tuple(tuple(part.detach() for part in layer) for layer in state)


class Logits(nn.Module):
    """A word model that begins anew with every window, as it is timed."""

    def __init__(self, model: WordModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor) -> Tensor:
        """Logits of a window."""
        return self.model(words)[0]


def table(run: Run, taught: dict[str, WordModel]) -> str:
    """Published numbers beside ours."""
    models = {"dense": run.dense, **taught}
    subjects = {name: Logits(model).cpu().eval() for name, model in models.items()}
    times = bench(subjects, torch.zeros(UNROLL, 1, dtype=torch.long), runtimes=("onnxruntime", "torch"))
    taken = {(row.runtime, row.model): row.median_ms for row in times.rows}
    lines = [
        "| model | units | test perplexity, dense | small | faster, ONNX Runtime | faster, PyTorch |",
        "|---|---|---:|---:|---:|---:|",
        *(f"| {name} | {units} | {dense} | {small} | {times} | |" for name, units, dense, small, times in PUBLISHED),
    ]
    dense = run.kept("dense", lambda: perplexity(run.dense, run.test, run.device))
    for name, model in models.items():
        units = " + ".join(str(layer.hidden_size) for layer in model.recurrent)
        value = dense if name == "dense" else perplexity(model, run.test, run.device)
        faster = [f"{taken[kind, 'dense'] / taken[kind, name]:.1f}" for kind in ("onnxruntime", "torch")]
        lines.append(f"| {name} | {units} | {dense:.2f} | {value:.2f} | {' | '.join(faster)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further epoch begins")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=16, help="of every student")
    parser.add_argument("--words", type=int, help="of each text; all by default")
    parser.add_argument("--students", default=",".join(STUDENTS), help="names, one after the other")
    parser.add_argument("--skip-one-shot", action="store_true")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(options.text / "ptb.train.txt", WORDS)
    texts = [
        Text(torch.from_numpy(vocabulary.encode(options.text / f"ptb.{name}.txt")[: options.words]))
        for name in ("train", "valid", "test")
    ]
    dense = dense_model(data / "ptb_lstm_2x1500")
    run = Run(dense, *texts, options.device, options.out, until, options.epochs)
    print(f"dense: test {run.kept('dense', lambda: perplexity(dense, run.test, run.device)):.2f}", flush=True)
    if not options.skip_one_shot:
        print("\n| one shot | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS) + " |\n|---|---|---|---|", flush=True)
        one_shot(run)
    answers = Answers(dense, run.train, options.out, options.device)
    students = {name: STUDENTS[name] for name in options.students.split(",")}
    taught = {name: teach(name, student, run, answers) for name, student in students.items()}
    finished = {name: model for name, model in taught.items() if model is not None}
    print(f"\n{table(run, finished)}", flush=True)
    if len(finished) < len(taught):
        print("\nOut of --minutes: the same command goes on.", flush=True)


if __name__ == "__main__":
    main()
