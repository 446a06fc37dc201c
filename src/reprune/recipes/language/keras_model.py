"""The word-level language model in Keras, its loss, and the windows that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from reprune.core.answers.likely import CLASSES, LOGS, kept_of, packed, starts
from reprune.core.progress import told
from reprune.core.saving.arrays import StoredArrays
from reprune.keras.tracing.graph import array, graph_of
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import IGNORED, Numbers


def word_model(
    vocabulary: int, hidden: int, layers: int = 2, *, streams: int, dropout: float = 0.0, init: float = 0.1
) -> Any:
    """Embedding → LSTM layers → one logit per word, with dropout on everything but the recurrent connections.

    The layers are stateful: each window goes on with the state that the last one left.

    Args:
        vocabulary: Number of words.
        hidden: Units of each layer, and numbers that stand for a word.
        layers: Number of layers.
        streams: Streams that are read side by side, B.
        dropout: Fraction dropped.
        init: Weights start uniformly between minus this and this.

    Returns:
        A model of numbers of words (B × T), that answers with logits of each next word (B × T × vocabulary).

    Example:
        >>> word_model(vocabulary=100, hidden=8, streams=2)(np.zeros((2, 5))).shape     # doctest: +SKIP
        (2, 5, 100)
    """

    def uniform() -> Any:
        # One object draws the same numbers again and again.
        return keras.initializers.RandomUniform(-init, init)

    words = keras.Input(batch_shape=(streams, None), dtype="int32", name="words")
    values = keras.layers.Embedding(vocabulary, hidden, embeddings_initializer=uniform(), name="embedding")(words)
    for layer in range(layers):
        values = keras.layers.Dropout(dropout, name=f"dropout_{layer}")(values)
        values = keras.layers.LSTM(
            hidden,
            return_sequences=True,
            stateful=True,
            unit_forget_bias=False,
            kernel_initializer=uniform(),
            recurrent_initializer=uniform(),
            bias_initializer=uniform(),
            name=f"lstm_{layer}",
        )(values)
    values = keras.layers.Dropout(dropout, name=f"dropout_{layers}")(values)
    output = keras.layers.Dense(
        vocabulary, kernel_initializer=uniform(), bias_initializer=uniform(), dtype="float32", name="output"
    )
    model = keras.Model(words, output(values), name="word_model")
    for layer in model.layers:
        if isinstance(layer, keras.layers.LSTM):
            # The other one of two biases: see `TwoBiases`.
            layer.cell.bias.assign_add(uniform()(layer.cell.bias.shape))
    return model


@keras.saving.register_keras_serializable(package="reprune")
class TwoBiases(keras.optimizers.SGD):  # type: ignore[misc]
    """Gradient descent in which the one bias of Keras's LSTM stands for the sum of two.

    The LSTM of the paper, and that of PyTorch, adds a bias to what is made of the input and one to what is made of the
    state. Both have the same gradient: their sum moves twice as far as one bias would, and it is counted twice
    in the norm by which all are clipped.

    Args:
        learning_rate: Step size.
        clip: Norm of all gradients together above which they are scaled down to it; 0 for never.
        options: Of `keras.optimizers.SGD`.
    """

    def __init__(self, learning_rate: float = 1.0, *, clip: float = 0.0, **options: Any) -> None:
        super().__init__(learning_rate, **options)
        self._clip = clip

    def get_config(self) -> dict[str, Any]:
        """What it was made with."""
        return {**super().get_config(), "clip": self._clip}

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        """Take a step; see `keras.Optimizer.apply`."""
        variables = self._trainable_variables if trainable_variables is None else trainable_variables
        biases = [1 + variable.path.endswith("lstm_cell/bias") for variable in variables]
        grads = [_summed(gradient, variable) for gradient, variable in zip(grads, variables, strict=True)]
        if self._clip:
            squares = [ops.sum(ops.square(gradient)) * times for gradient, times in zip(grads, biases, strict=True)]
            scale = ops.minimum(self._clip / (ops.sqrt(sum(squares)) + 1e-6), 1.0)
            grads = [gradient * scale for gradient in grads]
        grads = [gradient * times for gradient, times in zip(grads, biases, strict=True)]
        return super().apply(grads, trainable_variables)


def _summed(gradient: Any, variable: Any) -> Any:
    """A gradient of an embedding comes as one row for each word that was read: those of one word belong together."""
    if not hasattr(gradient, "indices"):
        return gradient
    rows = ops.reshape(gradient.values, (-1, variable.shape[-1]))
    return ops.segment_sum(rows, ops.reshape(gradient.indices, (-1,)), num_segments=variable.shape[0])


def reset(*models: Any) -> None:
    """Let models begin with zero states."""
    for model in models:
        for state in graph_of(model).states():
            state.assign(ops.zeros_like(state))


def summed_over_words(following: Any, logits: Any) -> Any:
    """Negative log-likelihood of each stream (B), summed over its words; Keras averages over the streams.

    Args:
        following: Numbers of the words that came (B × T), `IGNORED` for none.
        logits: The model's (B × T × vocabulary).
    """
    numbers = ops.cast(following, "int32")
    valid = numbers != IGNORED
    values = ops.sparse_categorical_crossentropy(ops.where(valid, numbers, 0), logits, from_logits=True)
    return ops.sum(ops.where(valid, values, 0.0), axis=1)


def taught_over_words(share: float) -> Callable[[Any, Any], Any]:
    """`summed_over_words`; where words come with a dense model's answers, a share of it is cross entropy with these.

    Words come as B × T, or with answers as B × T × (2n + 1): the word, n words that stand for the answer, and the
    logarithms of how much of it each does (`core.answers.likely`).
    """

    def loss(following: Any, logits: Any) -> Any:
        if len(following.shape) == 2:
            return summed_over_words(following, logits)
        kept = following.shape[-1] // 2
        words, classes = following[..., 0], ops.cast(following[..., 1 : kept + 1], "int32")
        found = ops.take_along_axis(ops.log_softmax(logits), classes, axis=-1)
        taught = -ops.sum(ops.softmax(following[..., kept + 1 :]) * found, axis=(1, 2))
        return (1 - share) * summed_over_words(words, logits) + share * taught

    return loss


class Windows(Iterable[tuple[Any, Any]]):
    """Passes over streams, window by window: words, and those that follow, B × T each.

    Args:
        streams: Words and those that follow, T × B.
        length: Of a window; the last of a pass may be shorter.

    Attributes:
        answers: A dense model's answers to all words, as `answers_to` gives them, to come with those that follow (see
            `taught_over_words`); or None.
    """

    def __init__(self, streams: tuple[Numbers, Numbers], length: int) -> None:
        self._words, self._following = (part.T.astype("int32") for part in streams)
        self._length = length
        self.answers: StoredArrays | None = None

    def __len__(self) -> int:
        return math.ceil(len(self._words[0]) / self._length)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, self._words.shape[1], self._length):
            piece = slice(start, start + self._length)
            following = self._following[:, piece]
            if self.answers is not None:
                parts = (self.answers[name][piece].swapaxes(0, 1) for name in (CLASSES, LOGS))
                following = np.concatenate([following[..., None], *parts], axis=-1, dtype="float32")
            yield self._words[:, piece], following


def answers_to(windows: Windows, model: Any) -> Iterator[dict[str, Any]]:
    """What a model answers to windows one after the other, as it is stored: see `core.answers.likely`."""
    reset(model)
    rng = np.random.default_rng(0)
    for words, _ in told("asking the dense model", windows, len(windows)):
        chances = array(ops.softmax(model.predict_on_batch(words))).swapaxes(0, 1)
        rows, (kept, drawn) = chances.reshape(-1, chances.shape[-1]), kept_of(chances.shape[-1])
        shares, classes = (array(part) for part in ops.top_k(rows, kept))
        if drawn:
            np.put_along_axis(rows, classes, 0.0, axis=-1)
            sums = rows.cumsum(-1)
            others = [
                row.searchsorted(start * row[-1], "right")
                for row, start in zip(sums, starts(rng, len(sums)), strict=True)
            ]
            # Rounding may lead past the last class.
            classes = np.concatenate([classes, np.minimum(others, chances.shape[-1] - 1)], axis=-1)
            shares = np.concatenate([shares, np.repeat(sums[:, -1:] / drawn, drawn, axis=-1)], axis=-1)
        logs = np.log(np.maximum(shares, np.finfo(np.float32).tiny))
        classes, logs = (part.reshape(*chances.shape[:2], -1) for part in (classes, logs))
        yield packed(classes, logs, chances.shape[-1])


class FallingRate(keras.callbacks.Callback):  # type: ignore[misc]
    """Sets the step size of each epoch.

    Args:
        optimizer: Whose.
        options: The step size, and how it falls.
        first: Epochs of the schedule that are left out.
    """

    def __init__(self, optimizer: Any, options: LanguageOptions, first: int) -> None:
        super().__init__()
        self._optimizer, self._options, self._first = optimizer, options, first

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Set it."""
        self._optimizer.learning_rate = self._options.learning_rate * self._options.falling(self._first + epoch)
