"""`Pruner` in a loop of one's own and inside `fit`, and beside PyTorch's on the same weights."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
import reprune.torch
from reprune.core.errors import PlanWarning, RecipeError
from reprune.core.schedule import Fractional
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.training.shrink import check_optimizer
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import RELATIVE, error, outputs

torch = pytest.importorskip("torch")
L, K = zoo.L, zoo.K
T, F, UNITS = 5, 4, 6
needs_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compiled steps of TensorFlow")
RNG = np.random.default_rng(0)
DATA = [(RNG.normal(size=(8, T, F)), RNG.normal(size=(8, 2))) for _ in range(6)]


def model(optimizer: Any = None, dtype: str = "float64") -> Any:
    keras.utils.set_random_seed(0)
    layers = [
        L.GRU(UNITS, return_sequences=True, dtype=dtype, name="low"),
        L.GRU(UNITS, dtype=dtype, name="high"),
        L.Dense(2, dtype=dtype, name="head"),
    ]
    made = keras.Sequential([keras.Input((T, F), dtype=dtype), *layers])
    made.compile(optimizer or keras.optimizers.SGD(0.1), "mse")
    return made


class Twin(torch.nn.Module):
    """The same layers in PyTorch."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.low = torch.nn.GRU(F, UNITS, batch_first=True).double()
        self.high = torch.nn.GRU(UNITS, UNITS, batch_first=True).double()
        self.head = torch.nn.Linear(UNITS, 2).double()
        # Keras's gates are z, r, h; PyTorch's r, z, n.
        order = np.concatenate([np.arange(UNITS, 2 * UNITS), np.arange(UNITS), np.arange(2 * UNITS, 3 * UNITS)])
        low, high, (kernel, bias) = (layer.get_weights() for layer in given.layers)
        with torch.no_grad():
            for module, (ours, state, biases) in ((self.low, low), (self.high, high)):
                module.weight_ih_l0.copy_(torch.tensor(ours.T[order]))
                module.weight_hh_l0.copy_(torch.tensor(state.T[order]))
                module.bias_ih_l0.copy_(torch.tensor(biases[0][order]))
                module.bias_hh_l0.copy_(torch.tensor(biases[1][order]))
            self.head.weight.copy_(torch.tensor(kernel.T))
            self.head.bias.copy_(torch.tensor(bias))

    def forward(self, x: Any) -> Any:
        return self.head(self.high(self.low(x)[0])[0][:, -1])


class Noise:
    """Draws what PyTorch's generator draws."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def random(self, size: int) -> Any:
        return torch.rand(size, generator=self.generator).double().numpy()


@needs_tensorflow
@pytest.mark.parametrize("method", ["iss-group-lasso", "neuron-selection"])
def test_steps_are_those_of_pytorch(method: str) -> None:
    ours = model()
    twin = Twin(ours)
    torch.manual_seed(0)
    theirs = reprune.torch.Pruner(twin, torch.tensor(DATA[0][0]), ratio=0.5, method=method, schedule="after", seed=3)
    pruner = reprune.keras.Pruner(ours, DATA, ratio=0.5, method=method, schedule="after", seed=3)
    if method == "neuron-selection":
        pruner._technique._rng = Noise(3)
        pruner._technique._draw()
    else:
        pruner._technique.pull.strength = theirs._work.technique.pull.strength = 0.05
        pruner._technique.stepped(0.0)
        theirs._work.technique.stepped(0, 0.0)
        pruner._technique.stepped(1.0)
        theirs._work.technique.stepped(0, 1.0)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for x, y in DATA:
        loss = (twin(torch.tensor(x)) - torch.tensor(y)).square().mean() + theirs.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.step()
        ours.train_on_batch(x, y)
        pruner.step()
    here, there = pruner._technique, theirs._work.technique
    strengths = [getattr(technique, "pull", technique).strength for technique in (here, there)]
    assert strengths[0] == pytest.approx(strengths[1], rel=1e-6)
    if method == "neuron-selection":
        np.testing.assert_allclose(here.gates.log_alpha, there.log_alpha.detach().numpy(), atol=2e-4)
    x = np.random.default_rng(9).normal(size=(3, T, F))
    limit = 1e-3 if method == "neuron-selection" else 1e-6
    assert (
        error(
            [twin.eval()(torch.tensor(x)).detach().numpy() if method != "neuron-selection" else _settled(twin, x)],
            [array(ours(x))],
        )
        < limit
    )
    small, other = pruner.finish(), theirs.finish()
    assert [len(units) for units in pruner.plan.kept.values()] == [len(units) for units in theirs.plan.kept.values()]
    assert list(pruner.plan.kept.values()) == list(theirs.plan.kept.values())
    assert error([other.eval()(torch.tensor(x)).detach().numpy()], outputs(small, x)) < limit
    assert not hasattr(vars(ours).get("call", None), "__wrapped__")


def _settled(twin: Any, x: Any) -> Any:
    twin.eval()
    found = twin(torch.tensor(x)).detach().numpy()
    twin.train()
    return found


def test_fractional_step_fades_units() -> None:
    trained = model()
    pruner = reprune.keras.Pruner(trained, DATA, ratio=0.5, method="magnitude", schedule="fractional:2", total_steps=4)
    trained.train_on_batch(*DATA[0])
    pruner.step()
    trained.train_on_batch(*DATA[1])
    before = array(trained.layers[1].cell.kernel)
    pruner.step()
    gone = pruner.plan.removed()["high"]
    after = array(trained.layers[1].cell.kernel)
    np.testing.assert_allclose(after[:, gone], before[:, gone] * Fractional(2).factor(0.5), rtol=1e-12)
    assert sum(pruner.plan.counts().values()) == round(12 * (1 - 0.5 * Fractional(2).share(0.5)))


@needs_tensorflow
@pytest.mark.parametrize("kind", [keras.optimizers.Adam, pytest.param(keras.optimizers.SGD, marks=pytest.mark.slow)])
def test_gradual_shrinks_model_and_optimizer_in_place(kind: Any) -> None:
    options = {"momentum": 0.9} if kind is keras.optimizers.SGD else {}
    trained = model(kind(0.05, **options))
    layers, weights = list(trained.layers), list(trained.weights)
    pruner = reprune.keras.Pruner(trained, DATA, ratio=0.5, schedule="gradual:2", total_steps=6, calibration=2)
    for x, y in DATA[:1]:
        trained.train_on_batch(x, y)
        pruner.step()
    trained.train_on_batch(*DATA[1])
    whole = [array(weight) for weight in weights]
    slots = [v for v in trained.optimizer.variables if "low" in v.path and "recurrent" in v.path]
    held = [array(v) for v in slots]
    assert held
    pruner.step()
    kept = pruner.plan.kept["low"]
    assert len(kept) < UNITS
    assert all(now is before for now, before in zip(trained.layers, layers, strict=True))
    assert all(now is before for now, before in zip(trained.weights, weights, strict=True))
    gates = np.concatenate([np.array(kept) + gate * UNITS for gate in range(3)])
    np.testing.assert_array_equal(array(weights[1]), whole[1][np.ix_(kept, gates)])
    for variable, value in zip(slots, held, strict=True):
        np.testing.assert_array_equal(array(variable), value[np.ix_(kept, gates)])
    for x, y in DATA[2:]:
        trained.train_on_batch(x, y)
        pruner.step()
    small = pruner.finish()
    assert sum(pruner.plan.counts().values()) == 6
    x = DATA[0][0]
    assert error(outputs(trained, x), outputs(small, x)) < 1e-12
    assert small.layers[0].units == trained.layers[0].units == pruner.plan.counts()["low"]
    small.fit(x, DATA[0][1], verbose=0)


@needs_tensorflow
@pytest.mark.parametrize("schedule", ["gradual:3", "fractional:3"])
def test_in_fit(schedule: str) -> None:
    trained = keras.Sequential(
        [keras.Input((T, F)), L.Bidirectional(L.LSTM(UNITS, return_sequences=True)), L.LSTM(UNITS), L.Dense(2)]
    )
    trained.compile(keras.optimizers.Adam(0.01), "mse")
    x, y = (np.concatenate(part).astype("float32") for part in zip(*DATA, strict=True))
    pruning = reprune.keras.PruningCallback(
        [(x[i : i + 8], y[i : i + 8]) for i in range(0, 48, 8)], 0.5, schedule=schedule, calibration=2
    )
    history = trained.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[pruning])
    assert pruning.result is not None
    assert sum(pruning.result.plan.counts().values()) == 9
    assert history.history["pruned"][-1] == pytest.approx(0.5, abs=0.02)
    if schedule.startswith("gradual"):
        assert error(outputs(trained, x), outputs(pruning.result.model, x)) < RELATIVE
    else:
        masked = reprune.keras.mask(trained, pruning.result.plan)
        assert error(outputs(masked, x), outputs(pruning.result.model, x)) < RELATIVE


@needs_tensorflow
def test_columns_of_an_embedding() -> None:
    words = np.random.default_rng(0).integers(0, 9, size=(16, T))
    answers = np.random.default_rng(1).normal(size=(16, 2)).astype("float32")
    layers = [L.Embedding(9, 8, name="words"), L.LSTM(6), L.Dense(2)]
    trained = keras.Sequential([keras.Input((T,), dtype="int32"), *layers])
    trained.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(RecipeError, match="inputs=True"):
        reprune.keras.Pruner(trained, [words], inputs=True)
    pruner = reprune.keras.Pruner(trained, [words], ratio=0.5, method="neuron-selection", schedule="after", inputs=True)
    assert pruner.structure.layers["words:columns"].units == 8
    for _ in range(2):
        trained.train_on_batch(words, answers)
        pruner.step()
    small = pruner.finish()
    counts = pruner.plan.counts()
    assert sum(counts.values()) == 7
    assert small.layers[0].embeddings.shape == (9, counts["words:columns"])
    assert error(outputs(trained, words), outputs(small, words)) < 1e-4


@needs_tensorflow
@pytest.mark.parametrize(
    "method",
    ["iss-group-lasso", *(pytest.param(name, marks=pytest.mark.slow) for name in ("iss-gm", "neuron-selection"))],
)
def test_every_width_shrinks_in_place(method: str) -> None:
    x, y = (np.random.default_rng(0).normal(size=size).astype("float32") for size in ((16, T, 3), (16, 2)))
    convolved = [L.Conv1D(6, 2, activation="relu", name="conv"), L.BatchNormalization(), L.LSTM(6, name="lstm")]
    trained = keras.Sequential(
        [keras.Input((T, 3)), *convolved, L.Dense(4, activation="tanh", name="hidden"), L.Dense(2)]
    )
    trained.compile(keras.optimizers.Adam(0.01), "mse")
    options = {"schedule": "gradual:1", "total_steps": 3, "calibration": 1}
    pruner = reprune.keras.Pruner(trained, [x], ratio=0.5, method=method, scope="all", **options)
    for _ in range(3):
        trained.train_on_batch(x, y)
        pruner.step()
    small = pruner.finish()
    counts = pruner.plan.counts()
    widths = [counts[name] for name in ("conv:channels", "lstm", "hidden:features")]
    assert sum(widths) == 8
    for part in (trained, small):
        kernels = [part.layers[place].kernel.shape[-1] for place in (0, 3)]
        assert [kernels[0], part.layers[2].units, kernels[1]] == widths
    assert error(outputs(trained, x), outputs(small, x)) < RELATIVE


@needs_tensorflow
@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("iss-gm", "gradual:2"),
        ("neuron-selection", "soft:2"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (
                ("iss-gm", "soft:2"),
                ("iss-group-lasso", "soft:2"),
                ("iss-group-lasso", "gradual:2"),
                ("neuron-selection", "gradual:2"),
            )
        ),
    ],
)
def test_interrupted_training_goes_on_as_if_it_had_not_been(method: str, schedule: str) -> None:
    def start() -> tuple[Any, Any]:
        made = model(keras.optimizers.SGD(0.1))
        made.optimizer.build(made.trainable_variables)
        return made, reprune.keras.Pruner(
            made, DATA, ratio=0.5, method=method, schedule=schedule, total_steps=6, calibration=2
        )

    def train(made: Any, pruner: Any, first: int, last: int) -> None:
        for x, y in DATA[first:last]:
            made.train_on_batch(x, y)
            pruner.step()

    undisturbed, first = start()
    train(undisturbed, first, 0, 6)
    stopped, one = start()
    train(stopped, one, 0, 3)
    state = json.loads(json.dumps(one.state_dict()))
    values = [array(v) for v in [*graph_of(stopped).weights().values(), *stopped.optimizer.variables]]
    again, other = start()
    other.load_state_dict(state)
    for variable, value in zip([*graph_of(again).weights().values(), *again.optimizer.variables], values, strict=True):
        variable.assign(value)
    train(again, other, 3, 6)
    assert first.plan == other.plan
    for one_weight, other_weight in zip(undisturbed.weights, again.weights, strict=True):
        np.testing.assert_array_equal(array(one_weight), array(other_weight))


def test_refuses_what_does_not_go_together() -> None:
    trained = model()
    with pytest.raises(RecipeError, match="needs gradients of a loss"):
        reprune.keras.Pruner(trained, DATA, method="taylor")
    with pytest.raises(RecipeError, match="looks at classes"):
        reprune.keras.Pruner(trained, DATA, method="fsdp")
    pruner = reprune.keras.Pruner(trained, DATA, schedule="fractional:2")
    with pytest.raises(RecipeError, match="total_steps"):
        pruner.step()
    with pytest.raises(RecipeError, match="has a Pruner already"):
        reprune.keras.Pruner(trained, DATA)
    pruner.finish()
    with pytest.raises(RecipeError, match="finished"):
        pruner.step()
    loose = keras.Sequential([keras.Input((T, F)), L.LSTM(4), L.Dense(2)])
    with pytest.raises(RecipeError, match="optimizer="):
        reprune.keras.Pruner(loose, DATA, method="iss-group-lasso")
    by_class = reprune.keras.Pruner(loose, DATA, method="fsdp", labels=lambda batch: batch[1][:, 0] > 0)
    assert sum(len(units) for units in by_class.finish() and by_class.plan.kept.values()) == 2


def test_the_plan_knows_the_weights_that_training_ended_with() -> None:
    net, (x, y) = model(), DATA[0]
    start = [weight.copy() for weight in net.get_weights()]
    pruner = reprune.keras.Pruner(net, [x], ratio=0.5, schedule="after")
    net.train_on_batch(x, y)
    pruner.step()
    small = pruner.finish()
    assert error(outputs(small, x), outputs(reprune.apply(net, pruner.plan), x)) < RELATIVE
    net.set_weights(start)
    with pytest.warns(PlanWarning, match="other weights"):
        reprune.apply(net, pruner.plan)


def test_gradual_is_refused_on_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model()
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RecipeError, match="set KERAS_BACKEND to tensorflow"):
        check_optimizer(made, None, made.optimizer)
