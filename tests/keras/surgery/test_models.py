"""What comes back: the paper's model in its three forms, compiled, named, saved and loaded."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import reprune
import reprune.keras
from reprune.core.errors import PlanError, StatisticsError, UnsupportedModelError, VerificationError
from reprune.core.folding.fold import Fold, Refit
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.keras.surgery.apply import _add_to_bias
from reprune.keras.surgery.cloning import named_cells, weight_arrays
from reprune.keras.surgery.expand import expand
from reprune.keras.surgery.rename import _owner
from reprune.keras.surgery.verify import _differs, verify
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.tracing.record import record
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, in_double, outputs, some_plan

L, K, T, F = zoo.L, zoo.K, zoo.T, zoo.F
CLASSES = 4


class Paper(keras.Model):
    """Bidirectional LSTM, LSTM, sigmoid over the classes, as a user writes it."""

    def __init__(self) -> None:
        super().__init__(name="paper")
        self.both = L.Bidirectional(L.LSTM(6, return_sequences=True))
        self.top = L.LSTM(8)
        self.head = L.Dense(CLASSES, activation="sigmoid", kernel_regularizer=keras.regularizers.L2(0.005))

    def call(self, frames: Any, training: bool = False) -> Any:
        return self.head(self.top(self.both(frames, training=training), training=training))


def paper(form: str) -> Any:
    layers = [
        L.Bidirectional(L.LSTM(6, return_sequences=True)),
        L.LSTM(8),
        L.Dense(CLASSES, activation="sigmoid", kernel_regularizer=keras.regularizers.L2(0.005)),
    ]
    if form == "sequential":
        return zoo.randomise(keras.Sequential([keras.Input((None, F)), *layers], name="paper"))
    if form == "functional":
        x = frames = keras.Input((None, F))
        for layer in layers:
            x = layer(x)
        return zoo.randomise(keras.Model(frames, x, name="paper"))
    model = Paper()
    model(np.zeros((1, T, F), dtype="float32"))
    return zoo.randomise(model)


@pytest.mark.parametrize("form", ["sequential", "functional", "subclassed"])
def test_the_papers_model(form: str, tmp_path: Path) -> None:
    model = paper(form)
    rng = np.random.default_rng(0)
    batches = [rng.normal(size=(8, T, F)).astype("float32") for _ in range(3)]
    model.compile(optimizer=keras.optimizers.Adam(2e-4), loss="binary_crossentropy", metrics=["accuracy"])
    result = reprune.keras.prune(model, batches, ratio=0.5)
    small = result.model
    other = rng.normal(size=(5, T + 3, F)).astype("float32")
    assert error(outputs(reprune.keras.mask(model, result.plan), other), outputs(small, other)) < RELATIVE
    assert small.name == "paper"
    assert sum(result.plan.counts().values()) == 10
    assert small.compiled
    if form != "functional":
        return
    small.fit(batches[0], rng.integers(0, 2, size=(8, CLASSES)), epochs=1, verbose=0)
    small.save(tmp_path / "small.keras")
    again = keras.models.load_model(tmp_path / "small.keras")
    assert error(outputs(small, other), outputs(again, other)) < 1e-6
    # A pruned model can be pruned again.
    twice = reprune.keras.prune(small, batches, ratio=0.3, method="magnitude", verify=False)
    assert twice.model.count_params() < small.count_params() < model.count_params()


def test_compiled_as_before_with_a_fresh_optimizer() -> None:
    def own_loss(truth: Any, found: Any) -> Any:
        return K.mean(K.square(truth - found), axis=-1)

    model = zoo.functional(lambda x: L.Dense(2)(L.LSTM(6)(x)))
    model.compile(
        optimizer=keras.optimizers.SGD(0.25, momentum=0.9),
        loss=own_loss,
        metrics=[keras.metrics.MeanAbsoluteError(name="mae")],
        jit_compile=False,
    )
    x, y = zoo.inputs_for(model, 8), np.zeros((8, 2), dtype="float32")
    model.fit(x, y, verbose=0)
    steps, momenta = int(model.optimizer.iterations), [array(v) for v in model.optimizer.variables]
    small = reprune.keras.prune(model, [x], ratio=0.5).model
    assert isinstance(small.optimizer, keras.optimizers.SGD)
    assert small.optimizer is not model.optimizer
    assert float(array(small.optimizer.learning_rate)) == 0.25
    assert small.optimizer.momentum == 0.9
    assert int(small.optimizer.iterations) == 0
    assert small.loss is own_loss
    small.fit(x, y, verbose=0)
    found = small.evaluate(x, y, verbose=0, return_dict=True)
    assert set(found) == {"loss", "mae"}
    assert int(model.optimizer.iterations) == steps
    assert all(np.array_equal(a, array(b)) for a, b in zip(momenta, model.optimizer.variables, strict=True))


def test_names_types_and_trainable_carry_over() -> None:
    model = keras.Sequential(
        [
            keras.Input((T, F), name="frames"),
            L.Bidirectional(L.LSTM(6, return_sequences=True), name="reader"),
            L.GRU(4, name="memory"),
            L.Dense(2, name="head"),
        ],
        name="tagger",
    )
    model.get_layer("memory").trainable = False
    plan = some_plan(reprune.keras.trace(zoo.randomise(model), zoo.inputs_for(model)), seed=3)
    small = reprune.keras.apply(model, plan)
    assert type(small) is keras.Sequential
    assert [layer.name for layer in small.layers] == ["reader", "memory", "head"]
    assert [layer.trainable for layer in small.layers] == [True, False, True]
    assert small.inputs[0].name == "frames"
    uneven = len({len(plan.kept[f"reader:{side}"]) for side in ("forward", "backward")}) > 1
    assert isinstance(small.layers[0], reprune.keras.RaggedBidirectional) == uneven
    assert type(small.layers[1]) is L.GRU
    assert small.layers[1].units == len(plan.kept["memory"])
    everything = Plan(plan.structure, {name: list(range(layer.units)) for name, layer in plan.structure.layers.items()})
    model.trainable = False
    same = reprune.keras.apply(model, everything)
    assert type(same.layers[0]) is L.Bidirectional
    assert not same.trainable
    assert not same.compiled


def test_directions_of_different_sizes(tmp_path: Path) -> None:
    """Keras announces the wrong shapes for such a layer; the ragged one does not, masks and states included."""
    inputs = keras.Input((T, F))
    h, *states = L.Bidirectional(L.LSTM(5, return_sequences=True, return_state=True), name="both")(L.Masking()(inputs))
    model = zoo.randomise(keras.Model(inputs, L.Dense(2)(L.Concatenate()([L.LSTM(3)(h), *states]))))
    x = zoo.inputs_for(model)
    x[:, -1] = 0
    structure = reprune.keras.trace(model, x)
    plan = Plan(
        structure,
        {
            name: [1, 4] if name == "both:backward" else list(range(layer.units))
            for name, layer in structure.layers.items()
        },
    )
    small = reprune.keras.apply(model, plan)
    assert small.get_layer("both").output[0].shape == (None, T, 7)
    assert [state.shape[-1] for state in small.get_layer("both").output[1:]] == [5, 5, 2, 2]
    assert error(outputs(reprune.keras.mask(model, plan), x), outputs(small, x)) < RELATIVE
    small.save(tmp_path / "ragged.keras")
    assert error(outputs(keras.models.load_model(tmp_path / "ragged.keras"), x), outputs(small, x)) < 1e-6


def test_mixed_precision_and_double() -> None:
    for dtype in ("float64", "mixed_bfloat16"):
        model = zoo.functional(lambda x, dtype=dtype: L.Dense(2, dtype=dtype)(L.LSTM(6, dtype=dtype)(x)))
        x = zoo.inputs_for(model).astype("float64")
        plan = some_plan(reprune.keras.trace(model, x))
        small = reprune.keras.apply(model, plan)
        assert small.layers[1].dtype_policy == model.layers[1].dtype_policy
        limit = 1e-10 if dtype == "float64" else 3e-2
        masked, found = (outputs(m, x)[0].astype("float64") for m in (reprune.keras.mask(model, plan), small))
        assert error([masked], [found]) < limit


@pytest.mark.parametrize("name", ["multi-head", "reshape", "nested", "projected-residual", "both-stack"])
def test_a_plan_fits_the_same_model_under_other_names(name: str) -> None:
    first, second = zoo.EXACT[name](), zoo.EXACT[name]()
    inputs = zoo.inputs_for(first)
    plan = some_plan(reprune.keras.trace(first, inputs))
    assert set(plan.kept) != set(reprune.keras.trace(second, inputs).layers)
    one, other = reprune.keras.apply(first, plan), reprune.keras.apply(second, plan)
    assert error(outputs(one, inputs), outputs(other, inputs)) == 0


def test_a_layer_without_weights_is_told_by_its_name_or_else_by_its_kind() -> None:
    paths = SimpleNamespace(paths=dict(enumerate(["stretch", "stretch_1", "reshape_4"])))
    assert [_owner(name, {"lstm/kernel": "lstm_1/kernel"}, paths) for name in ("stretch", "reshape", "lstm")] == [
        "stretch", "reshape_4", "lstm_1"
    ]  # fmt: skip
    with pytest.raises(PlanError, match="2 layers here could be"):
        _owner("stretch_7", {}, paths)


def test_an_expanded_model_computes_what_the_small_one_does() -> None:
    model = zoo.EXACT["both-stack"]()
    x = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(model, x))
    small = reprune.keras.apply(model, plan)
    assert error(outputs(small, x), outputs(expand(zoo.randomise(model, 1), small, plan), x)) < RELATIVE


def test_what_is_not_there_does_not_differ() -> None:
    one = np.array([1.0, np.nan])
    assert not _differs(np.zeros((0, 2)), np.zeros((0, 2)))
    assert not _differs(one, one)
    assert _differs(one, one + 1e-3)
    assert _differs(1e-3 * one, 1e-3 * one + 1e-10)
    assert _differs(np.array([1, 2]), np.array([1, 3]))
    for dtype, near, far in (("float64", 1e-10, 1e-7), ("float32", 1e-4, 1e-2), ("float16", 1e-2, 0.2)):
        for sign in (1, -1):
            other = one.astype(dtype)
            assert not _differs(other, (one * (1 + sign * near)).astype(dtype))
            assert _differs(other, (one * (1 + sign * far)).astype(dtype))
    assert _differs(np.zeros((1, 2)), np.zeros((2, 2)))


def test_what_is_folded_is_added_to_the_bias_that_goes_with_the_weight() -> None:
    gain = np.arange(6.0).reshape(2, 3)
    for tensor, added, expected in (
        ("dense/kernel", gain[1], [3, 4, 5]),
        ("conv/kernel", gain, [3, 5, 7]),
        ("gru/recurrent_kernel", gain[1], [[0, 0, 0], [3, 4, 5]]),
    ):
        bias = np.zeros(np.shape(expected))
        _add_to_bias(bias, added, tensor)
        np.testing.assert_array_equal(bias, expected)


def test_what_else_an_opened_layer_was_called_with_stays() -> None:
    class Scaled(L.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = zoo.lstm(4)

        def call(self, x: Any, factor: float) -> Any:
            return factor * self.inner(x)

    model = zoo.functional(lambda x: L.Dense(2)(Scaled()(x, factor=3.0)))
    x = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(model, x))
    assert any(plan.removed().values())
    small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    assert error(outputs(masked, x), outputs(small, x)) < RELATIVE


def test_load_refuses_damaged_and_foreign_files(tmp_path: Path) -> None:
    model = zoo.EXACT["lstm"]()
    result = reprune.keras.prune(model, [zoo.inputs_for(model)], ratio=0.5, method="magnitude")
    result.save(tmp_path)
    with pytest.raises(PlanError, match="another model"):
        reprune.keras.load(zoo.EXACT["gru"](), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(PlanError, match="damaged"):
        reprune.keras.load(zoo.EXACT["lstm"](), tmp_path)
    with pytest.raises(PlanError, match="does not exist"):
        reprune.keras.load(model, tmp_path / "nowhere")


def test_a_leak_is_caught() -> None:
    """A reader that the trace did not see: its slot is taken out of what was found."""
    model = zoo.EXACT["both-concat"]()
    x = zoo.inputs_for(model)

    class Blind:
        def __init__(self) -> None:
            self.graph = graph_of(model)
            self.inputs = [x]
            self.states = [None], [None]

        def structure(self, pins: Any = None) -> Structure:
            found = reprune.keras.trace(model, x)
            slots = tuple(s for s in found.slots if not (s.role == "reads" and s.tensor.startswith("dense")))
            return Structure(**{**vars(found), "slots": slots, "consumers": ()})

    from reprune.keras.surgery.verify import rehearse

    with pytest.raises(VerificationError, match=r"bidirectional\S*:forward, bidirectional\S*:backward in a way"):
        rehearse(Blind(), model)  # type: ignore[arg-type]


def test_what_cannot_be_rebuilt_is_pinned() -> None:
    @keras.saving.register_keras_serializable(package="reprune-tests")
    class Fixed(L.Dense):
        """Insists on a width that it was not told by anybody."""

        def build(self, shape: Any) -> None:
            if shape[-1] != 6:
                raise ValueError("expected 6 features")
            super().build(shape)

    model = zoo.functional(lambda x: L.Dense(2)(L.GRU(4)(Fixed(3)(L.LSTM(6, return_sequences=True, name="stiff")(x)))))
    info = reprune.keras.inspect(model, [zoo.inputs_for(model)])
    assert list(info.pinned) == ["stiff"]
    assert "expected 6 features" in str(info.pinned["stiff"])


def test_sizes_in_the_code_pin_the_layers_that_compute_something_else_with_others() -> None:
    """One by one where that is enough, and all where only several together show it."""

    def alone(x: Any) -> Any:
        return x * (2.0 if x.shape[-1] < 6 else 1.0)

    def together(parts: Any) -> Any:
        return K.concatenate(parts, -1) * (2.0 if max(part.shape[-1] for part in parts) < 6 else 1.0)

    def build(x: Any) -> Any:
        return L.Dense(2)(L.GRU(4, name="free")(L.Lambda(alone)(zoo.lstm(6, name="stiff")(x))))

    def build_two(x: Any) -> Any:
        return L.Dense(2)(L.Lambda(together)([zoo.lstm(6, name="one")(x), zoo.lstm(6, name="other")(x)]))

    for made, names in ((build, ["stiff"]), (build_two, ["one", "other"])):
        model = zoo.functional(made)
        pinned = reprune.keras.inspect(model, [zoo.inputs_for(model)]).pinned
        assert list(pinned) == names
        assert all("a size is written into it" in pin.reason for pin in pinned.values())


def test_subclassed_models_that_cannot_be_followed() -> None:
    class Loose(keras.Model):
        def build(self, shape: Any) -> None:
            self.gain = self.add_weight(shape=(2,), name="gain")
            self.rnn = L.LSTM(4)

        def call(self, x: Any) -> Any:
            return L.Dense(2)(self.rnn(x)) * self.gain

    class Concrete(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = L.LSTM(4)

        def call(self, x: Any) -> Any:
            return self.rnn(x) * float(np.asarray(x).mean())

    x = np.zeros((2, T, F), dtype="float32")
    model = Loose()
    model(x)
    with pytest.raises(UnsupportedModelError, match=r"weights of its own \(gain\)"):
        reprune.keras.inspect(model, [x])
    with pytest.raises(UnsupportedModelError, match="symbolic inputs"):
        reprune.keras.inspect(Concrete(), [x])


def test_not_a_keras_3_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Legacy:
        pass

    Legacy.__module__ = "tf_keras.src.engine.functional"
    for verb in (reprune.inspect, reprune.keras.inspect):
        with pytest.raises(UnsupportedModelError, match=r"Legacy is not of Keras 3.*2\.16.*load_model"):
            verb(Legacy(), [np.zeros((1, 2, 3))])
    monkeypatch.setattr(keras, "__version__", "2.15.0")
    with pytest.raises(UnsupportedModelError, match=r"keras 2\.15\.0 is not of Keras 3.*2\.16"):
        importlib.reload(reprune.keras)
    monkeypatch.undo()
    with pytest.raises(UnsupportedModelError, match="built"):
        reprune.keras.inspect(keras.Sequential([L.LSTM(3)]), [np.zeros((1, 2, 3), dtype="float32")])


def test_legacy_h5_checkpoints(tmp_path: Path) -> None:
    model = zoo.sequential(L.LSTM(6), L.Dense(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(str(tmp_path / "model.h5"))
    loaded = keras.models.load_model(str(tmp_path / "model.h5"), compile=False)
    x = zoo.inputs_for(model)
    plan = some_plan(reprune.keras.trace(loaded, x))
    assert error(outputs(reprune.keras.mask(model, plan), x), outputs(reprune.keras.apply(loaded, plan), x)) < RELATIVE


def test_one_calibration_many_plans() -> None:
    model = zoo.EXACT["both-concat"]()
    batches = [zoo.inputs_for(model, 16, seed) for seed in range(2)]
    calibration = reprune.keras.calibrate(model, iter(batches), methods=["iss-gm", "magnitude"], verify=False)
    for ratio, method in ((0.25, "iss-gm"), (0.5, "iss-gm"), (0.5, "magnitude")):
        alone = reprune.keras.plan(model, batches, ratio, method=method, verify=False)
        assert calibration.plan(ratio, method=method) == alone
    with pytest.raises(StatisticsError, match="methods="):
        calibration.plan(0.5, method="reconstruct")
    with pytest.raises(StatisticsError, match="labels"):
        reprune.keras.plan(model, batches, method="fsdp")
    name = next(iter(alone.kept))
    sized = calibration.prune(0.5, method="iss-gm", counts={name: 4})
    assert len(sized.plan.kept[name]) == 4


def test_importance_is_that_of_the_whole_pass() -> None:
    """Half of the units feed an output that only the first batch asks for: they are the ones to go."""
    x, asked = keras.Input((T, F)), keras.Input((2,))
    lstm, head = L.LSTM(8, name="lstm"), L.Dense(2, name="head")
    model = zoo.randomise(keras.Model([x, asked], L.Multiply()([head(lstm(x)), asked])))
    kernel, recurrent, bias = lstm.get_weights()
    lstm.set_weights([kernel, np.zeros_like(recurrent), bias])
    head.set_weights([np.eye(2, dtype="float32").repeat(4, axis=0), np.zeros(2, dtype="float32")])
    rng = np.random.default_rng(0)

    def batch(row: list[float]) -> Any:
        return rng.normal(size=(30, T, F)).astype("float32"), np.tile(np.array(row, dtype="float32"), (30, 1))

    data = [batch([1.0, 0.0]), *[batch([0.0, 10.0]) for _ in range(5)]]
    assert reprune.keras.plan(model, data, 0.5).kept == {"lstm": [4, 5, 6, 7]}
    assert reprune.keras.plan(model, data[:1], 0.5).kept == {"lstm": [0, 1, 2, 3]}


def test_what_is_folded_and_refitted_is_in_the_weights_of_both_models() -> None:
    """`W_K += W_P A` and `bias += W_P b`, worked out weight by weight; a refitted tensor holds what the plan says."""
    with in_double():
        x = keras.Input((T, F))
        states = L.LSTM(5, return_sequences=True, name="rnn")(x)
        seen = L.GRU(3, return_sequences=True, name="gru")(states)
        taps = L.Conv1D(3, 2, padding="same", name="conv")(states)
        head = L.Dense(2, name="head")(L.Add()([seen, taps]))
        model = zoo.randomise(keras.Model(x, [head, L.Dense(4, use_bias=False, name="bare")(states)]))
        structure = reprune.keras.trace(model, zoo.inputs_for(model))
        kept, rng = {"rnn": [0, 2, 3], "gru": [0, 1, 2]}, np.random.default_rng(0)
        stay, gone = kept["rnn"], [1, 4]
        weights = {name: array(weight) for name, weight in graph_of(model).weights().items()}
        folds, wanted = [], dict(weights)
        for tensor, axis, bias in (
            ("rnn/recurrent_kernel", 0, "rnn/bias"),
            ("gru/kernel", 0, "gru/bias"),
            ("conv/kernel", 1, "conv/bias"),
            ("bare/kernel", 0, None),
        ):
            a, b = rng.normal(size=(2, 3)), rng.normal(size=2)
            folds.append(Fold.of(tensor, axis, bias, a, b))
            lost = np.moveaxis(weights[tensor], axis, -1)[..., gone]
            whole = np.moveaxis(weights[tensor], axis, -1).copy()
            whole[..., stay] += lost @ a
            wanted[tensor] = np.moveaxis(whole, -1, axis)
            if bias is not None:
                gain = (lost @ b).reshape(-1, len(weights[bias].T)).sum(0)
                wanted[bias] = weights[bias] + (np.stack([gain, 0 * gain]) if bias == "gru/bias" else gain)
        gates = np.concatenate([5 * gate + np.array(stay) for gate in range(4)])
        refit = wanted["rnn/kernel"][:, gates] + 1
        plan = Plan(structure, kept, folds=tuple(folds), refits=(Refit.of("rnn/kernel", refit),))
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
    wanted["rnn/kernel"] = wanted["rnn/kernel"].copy()
    wanted["rnn/kernel"][:, gates] = refit
    cuts = {"rnn/kernel": (slice(None), gates), "rnn/recurrent_kernel": np.ix_(stay, gates), "rnn/bias": gates}
    cuts |= {"gru/kernel": stay, "conv/kernel": (slice(None), stay), "bare/kernel": stay}
    for name, weight in graph_of(small).weights().items():
        np.testing.assert_allclose(array(weight), wanted[name][cuts.get(name, ...)], rtol=1e-12, err_msg=name)
    for name, weight in graph_of(masked).weights().items():
        if name in cuts and "bias" not in name and name != "rnn/kernel":
            np.moveaxis(wanted[name], 1 if name == "conv/kernel" else 0, 0)[gone] = 0
        np.testing.assert_allclose(array(weight), wanted[name], rtol=1e-12, err_msg=name)


def test_cells_are_named_by_their_layers() -> None:
    x = keras.Input((3, 4))
    shared = L.LSTM(4, return_sequences=True, name="shared")
    y = L.Bidirectional(L.GRU(2, return_sequences=True), name="both")(shared(shared(x)))
    y = L.RNN([L.GRUCell(3), L.LSTMCell(2)], return_sequences=True, name="stack")(L.TimeDistributed(L.Dense(2))(y))
    _, state = L.SimpleRNNCell(3, name="step")(y[:, 0], [K.zeros((2, 3))])
    model = keras.Model(x, L.Dense(2)(state[0]))
    names = ["shared", "both:forward", "both:backward", "stack:l0", "stack:l1", "step"]
    assert [name for _, name in named_cells(graph_of(model))] == names


def test_biases_that_are_matrices_are_no_weights_and_halves_are_widened() -> None:
    x = keras.Input((3, 4))
    y = L.GRU(2, return_sequences=True, name="gru")(x)
    y = L.MultiHeadAttention(2, 3, name="attention")(y, y)
    model = zoo.randomise(keras.Model(x, L.Dense(2, dtype="float16", name="out")(y)))
    found, weights = weight_arrays(graph_of(model)), graph_of(model).weights()
    zeros = {"gru/bias", *(f"attention/{part}/bias" for part in ("query", "key", "value"))}
    assert found.keys() == weights.keys()
    for name, values in found.items():
        assert values.dtype == "float32"
        np.testing.assert_array_equal(values, array(weights[name]) * (name not in zeros), err_msg=name)


def test_a_class_that_takes_what_keras_takes_is_rebuilt_from_its_graph() -> None:
    class Open(keras.Model):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.rnn, self.head = L.LSTM(4), L.Dense(2)

        def call(self, x: Any) -> Any:
            return self.head(self.rnn(x))

    model, x = Open(), np.ones((2, T, F), dtype="float32")
    model(x)
    plan = some_plan(reprune.keras.trace(model, x))
    small = reprune.keras.apply(model, plan)
    assert [layer.name for layer in small.layers[1:]] == [model.rnn.name, model.head.name]
    assert error(outputs(reprune.keras.mask(model, plan), x), outputs(small, x)) < RELATIVE


@pytest.mark.parametrize("mode", [None, "concat", "sum"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_ragged_layers_announce_the_shapes_that_they_return(mode: str | None, states: bool, sequences: bool) -> None:
    options = {"return_state": states, "return_sequences": sequences}
    sizes = (5, 5) if mode == "sum" else (5, 3)
    forward, backward = L.LSTM(sizes[0], **options), L.LSTM(sizes[1], go_backwards=True, **options)
    layer = reprune.keras.RaggedBidirectional(forward, backward_layer=backward, merge_mode=mode)
    found, announced = layer(np.zeros((2, T, F), dtype="float32")), layer.compute_output_shape((2, T, F))
    assert announced == (
        tuple(tuple(part.shape) for part in found) if isinstance(found, (list, tuple)) else found.shape
    )


def test_a_pruned_model_that_computes_something_else_is_told() -> None:
    """But for one that is random, or is not exact anyway."""

    told = []
    plain, noisy = L.Activation("linear"), L.Lambda(lambda x: x + keras.random.normal((1,)))
    for layers in ([plain, L.GRU(3)], [L.LayerNormalization(), L.GRU(3)], [plain, L.GRU(3), noisy]):
        model = zoo.sequential(zoo.lstm(6, name="rnn"), *layers[:2], L.Dense(2, name="head"), *layers[2:])
        x = zoo.inputs_for(model)
        found = record(model, x)
        structure = found.structure()
        kept = {name: [0, 2] if name == "rnn" else list(range(layer.units)) for name, layer in structure.layers.items()}
        plan = Plan(structure, kept)
        small = reprune.keras.apply(model, plan)
        verify(plan, found, model, small)
        small.get_layer("head").bias.assign_add([1.0, 1.0])
        try:
            verify(plan, found, model, small)
        except VerificationError as error:
            told.append(str(error))
    assert len(told) == 1
    assert "the layers are rnn. It is not" in told[0]
