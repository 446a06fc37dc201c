"""Train a small Keras classifier, remove half of its hidden units, fine-tune what is left.

    pip install 'reprune[keras]' tensorflow
    python examples/prune_keras.py

The class of a sequence is the sign that it carried at the one step that was marked: something to remember.
"""

from __future__ import annotations

import keras
import numpy as np

import reprune


def sequences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 20, 4)).astype("float32")
    marked = rng.integers(0, 20, size=count)
    x[..., 0] = np.arange(20) == marked[:, None]
    return x, (x[np.arange(count), marked, 1] > 0).astype("int32")


def main() -> None:
    keras.utils.set_random_seed(0)
    x, y = sequences(4096, seed=0)
    test = sequences(1024, seed=1)

    model = keras.Sequential(
        [
            keras.Input((None, 4)),
            keras.layers.Bidirectional(keras.layers.LSTM(32, return_sequences=True)),
            keras.layers.LSTM(48),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(3e-3), loss=loss, metrics=["accuracy"])
    model.fit(x, y, batch_size=64, epochs=6, verbose=2)

    batches = [x[i : i + 64] for i in range(0, 1024, 64)]
    print(reprune.inspect(model, batches))
    result = reprune.prune(model, batches, ratio=0.5)
    print(result)

    small = result.model  # compiled as `model` was
    print("dense", model.evaluate(*test, verbose=0, return_dict=True))
    print("pruned", small.evaluate(*test, verbose=0, return_dict=True))
    small.fit(x, y, batch_size=64, epochs=2, verbose=2)
    print("fine-tuned", small.evaluate(*test, verbose=0, return_dict=True))
    small.save("small.keras")


if __name__ == "__main__":
    main()
