"""`scope="all"` in both frameworks, on the same weights: the same layers, statistics, units and outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import torch
from torch import nn

import reprune
import reprune.keras
import reprune.torch
from reprune.core.criteria import CRITERIA
from tests.helpers.keras_models import error, in_double, outputs
from tests.helpers.keras_zoo import randomise
from tests.keras.test_against_torch import kernels

L = keras.layers
CLASSES = 3


class Crnn(nn.Module):
    """Convolutions over frames and bands, a recurrent layer over frames, a head with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 5, (3, 2))
        self.lstm = nn.LSTM(15, 4, batch_first=True, bidirectional=True)
        self.hidden, self.out = nn.Linear(8, 7), nn.Linear(7, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x.movedim(-1, 1)).tanh())
        x = self.second(nn.functional.max_pool2d(x, (1, 2))).tanh()
        x = self.lstm(x.permute(0, 2, 3, 1).flatten(2))[0]
        return self.out(self.hidden(x).tanh())


def crnn() -> Any:
    x = keras.Input((8, 8, 1))
    y = L.BatchNormalization(epsilon=1e-5, name="norm")(
        L.Conv2D(6, 3, padding="same", activation="tanh", name="conv")(x)
    )
    y = L.Conv2D(5, (3, 2), activation="tanh", name="second")(L.MaxPooling2D((1, 2))(y))
    y = L.Bidirectional(L.LSTM(4, return_sequences=True), name="lstm")(L.Reshape((6, 15))(y))
    return keras.Model(x, L.Dense(CLASSES, name="out")(L.Dense(7, activation="tanh", name="hidden")(y)))


class Residual(nn.Module):
    """Convolutions over time with a residual sum, one for each channel, and a transposed one; no recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
        self.deep = nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.wide, self.out = nn.ConvTranspose1d(6, 5, 2, stride=2), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x.mT).tanh()
        x = (x + self.second(x)).tanh()
        return self.out(self.wide(self.deep(x)).tanh().mean(-1))


def residual() -> Any:
    x = keras.Input((8, 4))
    y = L.Conv1D(6, 3, padding="same", activation="tanh", name="first")(x)
    y = L.Activation("tanh")(L.Add()([y, L.Conv1D(6, 3, padding="same", name="second")(y)]))
    y = L.DepthwiseConv1D(3, padding="same", name="deep")(y)
    y = L.Conv1DTranspose(5, 2, strides=2, activation="tanh", name="wide")(y)
    return keras.Model(x, L.Dense(CLASSES, name="out")(L.GlobalAveragePooling1D()(y)))


class Text(nn.Module):
    """An embedding, a recurrent layer, and two hidden layers, the second added to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.gru = nn.Embedding(9, 6), nn.GRU(6, 5, batch_first=True)
        self.one, self.two, self.out = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.one(self.gru(self.table(tokens))[0][:, -1]).tanh()
        return self.out(x + self.two(x))


def text() -> Any:
    x = keras.Input((8,), dtype="int64")
    y = L.GRU(5, name="gru")(L.Embedding(9, 6, name="table")(x))
    y = L.Dense(7, activation="tanh", name="one")(y)
    y = L.Add()([y, L.Dense(7, name="two")(y)])
    return keras.Model(x, L.Dense(CLASSES, name="out")(y))


class Attended(nn.Module):
    """A recurrent layer whose states attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.attention = nn.GRU(3, 16, batch_first=True), nn.MultiheadAttention(16, 4, batch_first=True)
        self.out = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.gru(x)[0]
        return self.out(self.attention(x, x, x, need_weights=False)[0])


def attended() -> Any:
    x = keras.Input((6, 3))
    y = L.GRU(16, return_sequences=True, name="gru")(x)
    return keras.Model(x, L.Dense(CLASSES, name="out")(L.MultiHeadAttention(4, 4, name="attention")(y, y)))


def as_keras(module: nn.Module) -> list[Any]:
    """Weights of a module as Keras holds them."""
    if isinstance(module, nn.RNNBase):
        return [value for end in ("", "_reverse")[: 1 + module.bidirectional] for value in kernels(module, f"l0{end}")]
    values = {name: value.detach().numpy() for name, value in module.state_dict().items()}
    if isinstance(module, nn.MultiheadAttention):
        # Query, key and value, each by head.
        by_head = (-1, module.num_heads, module.head_dim)
        pairs = zip(np.split(values["in_proj_weight"], 3), np.split(values["in_proj_bias"], 3), strict=True)
        parts = [part for weight, bias in pairs for part in (weight.T.reshape(by_head), bias.reshape(by_head[1:]))]
        return [*parts, values["out_proj.weight"].T.reshape(*by_head[1:], -1), values["out_proj.bias"]]
    if isinstance(module, nn.BatchNorm2d):
        return [values[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if isinstance(module, nn.Embedding):
        return [values["weight"]]
    if isinstance(module, nn.Linear):
        return [values["weight"].T, values["bias"]]
    # Taps, then inputs and outputs; of a depthwise one its channels and one output each.
    taps = np.moveaxis(values["weight"], (0, 1), (-2, -1))
    deep = isinstance(module, nn.Conv1d) and module.groups > 1
    return [taps if deep else np.swapaxes(taps, -1, -2), values["bias"]]


class Pair(NamedTuple):
    """One model twice, with batches as each takes them, and what calibration finds in each."""

    torch: nn.Module
    keras: Any
    batches: list[Any]
    ours: Any
    theirs: Any


def labels(batch: Any) -> Any:
    """Some classes of a batch's sequences."""
    return np.arange(24) % CLASSES


def torch_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def keras_loss(model: Any, batch: Any) -> Any:
    return keras.ops.mean(keras.ops.square(model(batch)))


MODELS: dict[str, tuple[type[nn.Module], Callable[[], Any], tuple[int, ...]]] = {
    "crnn": (Crnn, crnn, (8, 8, 1)),
    "residual": (Residual, residual, (8, 4)),
    "text": (Text, text, (8,)),
    "attended": (Attended, attended, (6, 3)),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest) -> Pair:
    kind, twin, shape = MODELS[request.param]
    with in_double():
        model, other = kind().double().eval(), randomise(twin())
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.4)
    for name, module in model.named_children():
        other.get_layer(name).set_weights(as_keras(module))
    rng = np.random.default_rng(0)
    tokens = request.param == "text"
    batches = [rng.integers(0, 9, (24, *shape)) if tokens else rng.normal(size=(24, *shape)) for _ in range(3)]
    tensors = [torch.from_numpy(batch) for batch in batches]
    # PyTorch's attention merges its heads with sequences and steps in one axis, in which classes cannot be told.
    told = None if request.param == "attended" else labels
    ours = reprune.torch.calibrate(model, tensors, scope="all", labels=told, loss=torch_loss)
    theirs = reprune.keras.calibrate(other, batches, scope="all", labels=told, loss=keras_loss)
    return Pair(model, other, batches, ours, theirs)


OUTPUT = ("attention.out_proj:features", "attention:features")


def renamed(name: str) -> str:
    """A layer of PyTorch's as Keras calls it."""
    for ours, theirs in (("lstm:l0_reverse", "lstm:backward"), ("lstm:l0", "lstm:forward"), ("gru:l0", "gru"), OUTPUT):
        name = theirs if name == ours else name
    return name


def test_the_same_layers(pair: Pair) -> None:
    ours, theirs = pair.ours.structure, pair.theirs.structure
    assert {renamed(name): (layer.cell, layer.units, layer.pin is None) for name, layer in ours.layers.items()} == {
        name: (layer.cell, layer.units, layer.pin is None) for name, layer in theirs.layers.items()
    }
    assert [tuple(map(renamed, group)) for group in ours.index_coupled] == list(theirs.index_coupled)


def test_the_same_statistics_and_scores(pair: Pair) -> None:
    ours, theirs = pair.ours._evidence.layers, pair.theirs._evidence.layers
    for name in pair.ours.structure.prunable:
        one, other = ours[name], theirs[renamed(name)]
        np.testing.assert_allclose(other.mean, one.mean, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(other.covariance, one.covariance, rtol=1e-9, atol=1e-10)
        known = pair.ours.gathered
        for criterion in (each for each in CRITERIA.values() if "labels" in known or not each.needs_labels):
            if name.endswith(":heads") and criterion.needs_readings:
                continue  # Keras predicts each value of a head from its like in other heads, PyTorch from all.
            first, second = (criterion().rank([evidence], np.random.default_rng(0)) for evidence in (one, other))
            np.testing.assert_allclose(second.scores, first.scores, rtol=1e-7, atol=1e-10, err_msg=criterion.__name__)


# Each method on one model, that of least to compile for those that run many small ones.
ASKED = {"iss-gm": "crnn", "iss-gm+reconstruct": "crnn", "magnitude": "residual", "reconstruct": "residual"}
ASKED |= {"iss-gm+mean": "text", "fsdp": "text", "taylor": "text", "pfa-en": "attended"}


@pytest.mark.parametrize(("pair", "method"), [(model, method) for method, model in ASKED.items()], indirect=["pair"])
def test_the_same_plans_and_what_they_leave(pair: Pair, method: str) -> None:
    plan, twin = (calibration.plan(0.5, of="macs", method=method) for calibration in (pair.ours, pair.theirs))
    assert {renamed(name): kept for name, kept in plan.kept.items()} == twin.kept
    small, other = reprune.apply(pair.torch, plan), reprune.apply(pair.keras, twin)
    batch = pair.batches[0]
    found = outputs(other, batch)
    assert error(found, outputs(reprune.mask(pair.keras, twin), batch)) < 1e-10
    with torch.no_grad():
        assert error(found, [small(torch.from_numpy(batch)).numpy()]) < 1e-6
