"""Train a small Keras classifier, remove half of its hidden units, fine-tune what is left.

    pip install '.[keras]'
    python examples/prune_keras.py

The class of a sequence is the sign that it carried at the one step that was marked: something to remember.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

import reprune


class Classifier(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.both = keras.layers.Bidirectional(keras.layers.LSTM(32, return_sequences=True))
        self.top = keras.layers.LSTM(48)
        self.head = keras.layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.top(self.both(x)))


def sequences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, 20, 4)).astype("float32")
    marked = random.integers(0, 20, size=count)
    x[..., 0] = np.arange(20) == marked[:, None]
    return x, (x[np.arange(count), marked, 1] > 0).astype("int32")


def main(count: int = 4096, epochs: int = 6) -> None:
    keras.utils.set_random_seed(0)
    x, y = sequences(count, seed=0)
    test = sequences(1024, seed=1)
    model = Classifier()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=epochs, verbose=2)

    batches = np.split(x[:1024], 16)
    print(reprune.inspect(model, batches))
    result = reprune.prune(model, batches, ratio=0.5)
    print(result)

    small = result.model  # compiled as `model` was
    print("dense", model.evaluate(*test, verbose=0, return_dict=True))
    print("pruned", small.evaluate(*test, verbose=0, return_dict=True))
    small.fit(x, y, batch_size=64, epochs=2, verbose=2)
    print("fine-tuned", small.evaluate(*test, verbose=0, return_dict=True))
    result.save("small")


if __name__ == "__main__":
    main()
