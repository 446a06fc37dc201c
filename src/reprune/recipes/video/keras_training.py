"""How the YouTube-8M recipe trains in Keras: the loss, the learning rate, and epochs that begin in the middle."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from reprune.keras.tracing.graph import array
from reprune.recipes.run.keras_training import Logs
from reprune.recipes.run.options import Options
from reprune.youtube8m.keras_batches import RecordBatches


def summed_cross_entropy(labels: Any, logits: Any) -> Any:
    """Cross-entropy of each video (B), summed over the classes; Keras averages over the videos."""
    return keras.ops.sum(keras.ops.binary_crossentropy(labels, logits, from_logits=True), axis=-1)


def loop(
    model: Any,
    batches: RecordBatches,
    callbacks: Sequence[Any],
    start: tuple[int, int],
    epochs: int,
    *,
    offset: int,
    progress: bool,
) -> None:
    """What `fit` does, for epochs of which the first may begin in the middle.

    `fit` is called for each epoch: it takes the number of batches in its first one for that of all.

    Args:
        model: The compiled model.
        batches: Inputs and labels.
        callbacks: Called as by `fit`.
        start: The epoch to begin with, and how many of its batches are used up.
        epochs: Where to end.
        offset: Added to the epoch, so that two parts of a run do not see the same order and windows.
        progress: Whether a progress bar is shown.
    """
    calls = keras.callbacks.CallbackList(callbacks, model=model)
    calls.on_train_begin()
    for epoch in range(start[0], epochs):
        batches.start(offset + epoch, start[1] if epoch == start[0] else 0)
        calls.on_epoch_begin(epoch)
        with warnings.catch_warnings():
            # How many there are is not known before they are read.
            warnings.filterwarnings("ignore", "Your input ran out of data")
            history = model.fit(
                batches.dataset(),
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,  # The reader has.
                callbacks=[_Steps(calls)],
                verbose=int(progress),
            )
        calls.on_epoch_end(epoch, {name: values[-1] for name, values in history.history.items()})
    calls.on_train_end()


class _Steps(keras.callbacks.Callback):  # type: ignore[misc]
    """Passes on what happens within an epoch."""

    def __init__(self, calls: Any) -> None:
        super().__init__()
        self._calls = calls

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._calls.on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._calls.on_train_batch_end(batch, logs)


class LearningRate(keras.callbacks.Callback):  # type: ignore[misc]
    """The paper's staircase of learning rates.

    Args:
        optimizer: Whose rate is set before every step.
        options: Learning rate and its decay.
        anneal: Number of epochs n, to lower the rate from epoch to epoch in equal parts as well: to 1/n in the last.
    """

    def __init__(self, optimizer: Any, options: Options, anneal: int | None = None) -> None:
        super().__init__()
        self._optimizer = optimizer
        self._options = options
        self._anneal = anneal
        self._left = 1.0

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Lower the rate."""
        self._left = 1 - epoch / self._anneal if self._anneal else 1.0

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        """Set the rate of this step."""
        factor = self._left * self._options.staircase(int(array(self._optimizer.iterations)))
        self._optimizer.learning_rate = self._options.learning_rate * factor
