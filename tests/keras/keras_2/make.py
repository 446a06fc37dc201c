"""Makes the files beside it, with Keras 2: `pip install tf_keras tensorflow-cpu`, then `python make.py`.

Models, each as `.h5` and as `.keras`, the weights of one, and `outputs.npz` with an input and what they make of it. The
layers for cuDNN run on GPUs alone: what they make is what Keras 2 makes of their weights in layers for all devices.
"""

from pathlib import Path

import numpy as np
import tf_keras
from tf_keras.src.layers.rnn.cudnn_gru import CuDNNGRU
from tf_keras.src.layers.rnn.cudnn_lstm import CuDNNLSTM

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


def hard():
    layers = [
        L.Bidirectional(L.LSTM(4, return_sequences=True, recurrent_activation="hard_sigmoid")),
        L.RNN(L.StackedRNNCells([L.GRUCell(4, recurrent_activation="hard_sigmoid"), L.SimpleRNNCell(3)])),
        L.Dense(3, activation="hard_sigmoid"),
        L.Activation("hard_sigmoid"),
    ]
    return tf_keras.Sequential([L.Input((5, 3)), *layers])


def cudnn(lstm, gru):
    return tf_keras.Sequential(
        [L.Input((5, 3)), L.Bidirectional(lstm(4, return_sequences=True)), gru(5), L.Dense(2, name="head")]
    )


found = {"x": X}
for name, build in (("chain", chain), ("states", states), ("hard", hard)):
    tf_keras.utils.set_random_seed(0)
    model = build()
    found[name] = model(X).numpy()
    model.compile("adam", "mse")
    model.save(HERE / f"{name}.h5")
    model.save(HERE / f"{name}.keras")
    if name == "chain":
        model.save_weights(HERE / f"{name}.weights.h5")
tf_keras.utils.set_random_seed(0)
model = cudnn(CuDNNLSTM, CuDNNGRU)
model.set_weights([np.random.default_rng(1).normal(0, 0.5, w.shape) for w in model.get_weights()])
model.save(HERE / "cudnn.h5")
anywhere = cudnn(L.LSTM, L.GRU)
anywhere.load_weights(HERE / "cudnn.h5")
found["cudnn"] = anywhere(X).numpy()
np.savez(HERE / "outputs.npz", **found)
