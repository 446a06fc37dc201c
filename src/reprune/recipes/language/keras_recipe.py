"""The language-model recipe in Keras."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import keras

from reprune.core.saving.arrays import StoredArrays
from reprune.keras.tracing.graph import array
from reprune.recipes.language.keras_model import (
    FallingRate,
    TwoBiases,
    Windows,
    answers_to,
    reset,
    summed_over_words,
    taught_over_words,
    word_model,
)
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import IGNORED, Reader, Vocabulary, streams_to_measure, streams_to_train
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.keras_recipe import KerasRecipe, device, precision, scaled
from reprune.recipes.run.latency import latency_ms

LONGER = 8
"""Windows in a row that are observed as one: each begins with a zero state, which only the first one should have."""


class LanguageModel(Reader, KerasRecipe):
    """Stacked stateful LSTMs that predict the next word.

    Args:
        options: What to do.
        vocabulary: The words that the model knows; those of the training text if not given.

    Raises:
        RecipeError: The options ask for what only Lightning does.
    """

    options: LanguageOptions

    def __init__(self, options: LanguageOptions, vocabulary: Vocabulary | None = None) -> None:
        Reader.__init__(self, options, vocabulary)
        KerasRecipe.__init__(self, options)
        self.inputs = options.inputs

    def build(self) -> Any:
        """The dense model, always with the same weights for the same seed."""
        options = self.options
        keras.utils.set_random_seed(options.seed)
        with precision(options), device(options):
            return word_model(
                len(self.vocabulary),
                options.hidden,
                options.layers,
                streams=options.batch_size,
                dropout=options.dropout,
                init=options.init,
            )

    def training_batches(self) -> Windows:
        """The windows to train on, in the order of the text."""
        return self._windows(self.options.unroll)

    def calibration(self) -> Iterator[Any]:
        """Words of longer windows of the training text."""
        count = math.ceil(self.options.calibration_batches / LONGER)
        return (words for words, _ in islice(self._windows(LONGER * self.options.unroll), count))

    def steps(self) -> int:
        """Windows of a pass."""
        return len(self.training_batches())

    def compiled(self, model: Any) -> Any:
        """Compile with gradient descent."""
        options = self.options
        rate, decay = options.learning_rate, options.weight_decay or None
        optimizer = TwoBiases(rate, clip=options.clip_gradients, weight_decay=decay, name="sgd")
        model.compile(
            scaled(optimizer, options), taught_over_words(options.teach), jit_compile=False, auto_scale_loss=False
        )
        return optimizer

    def rate(self, optimizer: Any, *, finetune: bool) -> FallingRate:
        """The step size falls after every epoch from some epoch on."""
        return FallingRate(optimizer, self.options, self.options.rewound if finetune else 0)

    def finetune(self, model: Any, folder: RunFolder) -> None:
        """Train the smaller model; see `Recipe.finetune`."""
        units = sum(layer.units for layer in model.layers if isinstance(layer, keras.layers.LSTM))
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = self.options.dropout_of(units)
        super().finetune(model, folder)

    def answer(self, folder: RunFolder) -> str:
        """See `Recipe.answer`: every pass reads the same windows in the same order, and so does this one."""
        stored = StoredArrays(folder.answers)
        if not stored.done:
            with device(self.options):
                stored.write(answers_to(self.training_batches(), self.teacher(folder)))
        return ""

    def loop(
        self,
        model: Any,
        callbacks: Sequence[Any],
        start: tuple[int, int],
        epochs: int,
        *,
        offset: int,
        taught: RunFolder | None,
    ) -> None:
        """Step from window to window; every epoch reads them in the same order, beginning with zero states."""
        calls = keras.callbacks.CallbackList(callbacks, model=model)
        windows = self.training_batches()
        windows.answers = None if taught is None else StoredArrays(taught.answers)
        calls.on_train_begin()
        for epoch in range(start[0], epochs):
            skip = start[1] if epoch == start[0] else 0
            if not skip:
                reset(model)
            model.reset_metrics()
            calls.on_epoch_begin(epoch)
            logs: dict[str, Any] = {}
            for step, (words, following) in enumerate(islice(windows, skip, None), skip):
                calls.on_train_batch_begin(step)
                logs = model.train_on_batch(words, following, return_dict=True)
                calls.on_train_batch_end(step, logs)
            calls.on_epoch_end(epoch, dict(logs))
        calls.on_train_end()

    def metrics(self, model: Any, *, final: bool) -> dict[str, float]:
        """Perplexity of a model on a whole text."""
        options = self.options
        numbers = self.read(options.test if final else options.valid)
        total = words_seen = 0.0
        reset(model)
        with device(options):
            for words, following in Windows(streams_to_measure(numbers, options.batch_size), options.unroll):
                logits = model.predict_on_batch(words)
                total += float(array(summed_over_words(following, logits)).sum(dtype="float64"))
                words_seen += (following != IGNORED).sum()
        reset(model)
        return {"perplexity": math.exp(total / words_seen)}

    def latencies(self, models: Mapping[str, Any]) -> dict[str, float]:
        """Milliseconds of each model for one window of one stream of the measured text, on the CPU."""
        words = self.read(self.options.test)[None, : self.options.unroll].astype("int32")
        with keras.device("cpu:0"):
            single = {name: _of_one_stream(model) for name, model in models.items()}
            return latency_ms({name: partial(model.predict_on_batch, words) for name, model in single.items()})

    def _windows(self, length: int) -> Windows:
        train = self.options.train
        return Windows(streams_to_train(self.read(train), self.options.batch_size, train), length)


def _of_one_stream(model: Any) -> Any:
    """A copy that reads one stream."""
    words = keras.Input(batch_shape=(1, None), dtype="int32", name="words")
    copy = keras.models.clone_model(model, input_tensors=words)
    copy.set_weights(model.get_weights())
    return copy
