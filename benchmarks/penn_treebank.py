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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import CLIPPED, STREAMS, UNROLL, Setting, SideBySide, Streams, factor
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
from reprune.recipes.language.written import text_of

WORDS, UNITS = 10_000, 1500
PAPERS = (
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
    """A small model before it is taught.

    Attributes:
        method: How it is pruned; methods that act on the training do so for `pruned_in` epochs first.
        counts: Units that the two layers keep; None where the method decides.
        columns: Columns that the embedding keeps.
        ratio: Fraction of the units to remove, where `counts` does not say how many.
        pruned_in: See `method`.
    """

    method: str
    counts: tuple[int, int] | None = None
    columns: int = UNITS
    ratio: float = 0.77
    pruned_in: int = 0


STUDENTS = {
    "20 times as fast": Student("iss-norm+reconstruct", (352, 288), 384),
    "size of ISS": Student("iss-norm+reconstruct", (373, 315)),
    "20 times as fast (measured split)": Student("reconstruct"),
    "ISS group lasso": Student("iss-group-lasso", pruned_in=4),
    "neuron selection": Student("neuron-selection", pruned_in=4),
}
SETTINGS = (
    Setting(0.1, 2.0, 1e-4),
    Setting(0.1, 2.0, 5e-5),
    Setting(0.1, 2.0, 2e-5),
    Setting(0.2, 2.0, 3e-5),
    Setting(0.05, 2.0, 5e-5),
    Setting(0.25, 2.0, 3e-5, written=False),
)
"""What is tried side by side; the best on the validation text is kept."""
SHARE = 0.5
"""Of the dense model's answers in what is learned from the text; the rest is the words that come."""


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
    settings: tuple[Setting, ...]
    words_written: int

    @cached_property
    def text(self) -> Streams:
        """The training text with the dense model's answers."""
        answers = StoredArrays(self.out / "answers")
        if not answers.done:
            answers.write(answers_to(self.train, self.dense, torch.device(self.device)))
        parts = zip(*((window.words, window.following) for window in self.train), strict=True)
        return Streams(*map(torch.cat, parts), answers, self.device)

    @cached_property
    def written(self) -> Streams:
        """What the dense model wrote, with its answers."""
        written = StoredArrays(self.out / "written")
        if not written.done:
            words = torch.cat([window.words for window in self.train])
            count, device = self.words_written, torch.device(self.device)
            written.write(text_of(self.dense, words, count, STREAMS, UNROLL, device))
        return Streams(torch.from_numpy(written["words"].astype(np.int64)), None, written, self.device)

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
    narrow = student.columns < UNITS
    counts = student.counts and {f"recurrent.{layer}:l0": units for layer, units in enumerate(student.counts)}
    if counts and narrow:
        counts["embedding:columns"] = student.columns
    result = reprune.prune(
        run.dense.to(run.device),
        run.calibration(),
        student.ratio,
        method=student.method,
        counts=counts,
        scope="all" if narrow else "recurrent",
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
            optimizer.zero_grad()
            (loss + pruner.loss()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIPPED)
            optimizer.step()
            pruner.step()
    return pruner.finish()


@dataclass
class Taught:
    """A student after its last epoch."""

    model: WordModel
    setting: Setting
    valid: float


def teach(name: str, student: Student, run: Run) -> Taught | None:
    """The student, taught in all settings, the best of which is kept; None when the time is over before."""
    path, part = run.out / f"{name}.pt", run.out / f"{name}.part.pt"
    if path.exists():
        return torch.load(path, weights_only=False)
    held = torch.load(part, map_location=run.device, weights_only=False) if part.exists() else None
    small = pruned(student, run) if held is None else held["model"]
    copies = SideBySide(small, run.settings, run.device)
    done, log = 0, copies.perplexities(run.valid)
    if held is not None:
        copies.load_state_dict(held["weights"])
        done, log = held["epoch"], held["log"]
    took, saved = 0.0, time.monotonic()
    for epoch in range(done, run.epochs):
        if time.monotonic() + took > run.until:
            return None
        started = time.monotonic()
        one_epoch(copies, epoch, run)
        log = copies.perplexities(run.valid)
        took = time.monotonic() - started
        print(f"{name}: epoch {epoch + 1} of {run.epochs}, valid {told(log)}, {took:.1f} s", flush=True)
        # What is kept is large: not after every epoch that takes seconds.
        if time.monotonic() - saved > 60 or time.monotonic() + took > run.until:
            held = {"model": small, "weights": copies.state_dict(), "epoch": epoch + 1, "log": log}
            torch.save(held, part.with_suffix(".new"))
            part.with_suffix(".new").replace(part)
            saved = time.monotonic()
    print(f"{name}: test {told(copies.perplexities(run.test))}", flush=True)
    best = min(range(len(log)), key=lambda index: log[index])
    taught = Taught(copies.model(best).cpu(), run.settings[best], log[best])
    torch.save(taught, path)
    part.unlink(missing_ok=True)
    return taught


def told(perplexities: list[float]) -> str:
    """One for each setting."""
    return " ".join(f"{value:.2f}" for value in perplexities)


def one_epoch(copies: SideBySide, epoch: int, run: Run) -> None:
    """One pass over the text, beside as many windows of what the dense model wrote."""
    torch.manual_seed(epoch)
    for window in range(run.text.count):
        number = epoch * run.text.count + window
        for part, streams in enumerate((run.text, run.written)):
            if streams.go_to(number):
                copies.begin(part)
        copies.rate.fill_(factor(number, run.epochs * run.text.count))
        copies.learn(run.text, run.written, SHARE)


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


def table(run: Run, taught: dict[str, Taught]) -> str:
    """Published numbers beside ours."""
    models = {"dense": run.dense, **{name: student.model for name, student in taught.items()}}
    subjects = {name: Logits(model).cpu().eval() for name, model in models.items()}
    times = bench(subjects, torch.zeros(UNROLL, 1, dtype=torch.long), runtimes=("onnxruntime", "torch"))
    taken = {(row.runtime, row.model): row.median_ms for row in times.rows}
    lines = [
        "| model | columns, units | learned with | valid perplexity | test perplexity, dense | small "
        "| faster, ONNX Runtime | faster, PyTorch |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        *(f"| {name} | {units} | | | {dense} | {small} | {faster} | |" for name, units, dense, small, faster in PAPERS),
    ]
    dense = run.kept("dense", lambda: perplexity(run.dense, run.test, run.device))
    for name, model in models.items():
        units = f"{model.embedding.embedding_dim}, " + " + ".join(str(layer.hidden_size) for layer in model.recurrent)
        value = dense if name == "dense" else perplexity(model, run.test, run.device)
        faster = [f"{taken[kind, 'dense'] / taken[kind, name]:.1f}" for kind in ("onnxruntime", "torch")]
        learned = ("", "")
        if name in taught:
            setting = taught[name].setting
            learned = f"dropout {setting.dropout}, decay {setting.decay}", f"{taught[name].valid:.2f}"
        lines.append(f"| {name} | {units} | {' | '.join(learned)} | {dense:.2f} | {value:.2f} | {' | '.join(faster)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further epoch begins")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=28, help="of every student")
    parser.add_argument("--words", type=int, help="of each text; all by default")
    parser.add_argument(
        "--written", type=int, help="words that the dense model writes; --words if given, else fewer on a CPU"
    )
    parser.add_argument("--settings", type=int, help="how many are tried side by side; on a CPU one by default")
    parser.add_argument("--students", default=",".join(STUDENTS), help="names, one after the other")
    parser.add_argument("--skip-one-shot", action="store_true")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    # As cuDNN does by default: products of float32 on tensor cores.
    torch.backends.cuda.matmul.allow_tf32 = True
    data = Path(os.environ.get("REPRUNE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    options.out.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.of(options.text / "ptb.train.txt", WORDS)
    texts = [
        windows(vocabulary.encode(options.text / f"ptb.{name}.txt")[: options.words])
        for name in ("train", "valid", "test")
    ]
    dense = dense_model(data / "ptb_lstm_2x1500")
    slow = options.device == "cpu"
    settings = SETTINGS[: options.settings or (1 if slow else None)]
    written = options.written or options.words or (500_000 if slow else 5_000_000)
    run = Run(dense, *texts, options.device, options.out, until, options.epochs, settings, written)
    print(f"dense: test {run.kept('dense', lambda: perplexity(dense, run.test, run.device)):.2f}", flush=True)
    if not options.skip_one_shot:
        print("\n| one shot | " + " | ".join(f"{ratio:.0%}" for ratio in RATIOS) + " |\n|---|---|---|---|", flush=True)
        one_shot(run)
    taught = {name: teach(name, STUDENTS[name], run) for name in options.students.split(",")}
    finished = {name: student for name, student in taught.items() if student is not None}
    print(f"\n{table(run, finished)}", flush=True)
    if len(finished) < len(taught):
        print("\nOut of --minutes: the same command goes on.", flush=True)


if __name__ == "__main__":
    main()
