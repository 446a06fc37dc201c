"""Small Keras models of many wirings, with random weights; every one must come out exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import reprune.keras
from reprune.core.plan import Plan

L = keras.layers
K = keras.ops
T, F = 5, 3
SPEC = keras.KerasTensor((None, T, F))


def randomise(model: Any, seed: int = 0) -> Any:
    """Give every weight random values: zero biases and unit gains would hide mistakes."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.5, size=weight.shape)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.name else value)
    return model


def inputs_for(model: Any, batch: int = 2, seed: int = 1) -> Any:
    """Random inputs of the model's shapes; integers below 7 for tokens, some of them padding."""
    rng = np.random.default_rng(seed)

    def one(spec: Any) -> Any:
        shape = [size or (batch if axis == 0 else T) for axis, size in enumerate(spec.shape)]
        if spec.dtype.startswith("int"):
            tokens = rng.integers(1, 7, size=shape)
            tokens[..., -2:] = 0
            return tokens.astype(spec.dtype)
        return rng.normal(size=shape).astype(spec.dtype)

    if isinstance(model, keras.Sequential):
        return one(model.inputs[0])
    return keras.tree.map_structure(one, model.input if hasattr(model, "operations") else SPEC)


def sequential(*layers: Any, shape: tuple[int | None, ...] = (T, F), dtype: str = "float32", **options: Any) -> Any:
    return randomise(keras.Sequential([keras.Input(shape, dtype=dtype, **options), *layers]))


def functional(build: Callable[..., Any], *shapes: tuple[int | None, ...], dtype: str = "float32") -> Any:
    inputs = [keras.Input(shape, dtype=dtype) for shape in shapes or ((T, F),)]
    return randomise(keras.Model(inputs if len(inputs) > 1 else inputs[0], build(*inputs)))


def lstm(units: int = 6, **options: Any) -> Any:
    return L.LSTM(units, return_sequences=True, **options)


def both(
    units: int = 5, backward: int | None = None, cell: Any = L.LSTM, sequences: bool = True, **options: Any
) -> Any:
    other = None if backward is None else cell(backward, return_sequences=sequences, go_backwards=True)
    return L.Bidirectional(cell(units, return_sequences=sequences), backward_layer=other, **options)


def _attention(kind: Any, **options: Any) -> Callable[..., Any]:
    def build(x: Any) -> Any:
        sequence = lstm(6)(x)
        query = lstm(6)(x)
        context = kind(**options)([query, sequence])
        return L.Dense(2)(L.Concatenate()([query, context]))

    return build


def encoder_decoder(cell: Any = L.LSTM) -> Any:
    def build(source: Any, target: Any) -> Any:
        _, *states = cell(6, return_state=True)(source)
        decoded = cell(6, return_sequences=True)(target, initial_state=states)
        return L.Dense(4)(decoded)

    return functional(build, (T, F), (4, 2))


def bidirectional_encoder() -> Any:
    def build(source: Any, target: Any) -> Any:
        _, fh, fc, bh, bc = L.Bidirectional(L.LSTM(4, return_state=True))(source)
        states = [L.Concatenate()([fh, bh]), L.Concatenate()([fc, bc])]
        states = [L.Dense(5, activation="tanh")(state) for state in states]
        return L.Dense(4)(L.LSTM(5, return_sequences=True)(target, initial_state=states))

    return functional(build, (T, F), (4, 2))


def both_to_both(source: Any, target: Any) -> Any:
    _, *states = L.Bidirectional(L.LSTM(4, return_state=True), merge_mode="sum")(source)
    return L.Dense(4)(both(4)(target, initial_state=states))


def stack_to_stack(source: Any, target: Any) -> Any:
    _, *states = L.RNN([L.LSTMCell(4), L.GRUCell(5)], return_state=True)(source)
    return L.Dense(4)(L.RNN([L.LSTMCell(4), L.GRUCell(5)])(target, initial_state=states))


def residual(x: Any) -> Any:
    first = lstm(6)(x)
    second = lstm(6)(first)
    return L.Dense(2)(L.Add()([first, second]))


def projected_residual(x: Any) -> Any:
    h = L.Dense(6)(x)
    for _ in range(2):
        h = L.Add()([h, L.Dense(6)(L.LSTM(5, return_sequences=True)(h))])
    return L.Dense(2)(L.LSTM(4)(h))


def lifted_residual(x: Any) -> Any:
    return L.Dense(2)(L.Add()([L.Dense(6, use_bias=False)(x), lstm(6)(x)]))


def gated(x: Any) -> Any:
    h = lstm(6)(x)
    return L.Dense(2)(L.Multiply()([h, L.Dense(6, activation="sigmoid")(h)]))


def weighted_pool(x: Any) -> Any:
    h = lstm(6)(x)
    weights = L.Softmax(axis=1)(L.Dense(1)(h))
    return L.Dense(2)(K.sum(h * weights, axis=1))


def attended_matmul(x: Any) -> Any:
    h, q = lstm(6)(x), lstm(6)(x)
    scores = K.softmax(K.matmul(q, K.transpose(h, (0, 2, 1))) / 2.0)
    return L.Dense(2)(K.matmul(scores, h))


def dotted(x: Any) -> Any:
    return L.Dense(2)(L.Flatten()(L.Dot(axes=1)([lstm(6)(x), L.Dense(4)(x)])))


def shared(a: Any, b: Any) -> Any:
    tower = both(4, cell=L.GRU, sequences=False)
    return L.Dense(2)(L.Concatenate()([tower(a), tower(b)]))


def nested(x: Any) -> Any:
    inside = keras.Input((T, F))
    block = keras.Model(inside, L.Dropout(0.2)(lstm(6)(L.Dense(4)(inside))), name="encoder")
    tail = keras.Sequential([keras.Input((T, 6)), L.GRU(5), L.Dense(3)], name="tail")
    return tail(block(x))


def two_outputs(x: Any) -> Any:
    h = both(4)(x)
    return {"frames": L.Dense(2)(h), "clip": L.Dense(3)(L.GlobalMaxPooling1D()(h))}


def multi_head(x: Any) -> Any:
    h = lstm(6)(x)
    attended = L.MultiHeadAttention(2, 3)(h, h)
    return L.Dense(2)(L.BatchNormalization()(L.Add()([h, attended])))


def merged(kind: Any) -> Callable[..., Any]:
    return lambda x: L.Dense(2)(kind()([lstm(6)(x), L.GRU(6, return_sequences=True)(x)]))


def states_used(x: Any) -> Any:
    _, h, c = L.LSTM(6, return_state=True)(x)
    return L.Dense(2)(L.Concatenate()([h, K.tanh(c)]))


def separate_directions(x: Any) -> Any:
    forward, backward = both(4, merge_mode=None)(x)
    return L.Dense(2)(L.Concatenate()([L.GRU(3, return_sequences=True)(forward), backward]))


def sliced(x: Any) -> Any:
    h = both(4)(x)
    return L.Dense(2)(L.Concatenate()([h[:, -1, :], h[:, 0]]))


def stacked(x: Any) -> Any:
    return L.Dense(2)(K.stack([L.LSTM(6)(x), L.GRU(6)(x)], axis=1))


def uneven(x: Any) -> Any:
    layer = reprune.keras.RaggedBidirectional(
        L.GRU(5, return_sequences=True, return_state=True),
        backward_layer=L.GRU(3, return_sequences=True, return_state=True, go_backwards=True),
    )
    h, forward, backward = layer(x)
    return L.Dense(2)(L.Concatenate()([L.LSTM(4)(h), forward, backward]))


def last_valid_step(x: Any) -> Any:
    h = lstm(6)(x)
    place = K.argmax(x[:, :, :1], axis=1, keepdims=True)
    return L.Dense(2)(K.take_along_axis(h, place, axis=1))


def einsum_attention(x: Any) -> Any:
    query, h = L.GRU(6, return_sequences=True)(x), lstm(6)(x)
    weights = K.softmax(K.einsum("bqd,btd->bqt", query, h), axis=-1)
    return L.Dense(2)(K.einsum("bqt,btd->bqd", weights, h))


def compared(x: Any) -> Any:
    h = lstm(6)(x)
    return L.Dense(2)(K.where(h > K.mean(h, axis=1, keepdims=True), h**2, 0.1 * h))


def cosine(x: Any) -> Any:
    return L.Dense(2)(L.Dot(axes=-1, normalize=True)([L.LSTM(6)(x), L.GRU(6)(x)]))


def matrix_product(x: Any) -> Any:
    others = L.GRU(6, return_sequences=True)(x)[0]
    return L.Dense(2)(K.dot(lstm(6)(x), K.transpose(others)))


def zero_states(x: Any) -> Any:
    h = lstm(6)(x)
    return L.Dense(2)(L.GRU(6)(h, initial_state=K.zeros_like(h[:, 0])))


def masked_concatenation(x: Any) -> Any:
    h = lstm(6)(L.Masking()(x))
    return L.Dense(2)(L.LSTM(3)(L.Concatenate()([h, lstm(4)(h)])))


def lengths(x: Any) -> Any:
    h = lstm(6, activation="relu")(x)
    length = K.sqrt(K.sum(K.square(h), axis=-1, keepdims=True))
    return L.Dense(2)(L.Concatenate()([K.normalize(h), length, K.cumsum(h, axis=1)]))


def parts_of_time(x: Any) -> Any:
    first, *rest = K.split(lstm(6)(x), T, axis=1)
    return L.Dense(2)(K.concatenate([*rest, K.pad(first, ((0, 0), (1, 0), (0, 0)))], axis=1))


def passed_through(x: Any) -> Any:
    """Weights along other axes, and one along that of the units, which stays."""
    y = L.EinsumDense("btx,ts->bsx", (4, 6), bias_axes="x")(lstm(6)(x))
    y = L.EinsumDense("bsx,xy->bsxy", (4, 6, 5), bias_axes="xy", activation="relu")(y)
    y = L.EinsumDense("bsxy,y->bsx", (4, 6))(y)
    return L.Dense(2)(L.Flatten()(y))


def channels_first(x: Any) -> Any:
    y = K.transpose(K.concatenate([lstm(6)(x), lstm(4)(x)], axis=-1), (0, 2, 1))
    y = L.DepthwiseConv1D(2, data_format="channels_first")(L.BatchNormalization(axis=1)(y))
    return L.Dense(2)(L.GlobalAveragePooling1D(data_format="channels_first")(y))


def pruned_again() -> Any:
    model = functional(uneven)
    structure = reprune.keras.trace(model, inputs_for(model))
    kept = {name: list(range(layer.units - 1)) for name, layer in structure.layers.items()}
    return reprune.keras.apply(model, Plan(structure, kept))


class Attentive(keras.layers.Layer):
    """A custom layer made of layers, without weights of its own."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.rnn = L.GRU(units, return_sequences=True)
        self.score = L.Dense(1)

    def call(self, x: Any) -> Any:
        h = self.rnn(x)
        return K.sum(h * K.softmax(self.score(h), axis=1), axis=1)


class Subclassed(keras.Model):
    """A model whose graph only its `call` knows."""

    def __init__(self) -> None:
        super().__init__(name="subclassed")
        self.first = L.Bidirectional(L.LSTM(4, return_sequences=True))
        self.second = L.LSTM(6)
        self.head = L.Dense(2)

    def call(self, x: Any, training: bool = False) -> Any:
        h = self.first(x, training=training)
        return self.head(K.concatenate([self.second(h), K.mean(h, axis=1)], axis=-1))


class CellLoop(keras.Model):
    """Cells called step by step, their states fed back."""

    def __init__(self) -> None:
        super().__init__(name="loop")
        self.cell = L.LSTMCell(6)
        self.start = L.Dense(6)
        self.head = L.Dense(2)

    def call(self, x: Any) -> Any:
        state = [self.start(x[:, 0]), self.start(x[:, -1])]
        out = x[:, 0]
        for step in range(T):
            out, state = self.cell(x[:, step], state)
        return self.head(out)


def called(model: Any) -> Any:
    model(np.zeros((2, T, F), dtype="float32"))
    return randomise(model)


EXACT: dict[str, Callable[[], Any]] = {
    "lstm": lambda: sequential(L.LSTM(6), L.Dense(2)),
    "lstm-no-bias": lambda: sequential(lstm(6, use_bias=False), L.LSTM(5, use_bias=False), L.Dense(2)),
    "lstm-activations": lambda: sequential(
        L.LSTM(6, activation="relu", recurrent_activation="hard_sigmoid"), L.Dense(2)
    ),
    "lstm-own-activation": lambda: sequential(L.LSTM(6, activation=lambda x: K.tanh(x) * 1.7), L.Dense(2)),
    "gru": lambda: sequential(L.GRU(6), L.Dense(2)),
    "gru-reset-before": lambda: sequential(L.GRU(6, reset_after=False), L.Dense(2)),
    "rnn": lambda: sequential(L.SimpleRNN(6, return_sequences=True), L.SimpleRNN(4), L.Dense(2)),
    "backwards-unrolled": lambda: sequential(L.LSTM(6, go_backwards=True, unroll=True), L.Dense(2)),
    "dropouts": lambda: sequential(L.LSTM(6, dropout=0.2, recurrent_dropout=0.3), L.Dropout(0.5), L.Dense(2)),
    "stateful": lambda: sequential(L.LSTM(6, stateful=True), L.Dense(2), batch_size=2),
    "stateful-both": lambda: sequential(L.Bidirectional(L.GRU(4, stateful=True)), L.Dense(2), batch_size=2),
    "own-kernels": lambda: sequential(lstm(6, use_cudnn=False), L.GRU(5, use_cudnn=False), L.Dense(2)),
    "dropouts-of-all": lambda: sequential(
        L.Bidirectional(L.GRU(4, recurrent_dropout=0.3, return_sequences=True)),
        L.RNN([L.LSTMCell(5, recurrent_dropout=0.2), L.SimpleRNNCell(4, dropout=0.1)], return_sequences=True),
        L.SimpleRNN(4, recurrent_dropout=0.2),
        L.Dense(2),
    ),
    "both-concat": lambda: sequential(both(5), both(4, sequences=False), L.Dense(2)),
    "both-sum": lambda: sequential(both(5, merge_mode="sum"), L.Dense(2)),
    "both-ave": lambda: sequential(both(5, cell=L.GRU, merge_mode="ave"), L.Dense(2)),
    "both-mul": lambda: sequential(both(5, cell=L.SimpleRNN, merge_mode="mul", sequences=False), L.Dense(2)),
    "both-apart": lambda: functional(separate_directions),
    "rnn-cell": lambda: sequential(L.RNN(L.LSTMCell(6)), L.Dense(2)),
    "rnn-stack": lambda: sequential(L.RNN([L.LSTMCell(6), L.GRUCell(5)], return_sequences=True), L.Dense(2)),
    "both-stack": lambda: sequential(L.Bidirectional(L.RNN([L.GRUCell(4), L.GRUCell(5)])), L.Dense(2)),
    "time-distributed": lambda: sequential(lstm(6), L.TimeDistributed(L.Dense(4)), L.GRU(3), L.Dense(2)),
    "recurrent-distributed": lambda: sequential(L.TimeDistributed(L.LSTM(6)), L.LSTM(4), L.Dense(2), shape=(3, T, F)),
    "conv-lstm-1d": lambda: sequential(
        L.ConvLSTM1D(4, 3, padding="same", return_sequences=True),
        L.ConvLSTM1D(3, 2),
        L.Flatten(),
        L.Dense(2),
        shape=(3, 6, 2),
    ),
    "conv-lstm-2d": lambda: sequential(
        L.ConvLSTM2D(4, 2, return_sequences=True), L.Conv3D(2, 2), L.Flatten(), L.Dense(2), shape=(3, 4, 4, 2)
    ),
    "tokens": lambda: sequential(
        L.Embedding(7, 4, mask_zero=True), both(4), L.GRU(5), L.Dense(2), shape=(None,), dtype="int32"
    ),
    "masking": lambda: sequential(L.Masking(0.0), lstm(6), L.LSTM(4), L.Dense(2)),
    "masked-backwards": lambda: sequential(
        L.Masking(0.0), lstm(6, go_backwards=True), L.GRU(4, go_backwards=True, unroll=True), L.Dense(2)
    ),
    "both-conv-lstm": lambda: sequential(
        L.Bidirectional(L.ConvLSTM1D(3, 2, padding="same")), L.Flatten(), L.Dense(2), shape=(3, 6, 2)
    ),
    "encoder-decoder": encoder_decoder,
    "encoder-decoder-both": lambda: functional(both_to_both, (T, F), (4, 2)),
    "encoder-decoder-stack": lambda: functional(stack_to_stack, (T, F), (4, 2)),
    "encoder-decoder-gru": lambda: encoder_decoder(L.GRU),
    "bidirectional-encoder": bidirectional_encoder,
    "states": lambda: functional(states_used),
    "residual": lambda: functional(residual),
    "projected-residual": lambda: functional(projected_residual),
    "lifted-residual": lambda: functional(lifted_residual),
    "gated": lambda: functional(gated),
    "multiply": lambda: functional(merged(L.Multiply)),
    "maximum": lambda: functional(merged(L.Maximum)),
    "average": lambda: functional(merged(L.Average)),
    "subtract": lambda: functional(merged(L.Subtract)),
    "weighted-pool": lambda: functional(weighted_pool),
    "attention": lambda: functional(_attention(L.Attention, use_scale=True)),
    "attention-concat": lambda: functional(_attention(L.Attention, score_mode="concat")),
    "additive-attention": lambda: functional(_attention(L.AdditiveAttention)),
    "additive-attention-bare": lambda: functional(_attention(L.AdditiveAttention, use_scale=False)),
    "multi-head": lambda: functional(multi_head),
    "matmul": lambda: functional(attended_matmul),
    "dot": lambda: functional(dotted),
    "shared": lambda: functional(shared, (T, F), (T, F)),
    "nested": lambda: functional(nested),
    "two-outputs": lambda: functional(two_outputs),
    "sliced": lambda: functional(sliced),
    "stacked": lambda: functional(stacked),
    "pool-flatten": lambda: sequential(lstm(6), L.AveragePooling1D(2), L.Flatten(), L.Dense(2)),
    "max-pool": lambda: sequential(
        lstm(6), L.MaxPooling1D(2), L.GRU(5, return_sequences=True), L.GlobalMaxPooling1D(), L.Dense(2)
    ),
    "pad-crop-conv": lambda: sequential(
        lstm(6), L.ZeroPadding1D(1), L.Cropping1D((0, 1)), L.Conv1D(4, 3, padding="causal"), L.LSTM(3), L.Dense(2)
    ),
    "separable": lambda: sequential(
        lstm(6), L.SeparableConv1D(5, 2, depth_multiplier=2), L.GlobalAveragePooling1D(), L.Dense(2)
    ),
    "depthwise": lambda: sequential(lstm(6), L.DepthwiseConv1D(2, depth_multiplier=2), L.GRU(3), L.Dense(2)),
    "transposed-conv": lambda: sequential(lstm(6), L.Conv1DTranspose(4, 2), L.GRU(3), L.Dense(2)),
    "reshape": lambda: sequential(lstm(6), L.Reshape((T * 6,)), L.Dense(2)),
    "permute": lambda: sequential(lstm(6), L.Permute((2, 1)), L.Dense(4), L.Permute((2, 1)), L.LSTM(3), L.Dense(2)),
    "repeat": lambda: sequential(L.LSTM(6), L.RepeatVector(4), lstm(5), L.TimeDistributed(L.Dense(2))),
    "normalised": lambda: sequential(
        L.BatchNormalization(), lstm(6), L.BatchNormalization(), L.Activation("relu"), L.PReLU(), L.LSTM(4), L.Dense(2)
    ),
    "unit-norm": lambda: sequential(lstm(6), L.UnitNormalization(), L.Dense(2)),
    "custom-layer": lambda: functional(lambda x: L.Dense(2)(Attentive(6)(x))),
    "subclassed": lambda: called(Subclassed()),
    "cell-loop": lambda: called(CellLoop()),
    "both-own-backward": lambda: sequential(both(5, backward=5), both(3, 3, L.GRU, sequences=False), L.Dense(2)),
    "both-uneven": lambda: functional(uneven),
    "model-distributed": lambda: sequential(
        L.TimeDistributed(keras.Sequential([keras.Input((T, F)), L.GRU(4), L.Dense(3)])),
        L.LSTM(4),
        L.Dense(2),
        shape=(3, T, F),
    ),
    "tokens-pooled": lambda: sequential(
        L.Embedding(7, 4, mask_zero=True), both(4), L.GlobalAveragePooling1D(), L.Dense(2), shape=(None,), dtype="int32"
    ),
    "pruned-again": pruned_again,
    "last-valid-step": lambda: functional(last_valid_step),
    "einsum": lambda: functional(einsum_attention),
    "compared": lambda: functional(compared),
    "cosine": lambda: functional(cosine),
    "matrix-product": lambda: functional(matrix_product),
    "zero-states": lambda: functional(zero_states),
    "masked-concatenation": lambda: functional(masked_concatenation),
    "passed-through": lambda: functional(passed_through),
    "channels-first": lambda: functional(channels_first),
    "masked-late": lambda: sequential(lstm(6, activation="relu"), L.Masking(), L.LSTM(4), L.Dense(2)),
    "lengths": lambda: functional(lengths),
    "parts-of-time": lambda: functional(parts_of_time),
}
