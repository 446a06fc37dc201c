"""Four small real tasks: a model, how it is trained, and what it is measured by. See `accuracy.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import g2pm
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

import reprune.torch
from reprune.recipes.language.text import Vocabulary
from reprune.recipes.language.word_model import WordModel
from reprune.youtube8m.metrics import gap
from reprune.youtube8m.model import VideoClassifier
from reprune.youtube8m.torch_loader import RecordDataset, RecordLoader


class Task(ABC):
    """A model with its data.

    Attributes:
        metric: What `evaluate` returns.
        train_steps: Of the dense model.
        finetune_steps: Of a pruned one, at most.
        learning_rate: Of Adam, falling to zero along a cosine, in both.
    """

    metric: str
    train_steps: int
    finetune_steps: int
    learning_rate = 1e-3

    def __init__(self, data: Path) -> None:
        self.data = data

    @abstractmethod
    def build(self) -> nn.Module:
        """The model before training."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Any]:
        """Training batches without end."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Mean loss of a batch."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> float:
        """The metric on the test set."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Any) -> Any:
        """What calibration runs: no labels."""

    def calibration(self) -> Iterable[Any]:
        """Calibration batches: of the training set."""
        return list(islice(self.batches(0), 30))

    def lessons(self, seed: int, count: int) -> Iterable[Any]:
        """Batches that a dense model can teach on: unlabelled ones are to be had in plenty."""
        return list(islice(self.batches(seed), count))

    def train(self, model: nn.Module, steps: int, seed: int, **pruning: Any) -> nn.Module:
        """Train in place; with the arguments of a `Pruner`, what it makes of the model comes back."""
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        given = {"optimizer": optimizer, "total_steps": steps, "seed": seed, **pruning}
        pruner = reprune.torch.Pruner(model, **given) if pruning else None
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        model.train()
        for batch in islice(self.batches(seed), steps):
            optimizer.zero_grad()
            loss = self.loss(model, batch)
            (loss + pruner.loss() if pruner else loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if pruner:
                pruner.step()
        return (pruner.finish() if pruner else model).eval()

    def dense(self, seed: int) -> nn.Module:
        """The trained model."""
        torch.manual_seed(seed)
        return self.train(self.build(), self.train_steps, seed)


def _shuffled(count: int, size: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(size)


class Polyphones(Task):
    """g2pM: which reading a Chinese character has; the model is trained already, and fine-tuned on the dev set."""

    metric = "accuracy"
    finetune_steps = 160

    def __init__(self, data: Path) -> None:
        super().__init__(data / "g2pm")
        self.test, self.dev = (g2pm.Split(self.data / f"{name}.npz") for name in ("test", "dev"))

    def build(self) -> nn.Module:
        return g2pm.build(self.data)

    def dense(self, seed: int) -> nn.Module:
        return self.build()

    def calibration(self) -> Iterable[Any]:
        return self.dev

    def lessons(self, seed: int, count: int) -> Iterable[Any]:
        """Every character of the sentences that has several readings, not only the one that somebody labelled."""
        ids, lengths, position = (self.dev.arrays[name] for name in ("ids", "lengths", "position"))
        several = torch.zeros(int(ids.max()) + 1, dtype=torch.bool)
        several[ids[torch.arange(len(ids)), position]] = True
        rows, columns = torch.nonzero(several[ids] & (torch.arange(ids.shape[1]) < lengths[:, None]), as_tuple=True)
        drawn = islice(_shuffled(len(rows), 256, seed), count)
        return [(ids[rows[places]], lengths[rows[places]], columns[places]) for places in drawn]

    def batches(self, seed: int) -> Iterator[Any]:
        arrays = self.dev.arrays
        for places in _shuffled(len(arrays["ids"]), 128, seed):
            yield tuple(arrays[name][places] for name in ("ids", "lengths", "position", "label"))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(*batch[:3]), batch[3])

    def evaluate(self, model: nn.Module) -> float:
        return g2pm.accuracy(model, self.test)

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(*batch[:3])


class Speakers(nn.Module):
    """LSTM → the last output → one logit per speaker."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 64, batch_first=True)
        self.output = nn.Linear(64, 9)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        logits: Tensor = self.output(self.lstm(packed)[1][0][-1])
        return logits


class Vowels(Task):
    """Japanese vowels: which of nine speakers says them.

    There are 270 recordings to learn from: noise on their frames keeps a model from learning them by heart. Five-fold
    cross-validation on them chose its size.
    """

    metric = "accuracy"
    train_steps = 600
    finetune_steps = 80
    learning_rate = 3e-3
    noise = 0.5

    def __init__(self, data: Path) -> None:
        super().__init__(data / "japanese_vowels")
        with np.load(self.data / "japanese_vowels.npz") as held:
            self.sets = [
                (
                    torch.from_numpy(held[x]).float(),
                    torch.from_numpy(held[length].astype(np.int64)).flatten(),
                    torch.from_numpy(held[y].astype(np.int64)).flatten() - 1,
                )
                for x, length, y in (("X", "X_len", "Y"), ("Xte", "Xte_len", "Yte"))
            ]

    def build(self) -> nn.Module:
        return Speakers()

    def batches(self, seed: int) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(seed)
        for places in _shuffled(len(self.sets[0][0]), 30, seed):
            frames, lengths, speakers = (array[places] for array in self.sets[0])
            yield frames + self.noise * torch.randn(frames.shape, generator=generator), lengths, speakers

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(*batch[:2]), batch[2])

    def evaluate(self, model: nn.Module) -> float:
        frames, lengths, speakers = self.sets[1]
        with torch.no_grad():
            return float((model(frames, lengths).argmax(1) == speakers).double().mean())

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(*batch[:2])


class Digits(Task):
    """Spoken digits as YouTube-8M records: the paper's classifier."""

    metric = "GAP"
    train_steps = 900
    finetune_steps = 120
    learning_rate = 2e-3

    def __init__(self, data: Path) -> None:
        super().__init__(data / "spoken_digits_yt8m")
        self.trained, self.tested = (self._read(name) for name in ("train", "test"))

    def _read(self, name: str) -> list[Any]:
        dataset = RecordDataset(
            str(self.data / f"{name}*.tfrecord"),
            classes=16,
            batch_size=40,
            features={"audio": 128},
            shuffle=name == "train",
            shuffle_buffer=4096,
        )
        return list(RecordLoader(dataset))

    def build(self) -> nn.Module:
        return VideoClassifier(128, 16, hidden=128, normalize=False)

    def batches(self, seed: int) -> Iterator[Any]:
        for order in _shuffled(len(self.trained), 1, seed):
            yield self.trained[int(order)]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return binary_cross_entropy_with_logits(model(batch.frames, batch.lengths), batch.labels.float())

    def evaluate(self, model: nn.Module) -> float:
        with torch.no_grad():
            scores = torch.cat([model(batch.frames, batch.lengths).sigmoid() for batch in self.tested])
        return gap(scores.numpy(), torch.cat([batch.labels for batch in self.tested]).numpy())

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch.frames, batch.lengths)


class Words(Task):
    """War and Peace, word by word: a 2×200 LSTM over the 4,000 most frequent words, all others one."""

    metric = "perplexity"
    train_steps = 1400
    finetune_steps = 280
    learning_rate = 2e-3
    known, unroll, streams = 4_000, 35, 20

    def __init__(self, data: Path) -> None:
        super().__init__(data / "war_and_peace")
        vocabulary = Vocabulary.of(self.data / "wap.train.txt.gz", self.known)
        self.trained, self.tested = (
            torch.from_numpy(vocabulary.encode(self.data / f"wap.{name}.txt.gz")) for name in ("train", "test")
        )

    def build(self) -> nn.Module:
        model = WordModel(self.known, 200, 2, dropout=0.2)
        # Words that start far apart are told apart sooner: there are few steps.
        nn.init.normal_(model.embedding.weight)
        return model

    def _windows(self, words: Tensor, streams: int) -> list[tuple[Tensor, Tensor]]:
        length = (len(words) - 1) // streams
        inputs, following = (part[: length * streams].view(streams, length).T for part in (words[:-1], words[1:]))
        return list(zip(inputs.split(self.unroll), following.split(self.unroll), strict=True))

    def batches(self, seed: int) -> Iterator[Any]:
        windows = self._windows(self.trained, self.streams)
        return islice(cycle(windows), seed * 97 % len(windows), None)

    def train(self, model: nn.Module, steps: int, seed: int, **pruning: Any) -> nn.Module:
        self.state: Any = None
        return super().train(model, steps, seed, **pruning)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        logits, state = model(batch[0], self.state)
        self.state = tuple(tuple(part.detach() for part in layer) for layer in state)
        return cross_entropy(logits.flatten(0, 1), batch[1].flatten())

    def evaluate(self, model: nn.Module) -> float:
        total, words, state = 0.0, 0, None
        with torch.no_grad():
            for inputs, following in self._windows(self.tested, 100):
                logits, state = model(inputs, state)
                total += float(cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum"))
                words += following.numel()
        return float(np.exp(total / words))

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch[0])[0]


TASKS: dict[str, type[Task]] = {"g2pm": Polyphones, "vowels": Vowels, "digits": Digits, "words": Words}
