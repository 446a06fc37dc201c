"""Makes the files beside it, with Keras 2: `pip install tf_keras tensorflow-cpu`, then `python make.py`.

Two models, each as `.h5` and as `.keras`, the weights of one, and `outputs.npz` with an input and what they make of it.
"""

from pathlib import Path

import numpy as np
import tf_keras

L = tf_keras.layers
HERE = Path(__file__).parent
X = np.random.default_rng(0).normal(size=(4, 5, 3)).astype("float32")


def chain():
    layers = [
        L.Bidirectional(L.LSTM(4, return_sequences=True)),
        L.GRU(5, return_sequences=True, reset_after=False),
        L.BatchNormalization(),
        L.SimpleRNN(4),
        L.Dense(2),
    ]
    return tf_keras.Sequential([L.Input((5, 3)), *layers])


def states():
    source = L.Input((None, 3))
    sequence, *handed = L.LSTM(4, return_sequences=True, return_state=True)(source)
    decoded = L.LSTM(4, return_sequences=True)(source, initial_state=handed)
    context = L.Attention()([decoded, sequence])
    stack = L.RNN([L.LSTMCell(4), L.GRUCell(3)])(L.Concatenate()([decoded, context]))
    return tf_keras.Model(source, L.Dense(2)(stack))


found = {"x": X}
for name, build in (("chain", chain), ("states", states)):
    tf_keras.utils.set_random_seed(0)
    model = build()
    found[name] = model(X).numpy()
    model.compile("adam", "mse")
    model.save(HERE / f"{name}.h5")
    model.save(HERE / f"{name}.keras")
    if name == "chain":
        model.save_weights(HERE / f"{name}.weights.h5")
np.savez(HERE / "outputs.npz", **found)
