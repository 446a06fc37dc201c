"""Recurrent cells as users write them, for `keras.layers.RNN`."""

from __future__ import annotations

from typing import Any

import keras

L, K = keras.layers, keras.ops
registered = keras.saving.register_keras_serializable(package="tests")


@registered
class WrittenLSTM(L.Layer):
    """Weights laid out as those of `keras.layers.LSTMCell`."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.units = self.output_size = units
        self.state_size = [units, units]

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], 4 * self.units), name="kernel")
        self.recurrent = self.add_weight(shape=(self.units, 4 * self.units), name="recurrent")
        self.bias = self.add_weight(shape=(4 * self.units,), name="bias")

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        h, c = states
        i, f, g, o = self.gates(x @ self.kernel + h @ self.recurrent + self.bias)
        c = K.sigmoid(f) * c + K.sigmoid(i) * K.tanh(g)
        h = K.sigmoid(o) * K.tanh(c)
        return h, [h, c]

    def gates(self, z: Any) -> Any:
        return K.split(z, 4, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@registered
class SlicedLSTM(WrittenLSTM):
    """Its gates are cut out by positions that it computes, and it learns where to start."""

    def build(self, shape: Any) -> None:
        super().build(shape)
        self.start = self.add_weight(shape=(1, self.units), name="start")
        self.memory = self.add_weight(shape=(self.units,), name="memory")

    def gates(self, z: Any) -> Any:
        n = self.units
        return z[:, :n], z[:, n : 2 * n], z[:, 2 * n : 3 * n], z[:, 3 * n :]

    def get_initial_state(self, batch_size: Any = None) -> Any:
        return [K.tile(K.tanh(self.start), (batch_size, 1)), K.broadcast_to(self.memory, (batch_size, self.units))]


@registered
class DenseGRU(L.Layer):
    """Gates are layers inside; the constructor's arguments are all its configuration."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(**options)
        self.state_size = units
        self.update, self.reset = (L.Dense(units, activation="sigmoid", name=name) for name in ("update", "reset"))
        self.candidate = L.Dense(units, activation="tanh", name="candidate")

    def build(self, shape: Any) -> None:
        for part in (self.update, self.reset, self.candidate):
            part.build((None, shape[-1] + self.state_size))

    def call(self, x: Any, states: Any) -> Any:
        (h,) = states
        both = K.concatenate([x, h], axis=-1)
        z, r = self.update(both), self.reset(both)
        h = z * h + (1 - z) * self.candidate(K.concatenate([x, r * h], axis=-1))
        return h, [h]


@registered
class Continuous(L.Layer):
    """A closed-form continuous-time cell: a backbone of layers, weights of its own behind it, and a time constant."""

    def __init__(self, hidden: int, backbone: int = 7, **options: Any) -> None:
        super().__init__(**options)
        self.hidden, self.backbone = hidden, backbone

    @property
    def state_size(self) -> int:
        return self.hidden

    def build(self, shape: Any) -> None:
        self.inner = keras.Sequential([L.Dense(self.backbone, "tanh", name="first"), L.Dropout(0.1)])
        self.inner.build((None, shape[-1] + self.hidden))
        self.kernel = self.add_weight(shape=(self.backbone, self.hidden), name="kernel")
        self.bias = self.add_weight(shape=(self.hidden,), name="bias")
        self.tau, self.scale = (self.add_weight(shape=(1, self.hidden), name=name) for name in ("tau", "scale"))
        self.gate = L.Dense(self.hidden, name="gate")
        self.gate.build((None, self.backbone))
        self.built = True

    def call(self, x: Any, states: Any) -> Any:
        x = self.inner(L.Concatenate()([x, states[0]]))
        first = K.matmul(x, self.kernel) + self.bias
        decayed = self.scale - self.scale * K.exp(-(K.abs(self.tau) + K.abs(first))) * first
        h = decayed * K.sigmoid(self.gate(x))
        return h, [h]


@registered
class Memory(L.Layer):
    """Two states of different widths, and an output of a third one; peepholes are rows of a matrix."""

    def __init__(self, units: int, memory: int, output_size: int, **options: Any) -> None:
        super().__init__(**options)
        self.state_size, self.output_size = (units, memory), output_size

    def build(self, shape: Any) -> None:
        units, memory = self.state_size
        self.kernels = [self.add_weight(shape=(shape[-1] + units + memory, n), name=f"k{n}") for n in self.state_size]
        self.peep = self.add_weight(shape=(2, memory), name="peep")
        self.out = self.add_weight(shape=(units, self.output_size), name="out")

    def call(self, x: Any, states: Any) -> Any:
        h, m = states
        both = K.concatenate([x, h, m], axis=-1)
        m = m * K.sigmoid(self.peep[0]) + self.peep[1] * K.tanh(K.matmul(both, self.kernels[1]))
        h = K.relu(K.matmul(both, self.kernels[0]))
        return K.matmul(h, self.out), (h, m)


@registered
class Skipping(L.Layer):
    """A cell around another one."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__(**options)
        self.cell = cell
        self.state_size, self.output_size = cell.state_size, cell.units

    def build(self, shape: Any) -> None:
        if not self.cell.built:
            self.cell.build(shape)

    def call(self, x: Any, states: Any) -> Any:
        output, states = self.cell(x, states)
        return output + x, states

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "cell": keras.layers.serialize(self.cell)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(keras.layers.deserialize(config.pop("cell")), **config)


@registered
class OwnLayer(L.RNN):
    """A layer that makes its cell."""

    def __init__(self, units: int, **options: Any) -> None:
        super().__init__(DenseGRU(units), **options)
        self.units = units

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["cell"]
        return {**config, "units": self.units}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        return cls(**config)


@registered
class Halves(WrittenLSTM):
    """Some of its units, by a position of its own."""

    def gates(self, z: Any) -> Any:
        i, f, g, o = super().gates(z)
        return i, f, K.sum(g[:, : self.units // 2], axis=-1, keepdims=True), o


@registered
class Unsized(DenseGRU):
    """Nobody can make it narrower."""

    def __init__(self, **options: Any) -> None:
        super().__init__(6, **options)
