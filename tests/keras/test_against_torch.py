"""The same weights in both frameworks: the same responses, scores, plans and outputs."""

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
from reprune.keras.tracing.graph import array
from reprune.youtube8m.keras_model import video_classifier
from reprune.youtube8m.model import VideoClassifier
from tests.helpers.keras_models import outputs

L = keras.layers
T, F, CLASSES = 6, 4, 3


class Sequence(nn.Module):
    """Recurrent layers and a linear map of the last step."""

    def __init__(self, *layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return self.head(x[:, -1])


class Pair(NamedTuple):
    """One model twice, with batches as each takes them."""

    torch: nn.Module
    keras: Any
    batches: list[Any]
    keras_batches: list[Any]


def kernels(module: nn.RNNBase, suffix: str) -> list[Any]:
    """Kernel, recurrent kernel and bias of one direction of one layer, as Keras holds them."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ours, state, bias, state_bias = (getattr(module, f"{name}_{suffix}").detach().numpy() for name in names)
    if not isinstance(module, nn.GRU):
        return [ours.T, state.T, bias + state_bias]
    # PyTorch's gates are r, z, n; Keras's z, r, h.
    r, z, n = np.split(np.arange(len(ours)), 3)
    order = np.concatenate([z, r, n])
    return [ours[order].T, state[order].T, np.stack([bias[order], state_bias[order]])]


def convert(model: nn.Module, twin: Any) -> None:
    """Give a Keras model the weights of a PyTorch one; both list their layers in the same order."""
    values: list[Any] = []
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            directions = ("", "_reverse") if module.bidirectional else ("",)
            for layer in range(module.num_layers):
                for direction in directions:
                    values += kernels(module, f"l{layer}{direction}")
        elif isinstance(module, nn.Linear):
            values += [module.weight.detach().numpy().T, module.bias.detach().numpy()]
    twin.set_weights(values)


def rnn(kind: type[nn.RNNBase], inputs: int, units: int, **options: Any) -> nn.RNNBase:
    return kind(inputs, units, batch_first=True, **options)


def sequences(*layers: Any, width: int, twins: list[Any]) -> Callable[[], Pair]:
    def build() -> Pair:
        torch.manual_seed(0)
        model = Sequence(*(layer() for layer in layers), width=width).double()
        rest = [layer() for layer in twins]
        # Keras hands on all steps but from its last recurrent layer, whose last step PyTorch's model reads.
        twin = keras.Sequential([keras.Input((T, F), dtype="float64"), *rest, L.Dense(CLASSES, dtype="float64")])
        rng = np.random.default_rng(0)
        batches = [rng.normal(size=(30, T, F)) for _ in range(4)]
        return Pair(model, twin, [torch.tensor(batch) for batch in batches], batches)

    return build


def video() -> Pair:
    torch.manual_seed(0)
    model, twin = VideoClassifier(F, CLASSES, 8), video_classifier(F, CLASSES, 8)
    rng = np.random.default_rng(0)
    batches = [
        (rng.integers(0, 256, size=(30, T, F), dtype=np.uint8), rng.integers(1, T + 1, size=30).astype("int32"))
        for _ in range(4)
    ]
    pairs = [tuple(map(torch.tensor, batch)) for batch in batches]
    return Pair(model, twin, pairs, [dict(zip(("frames", "lengths"), batch, strict=True)) for batch in batches])


def layer(kind: Any, units: int, sequence: bool = True) -> Callable[[], Any]:
    return lambda: kind(units, return_sequences=sequence, dtype="float64")


def both(kind: Any, units: int) -> Callable[[], Any]:
    return lambda: L.Bidirectional(kind(units, return_sequences=True, dtype="float64"), dtype="float64")


PAIRS: dict[str, Callable[[], Pair]] = {
    "lstm": sequences(lambda: rnn(nn.LSTM, F, 7), width=7, twins=[layer(L.LSTM, 7, False)]),
    "gru": sequences(lambda: rnn(nn.GRU, F, 7), width=7, twins=[layer(L.GRU, 7, False)]),
    "rnn": sequences(lambda: rnn(nn.RNN, F, 7), width=7, twins=[layer(L.SimpleRNN, 7, False)]),
    "stacked": sequences(
        lambda: rnn(nn.LSTM, F, 6, num_layers=2), width=6, twins=[layer(L.LSTM, 6), layer(L.LSTM, 6, False)]
    ),
    "bidirectional": sequences(
        lambda: rnn(nn.LSTM, F, 5, bidirectional=True),
        lambda: rnn(nn.GRU, 10, 6),
        width=6,
        twins=[both(L.LSTM, 5), layer(L.GRU, 6, False)],
    ),
    "bidirectional-stacked": sequences(
        lambda: rnn(nn.GRU, F, 4, bidirectional=True, num_layers=2),
        lambda: rnn(nn.LSTM, 8, 5),
        width=5,
        twins=[both(L.GRU, 4), both(L.GRU, 4), layer(L.LSTM, 5, False)],
    ),
    "video": video,
}
# In single precision, as both frameworks dequantise.
LIMITS = {"video": 1e-4}
# Packed sequences come sorted by length: the halves on which the ridge is fitted and judged hold other rows.
FOLDED = {"video": 1e-2}


METHODS = ("iss-gm", "magnitude", "iss-gm+reconstruct", "iss-gm+mean", "reconstruct", "fsdp", "taylor")
ASKED = [*((method, 0.5) for method in METHODS), ("iss-gm", 0.25), ("reconstruct", 0.75)]


def labels(batch: Any) -> Any:
    """Some classes of a batch's thirty sequences."""
    return np.arange(30) % CLASSES


def torch_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = model(*batch) if isinstance(batch, tuple) else model(batch)
    return nn.functional.cross_entropy(logits, torch.from_numpy(labels(batch)))


def keras_loss(model: Any, batch: Any) -> Any:
    losses = keras.losses.sparse_categorical_crossentropy(labels(batch), model(batch), from_logits=True)
    return keras.ops.mean(losses)


@pytest.fixture(scope="module", params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[str, Pair, Any, Any]:
    """Name, models, and what calibration finds in each."""
    made = PAIRS[request.param]()
    convert(made.torch, made.keras)
    ours = reprune.torch.calibrate(made.torch.eval(), made.batches, labels=labels, loss=torch_loss)
    theirs = reprune.keras.calibrate(made.keras, made.keras_batches, labels=labels, loss=keras_loss)
    return request.param, made, ours, theirs


def numbers(model: nn.Module, batch: Any) -> Any:
    with torch.no_grad():
        return model(*batch) if isinstance(batch, tuple) else model(batch)


def close(first: Any, second: Any, name: str, limits: dict[str, float] = LIMITS) -> None:
    np.testing.assert_allclose(first, second, rtol=limits.get(name, 1e-10), atol=limits.get(name, 1e-10))


def test_outputs(pair: Any) -> None:
    name, made, *_ = pair
    close(outputs(made.keras, made.keras_batches[0])[0], numbers(made.torch, made.batches[0]).numpy(), name)


def test_statistics_and_scores(pair: Any) -> None:
    name, _, ours, theirs = pair
    assert [layer.units for layer in ours.structure.layers.values()] == [
        layer.units for layer in theirs.structure.layers.values()
    ]
    for one, other in zip(ours._evidence.layers.values(), theirs._evidence.layers.values(), strict=True):
        close(other.mean, one.mean, name)
        close(other.covariance, one.covariance, name)
        for criterion in CRITERIA.values():
            first, second = (criterion().rank([evidence], np.random.default_rng(0)) for evidence in (one, other))
            close(second.scores, first.scores, name)


@pytest.mark.parametrize(("method", "ratio"), ASKED)
def test_plans_and_what_they_leave(pair: Any, method: str, ratio: float) -> None:
    name, made, ours, theirs = pair
    plan, twin = ours.plan(ratio, method=method), theirs.plan(ratio, method=method)
    assert list(plan.kept.values()) == list(twin.kept.values())
    small, small_twin = reprune.apply(made.torch, plan), reprune.apply(made.keras, twin)
    limits = FOLDED if plan.folds else LIMITS
    close(outputs(small_twin, made.keras_batches[0])[0], numbers(small, made.batches[0]).numpy(), name, limits)


def test_weights_survive_the_way_back(pair: Any) -> None:
    """The conversion itself: a wrong order of gates would show in the outputs, a lost weight here."""
    _, made, *_ = pair
    total = sum(array(weight).sum() for weight in made.keras.weights)
    assert total == pytest.approx(sum(p.detach().sum().item() for p in made.torch.parameters()))


def test_they_learn_alike(pair: Any) -> None:
    """Of the head: PyTorch's recurrent layers have two biases where Keras has one, which then moves half as far."""
    name, made, ours, theirs = pair
    if name not in ("gru", "bidirectional"):
        pytest.skip("two are enough: compiling is most of the time")
    small, twin = (calibration.prune(0.5, method="iss-gm").model for calibration in (ours, theirs))
    for parameter, weight in ((p, n) for n, p in small.named_parameters()):
        parameter.requires_grad_(weight.startswith("head"))
    for part in twin.layers:
        part.trainable = part.name.startswith("dense")
    said: tuple[list[float], list[float]] = ([], [])
    reprune.distill(small, made.torch, made.batches, 12, progress=lambda _, far: said[0].append(far))
    reprune.distill(twin, made.keras, made.keras_batches, 12, progress=lambda _, far: said[1].append(far))
    # Keras adds epsilon before the bias correction, PyTorch after it: gradients near zero make other steps.
    np.testing.assert_allclose(said[1], said[0], rtol=1e-4)
    assert said[0][-1] < said[0][3]
    close(outputs(twin, made.keras_batches[0])[0], numbers(small, made.batches[0]).numpy(), name, {name: 1e-4})
