"""Penn Treebank: the large model of Zaremba et al. made some twenty times as fast, beside the published numbers.

From one trained dense model: what pruning costs in one shot, then students that learn from the text and from the dense
model's answers, which are asked for once, as by `--teach` of the language recipe. Methods that act on the training
itself start from the dense model as well. Whatever is done is in --out: interrupted, or out of --minutes, the same
command goes on.

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
from collections.abc import Callable
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
from reprune.core.saving.arrays import StoredArrays
from reprune.recipes.bench.bench import bench
from reprune.recipes.language.data import Windows, answers_to
from reprune.recipes.language.text import Numbers, Vocabulary, streams_to_train
from reprune.recipes.language.word_model import WordModel
from reprune.torch.training.likely import Likely, shared_cross_entropy

WORDS, UNITS, UNROLL, STREAMS, CLIPPED = 10_000, 1500, 35, 20, 10.0
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


def windows(numbers: Numbers) -> Windows:
    """A text in streams, window by window."""
    return Windows(*map(torch.from_numpy, streams_to_train(numbers, STREAMS, "the text")), UNROLL)


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
def perplexity(model: nn.Module, text: Windows, device: str) -> float:
    """Of a text, every stream from a zero state."""
    model.to(device).eval()
    total, count, state = 0.0, 0, None
    for window in text:
        logits, state = model(window.words.to(device), state)
        following = window.following.to(device).flatten()
        total += float(functional.cross_entropy(logits.flatten(0, 1), following, reduction="sum"))
        count += len(following)
    return math.exp(total / count)


@dataclass
class Run:
    """Everything that a run works on."""

    dense: WordModel
    train: Windows
    valid: Windows
    test: Windows
    device: str
    out: Path
    until: float
    epochs: int

    def calibration(self) -> list[Any]:
        """Sixty windows spread over the text."""
        whole = [window.words.to(self.device) for window in self.train][:-1]
        return whole[:: max(len(whole) // 60, 1)][:60]

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
    steps = student.pruned_in * run.train.count
    given = {"ratio": student.ratio, "method": student.method, "optimizer": optimizer, "total_steps": steps}
    pruner = reprune.torch.Pruner(model, next(iter(run.train)).words[:8, :2].to(run.device), **given)
    for _ in range(student.pruned_in):
        state = None
        for window in run.train:
            logits, state = model(window.words.to(run.device), detached(state))
            following = window.following.to(run.device).flatten()
            loss = functional.cross_entropy(logits.flatten(0, 1), following) * len(window.words)
            step(model, optimizer, loss + pruner.loss())
            pruner.step()
    return pruner.finish()


def teach(name: str, student: Student, run: Run) -> WordModel | None:
    """The student, once it has been taught for all epochs; None when the time is over before."""
    path = run.out / f"{name}.pt"
    held = torch.load(path, map_location=run.device, weights_only=False) if path.exists() else None
    small = pruned(student, run) if held is None else held["model"]
    small.dropout.p = student.dropout
    # A window reads some hundred words of 10,000: with all rows' gradients, most of a step would go into zeros.
    small.embedding.sparse = True
    small.to(run.device)
    done, log = (0, [perplexity(small, run.test, run.device)]) if held is None else (held["epoch"], held["log"])
    optimizer, took = torch.optim.SGD(small.parameters(), lr=student.rate), 0.0
    for epoch in range(done, run.epochs):
        if time.monotonic() + took > run.until:
            return None
        started = time.monotonic()
        torch.manual_seed(epoch)
        one_epoch(small, optimizer, epoch, student, run)
        log.append(perplexity(small, run.valid, run.device))
        took = time.monotonic() - started
        print(f"{name}: epoch {epoch + 1} of {run.epochs}, valid {log[-1]:.2f}, {took:.0f} s", flush=True)
        part = path.with_suffix(".part")
        torch.save({"model": small, "epoch": epoch + 1, "log": log}, part)
        part.replace(path)
    return small


def one_epoch(small: WordModel, optimizer: torch.optim.Optimizer, epoch: int, student: Student, run: Run) -> None:
    """One pass over the text, which the student learns together with the dense model's answers."""
    small.train()
    state = None
    for number, window in enumerate(run.train):
        done = (epoch + number / run.train.count) / run.epochs
        optimizer.param_groups[0]["lr"] = student.rate * (1 + math.cos(math.pi * done)) / 2
        logits, state = small(window.words.to(run.device), detached(state))
        rows, following = logits.flatten(0, 1), window.following.to(run.device).flatten()
        answers = Likely(*(part.to(run.device).flatten(0, 1) for part in window.answers))
        # Summed over the window, averaged over the streams, as the step sizes of the paper are meant.
        step(small, optimizer, shared_cross_entropy(rows, following, answers, student.share) / STREAMS)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of gradient descent, on gradients of which the norm is clipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    values = []
    for parameter in model.parameters():
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
        values.append(parameter.grad.values() if parameter.grad.is_sparse else parameter.grad)
    norm = nn.utils.get_total_norm(values)
    for value in values:
        value.mul_((CLIPPED / (norm + 1e-6)).clamp(max=1.0))
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
        windows(vocabulary.encode(options.text / f"ptb.{name}.txt")[: options.words])
        for name in ("train", "valid", "test")
    ]
    dense = dense_model(data / "ptb_lstm_2x1500")
    run = Run(dense, *texts, options.device, options.out, until, options.epochs)
    print(f"dense: test {run.kept('dense', lambda: perplexity(dense, run.test, run.device)):.2f}", flush=True)
    if not options.skip_one_shot:
        print("\n| one shot | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS) + " |\n|---|---|---|---|", flush=True)
        one_shot(run)
    answers = StoredArrays(options.out / "answers")
    if not answers.done:
        answers.write(answers_to(run.train, dense, torch.device(options.device)))
    run.train.answers = answers
    students = {name: STUDENTS[name] for name in options.students.split(",")}
    taught = {name: teach(name, student, run) for name, student in students.items()}
    finished = {name: model for name, model in taught.items() if model is not None}
    print(f"\n{table(run, finished)}", flush=True)
    if len(finished) < len(taught):
        print("\nOut of --minutes: the same command goes on.", flush=True)


if __name__ == "__main__":
    main()
