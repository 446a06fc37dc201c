"""A word-level language model, and how it is trained and measured.

W. Zaremba, I. Sutskever, O. Vinyals, "Recurrent Neural Network Regularization", arXiv 1409.2329 (2014).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric

from reprune.recipes.language.data import Window
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import IGNORED
from reprune.torch.training.distributed import everyone, rank
from reprune.torch.training.likely import Likely, shared_cross_entropy

State = tuple[tuple[Tensor, Tensor], ...]


class WordModel(nn.Module):
    """Embedding → LSTM layers → one logit per word, with dropout on everything but the recurrent connections.

    Args:
        vocabulary: Number of words.
        hidden: Units of each layer, and numbers that stand for a word.
        layers: Number of layers.
        dropout: Fraction dropped.
        init: Weights start uniformly between minus this and this.

    Example:
        >>> model = WordModel(vocabulary=100, hidden=8)
        >>> logits, state = model(torch.zeros(5, 2, dtype=torch.long))
        >>> logits.shape
        torch.Size([5, 2, 100])
        >>> logits, state = model(torch.zeros(5, 2, dtype=torch.long), state)  # goes on
    """

    def __init__(
        self, vocabulary: int, hidden: int, layers: int = 2, *, dropout: float = 0.0, init: float = 0.1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        # One module each: their states are apart, so that layers may lose different numbers of units.
        self.recurrent = nn.ModuleList(nn.LSTM(hidden, hidden) for _ in range(layers))
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)

    def forward(self, words: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Logits of each next word (T × B × vocabulary), and the state after the last word.

        Args:
            words: Numbers of words, T × B.
            state: Hidden state and memory of every layer (1 × B × units); zero if not given.
        """
        values, left = self.embedding(words), []
        for index, layer in enumerate(self.recurrent):
            values, after = layer(self.dropout(values), None if state is None else state[index])
            left.append(after)
        return self.output(self.dropout(values)), tuple(left)


class Perplexity(Metric):
    """The exponential of the mean negative log-likelihood of all words, over all processes."""

    is_differentiable = False
    higher_is_better = False
    full_state_update = False
    total: Tensor
    words: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("words", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, following: Tensor) -> None:
        """Take in a window: logits T × B × vocabulary, and the words that came, T × B."""
        self.total += _loss(logits, following).double()
        self.words += (following != IGNORED).sum()

    def compute(self) -> Tensor:
        """The perplexity of everything seen."""
        return (self.total / self.words).exp().float()


class LanguageModule(LightningModule):
    """A language model trained by gradient descent on windows, each of which starts with the state the last one left.

    Args:
        model: Maps (words, state) to (logits, state).
        options: Step size, when it falls, and for how long.
        finetune: Train for `finetune_epochs` with the step sizes of as many last epochs of training.
    """

    def __init__(self, model: nn.Module, options: LanguageOptions, *, finetune: bool = False) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.metric = Perplexity()
        self._first_epoch = options.rewound if finetune else 0
        self._carried: State | None = None
        self._measured: State | None = None

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Negative log-likelihood of a window: summed over its words, averaged over its streams.

        Where windows come with a dense model's answers, `options.teach` of it is the cross entropy with them. Where
        they come with text that it wrote, the cross entropy with its answers to that is added.
        """
        words, written = batch.words, batch.written
        if written is not None:
            words = torch.cat([words, written.words], 1)
        logits, after = self.model(words, self._before(batch))
        self._carried = tuple((h.detach(), c.detach()) for h, c in after)
        streams = batch.words.shape[1]
        loss = _loss(logits[:, :streams], batch.following, batch.answers, self.options.teach)
        if written is not None:
            # Of what was written only the answers are learned: which word was drawn says nothing more.
            loss = loss + _loss(logits[:, streams:], written.words, written.answers, 1.0)
        loss = loss / words.shape[1]
        self.log("train_loss", loss.detach() / len(batch.words), prog_bar=True)
        return loss

    def _before(self, batch: Window) -> State | None:
        """The state that was carried, zero where streams begin."""
        begins = [batch.first] if batch.written is None else [batch.first, batch.written.first]
        if all(begins):
            return None
        moved = _moved(self._carried, batch.words)
        if not any(begins) or moved is None:
            return moved
        new = torch.tensor(begins, device=batch.words.device).repeat_interleave(batch.words.shape[1])[:, None]
        return tuple((h.masked_fill(new, 0), c.masked_fill(new, 0)) for h, c in moved)

    def validation_step(self, batch: Window, batch_idx: int) -> None:
        """Take a window into the perplexity."""
        logits, self._measured = self.model(batch.words, None if batch.first else self._measured)
        self.metric.update(logits, batch.following)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity of the whole text."""
        self.log("perplexity", self.metric.compute(), prog_bar=True)
        self.metric.reset()

    def configure_optimizers(self) -> Any:
        """Gradient descent, with a step size that falls after every epoch from some epoch on."""
        options = self.options
        weights, decay = self.model.parameters(), options.weight_decay
        optimizer = torch.optim.SGD(weights, lr=options.learning_rate, weight_decay=decay)

        def factor(epoch: int) -> float:
            return options.falling(self._first_epoch + epoch)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, factor)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The state between two windows belongs to a checkpoint: a run goes on with it."""
        checkpoint["carried"] = everyone(self._carried)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the state that was carried."""
        self._carried = checkpoint["carried"][rank()]


def _loss(logits: Tensor, following: Tensor, answers: Likely | None = None, share: float = 0.0) -> Tensor:
    """Negative log-likelihood of the words that came, summed; or a share of it of a dense model's answers."""
    rows, words = logits.flatten(0, 1), following.flatten()
    if answers is None:
        return functional.cross_entropy(rows.float(), words, ignore_index=IGNORED, reduction="sum")
    flat = Likely(*(part.flatten(0, 1) for part in answers))
    return shared_cross_entropy(rows, words, flat, share, ignored=IGNORED)


def _moved(state: State | None, like: Tensor) -> State | None:
    return None if state is None else tuple((h.to(like.device), c.to(like.device)) for h, c in state)
