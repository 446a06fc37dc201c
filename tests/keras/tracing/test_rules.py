"""What operations do with units: each is run without some of them, and compared with what the trace says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest

from reprune.keras.tracing.graph import ModelGraph, array, run
from reprune.keras.tracing.rules import rule_of
from reprune.keras.tracing.tracer import Traced, Tracer
from tests.helpers.keras_labels import traced
from tests.helpers.keras_models import in_double

L, K = keras.layers, keras.ops
Build = Callable[..., Any]

FUNCTIONS = (
    "relu relu6 sigmoid softplus softsign soft_shrink silu squareplus log_sigmoid leaky_relu hard_sigmoid hard_silu "
    "elu selu gelu celu tanh_shrink hard_tanh hard_shrink tanh sin cos sinh cosh arctan exp expm1 log log1p square "
    "sqrt rsqrt reciprocal abs negative sign erf round floor ceil isnan isfinite nan_to_num stop_gradient copy"
)
REDUCTIONS = "mean sum max min amax amin std var prod logsumexp any all count_nonzero median average argmax argmin norm"
RUNNING = "cumsum cumprod sort diff"


def along(names: str, axis: int) -> dict[str, Build]:
    """Functions that run over an axis; of whole numbers, so that some are equal."""
    return {f"{name} over {axis}": lambda h, name=name: getattr(K, name)(h, axis=axis) for name in names.split()}


def turned(h: Any) -> Any:
    return K.transpose(h, (0, 2, 1))


def adapted(layer: Any, h: Any, **options: Any) -> Any:
    """What a layer makes whose weight holds an update of rank one."""
    layer.build(h.shape)
    layer.enable_lora(1)
    return layer(h, **options)


def over_words(h: Any) -> Any:
    words = L.ReversibleEmbedding(9, h.shape[-1])
    words.build()
    return words(h, reverse=True)


class Dropout(L.Layer):
    """Called as one of Keras, but of a kind of its own."""

    def call(self, x: Any) -> Any:
        return K.flip(x, axis=-1)


class Half(L.Dropout):
    """Only an option is its own."""

    def __init__(self) -> None:
        super().__init__(0.5)


class Mixed(L.Layer):
    """A weight that is laid out in another way than it is used."""

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(2, 2, 3), name="kernel")

    def call(self, x: Any) -> Any:
        return K.matmul(x, K.reshape(self.kernel, (4, 3)))


# Arguments called h and g hold units along their last axis, those called x hold none.
KEPT: dict[str, Build] = {
    **{name: lambda h, name=name: getattr(K, name)(h) for name in FUNCTIONS.split()},
    "clip": lambda h: K.clip(h, 0.2, 0.7),
    "cast": lambda h: K.cast(h, "float32"),
    "logical not": lambda h: K.logical_not(h > 0),
    "activation": lambda h: L.Activation("softplus")(h),
    "activation over time": lambda h: L.Activation(lambda v: K.softmax(v, axis=1))(h),
    "activation over steps behind": lambda h: L.Activation("softmax")(turned(h)),
    "dropout of one's own": lambda h: Half()(h),
    "dropout": lambda h: L.GaussianNoise(0.3)(L.SpatialDropout1D(0.2)(L.Dropout(0.2)(K.sigmoid(h)))),
    "sum": lambda h, g: h + g,
    "sum of three": lambda h, g: L.Add()([h, K.tanh(g), h]),
    "product": lambda h, g: K.sigmoid(h) * g,
    "with itself": lambda h: h * K.sigmoid(h),
    "difference": lambda h, g: h - K.exp(g),
    "one more": lambda h: h + 1.0,
    "one less": lambda h: 1.0 - h,
    "plus nothing": lambda h: h + 0.0,
    "maximum": lambda h, g: K.maximum(h, g),
    "maximum with a number": lambda h: K.maximum(h, 0.2),
    "minimum with zero": lambda h: K.minimum(h, 0),
    "power of each other": lambda h, g: K.power(K.abs(h), K.abs(g)),
    "sum of logarithms": lambda h, g: K.logaddexp(h, g),
    "chosen": lambda h, g: K.where(h > 0, h, g),
    "greater": lambda h, g: h > g,
    "at least": lambda h, g: h >= g,
    "less": lambda h, g: h < g,
    "at most": lambda h, g: h <= g,
    "equal": lambda h, g: K.equal(K.round(h), K.round(g)),
    "not equal": lambda h, g: K.not_equal(K.round(h), K.round(g)),
    "and": lambda h, g: K.logical_and(h > 0, g > 0),
    "or": lambda h, g: K.logical_or(h > 0, g > 0),
    "step by step": lambda h, x: h * x[..., :1],
    "step by step, added": lambda h, x: x[..., :1] + h,
    "one for all": lambda h, x: h * K.max(x),
    "a mean beside": lambda h: h - K.mean(h, axis=1, keepdims=True),
    "fewer axes": lambda h, g: h + K.max(g, axis=0),
    "fewer axes first": lambda h, g: K.max(g, axis=0) * h,
    "divided": lambda h, g: h / (2.0 + K.abs(g)),
    "divided by a number": lambda h: h / 3.0,
    "a number divided": lambda h: 3.0 / (1.0 + K.square(h)),
    "divided by itself": lambda h: K.exp(h) / (1.0 + K.exp(h)),
    "average of two": lambda h, g: L.Average()([h, g]),
    "softmax over time": lambda h: K.softmax(h, axis=1),
    "logarithm of softmax": lambda h: K.log_softmax(h, axis=-2),
    "softmax over two axes": lambda h: L.Softmax(axis=(0, 1))(h),
    **along(f"{REDUCTIONS} {RUNNING}", 1),
    "largest over time, or a number": lambda h: K.max(h, axis=1, initial=0.7),
    "least over time, or zero": lambda h: K.min(h, axis=1, initial=0),
    "sum over two axes": lambda h: K.sum(h, axis=(0, -2)),
    "axes are kept": lambda h: K.max(h, axis=(0, 1), keepdims=True),
    "sum behind": lambda h: K.sum(turned(h), axis=-1),
    "sum before": lambda h: K.sum(K.transpose(h, (2, 0, 1)), axis=(1, 2)),
    "weighted mean over time": lambda h, x: K.average(h, axis=1, weights=x[0, :, 0]),
    "pooled": lambda h: L.MaxPooling1D(2)(h),
    "pooled over all": lambda h: L.GlobalAveragePooling1D()(h),
    "pooled, axes kept": lambda h: L.GlobalMaxPooling1D(keepdims=True)(h),
    "pooled by an operation": lambda h: K.average_pool(h, 2, 1),
    "pooled in planes": lambda h: L.AveragePooling2D((2, 1))(K.expand_dims(h, 2)),
    "pooled behind": lambda h: L.MaxPooling1D(2, data_format="channels_first")(turned(h)),
    "pooled over all behind": lambda h: L.GlobalMaxPooling1D(data_format="channels_first")(turned(h)),
    "zeros": lambda h: K.zeros_like(h),
    "ones": lambda h: K.ones_like(h),
    "side by side": lambda h, g: L.Concatenate()([K.tanh(g), h]),
    "side by side with others": lambda h, x, g: L.Concatenate()([h, x, K.sigmoid(g)]),
    "one after the other": lambda h, g: K.concatenate([h, g], axis=1),
    "one above the other": lambda h, g: K.stack([h, g], axis=1),
    "one behind the other": lambda h, g: K.stack([h, g], axis=-1),
    "one beside the other": lambda h, g: K.stack([h, g], axis=2),
    "transposed": lambda h: K.transpose(h, (2, 0, 1)),
    "transposed, not zero": lambda h: turned(K.sigmoid(h)),
    "turned": lambda h: K.moveaxis(K.swapaxes(h, 0, 1), -1, 0),
    "flat": lambda h: L.Flatten()(h),
    "flat from behind": lambda h: L.Flatten()(turned(h)),
    "one long row": lambda h: K.ravel(h),
    "another axis": lambda h: K.squeeze(K.expand_dims(h, 1)[:, :, 1:2], 2),
    "cropped": lambda h: L.Cropping1D(1)(h),
    "zeros before": lambda h: L.ZeroPadding1D((1, 0))(h),
    "padded with ones": lambda h: K.pad(h, ((0, 0), (1, 0), (0, 0)), constant_values=1.0),
    "padded with zeros": lambda h: K.pad(h, ((0, 0), (1, 2), (0, 0))),
    "padded by reflection": lambda h: K.pad(h, ((0, 0), (1, 0), (0, 0)), mode="reflect"),
    "backwards in time": lambda h: h[:, ::-1],
    "one step": lambda h: K.take(h, 1, axis=1),
    "some steps": lambda h: K.take(h, np.array([2, 0]), axis=1),
    "a slice of time": lambda h: K.slice(h, (0, 1, 0), (2, 1, h.shape[2])),
    "steps apart": lambda h: K.unstack(h, axis=1)[2],
    "halves of the batch": lambda h: K.split(h, 2, axis=0)[1],
    "chosen steps": lambda h: K.take_along_axis(h, np.array([[[2]], [[1]]]), axis=1),
    "repeated steps": lambda h: K.repeat(h, 2, axis=1),
    "tiled": lambda h: K.tile(h, (1, 2, 1)),
    "rolled": lambda h: K.roll(h, 1, axis=1),
    "flipped in time": lambda h: K.flip(h, axis=1),
    "longer": lambda h: L.UpSampling1D(2)(h),
    "broadcast": lambda h: K.broadcast_to(h[:, :1], h.shape),
    "each step again": lambda h: L.RepeatVector(2)(h[:, 0]),
    "distributed over time": lambda h: L.TimeDistributed(L.Softmax(axis=1))(K.expand_dims(h, 0)),
    "means of steps": lambda h, x: K.matmul(turned(x), h),
    "means of steps behind": lambda h, x: K.matmul(turned(h), x),
    "means of steps of all": lambda h, x: K.matmul(x[0, :, :3], h),
    "means of steps by a layer": lambda h, x: L.Dot(axes=1)([h, x]),
    "means of steps by an operation": lambda h, x: K.dot(x[..., :3], h),
    "means of steps over given axes": lambda h, x: K.tensordot(h, x, axes=([1], [-2])),
    "means of steps by letters": lambda h, x: K.einsum("btd,bt->bd", h, x[..., 0]),
    "attention to units": lambda h, x: L.Attention()([x, h, x]),
}
READ: dict[str, Build] = {
    **along("sum any count_nonzero norm", -1),
    "sum over everything": lambda h: K.sum(h),
    "length": lambda h: K.norm(h, ord=2, axis=-1),
    "length by amounts": lambda h: K.norm(h, ord=1, axis=-1, keepdims=True),
    "normalized": lambda h: K.normalize(h, axis=-1),
    "normalized by a layer": lambda h: L.UnitNormalization(axis=(1, 2))(h),
    "masked": lambda h: L.Masking()(K.relu(h)),
    "product": lambda h, g: K.matmul(h, turned(g)),
    "product with what is not zero": lambda h, g: K.matmul(K.sigmoid(h), turned(g)),
    "product by an operation": lambda h, g: K.dot(h, K.transpose(g[0])),
    "product over two axes": lambda h, g: K.tensordot(h, K.transpose(g, (1, 2, 0)), axes=2),
    "product over given axes": lambda h, g: K.tensordot(h, g, axes=((2, 0), (-1, 0))),
    "product by letters": lambda h, g: K.einsum("btd,bsd->bts", h, K.sigmoid(g)),
    "sum by letters": lambda h: K.einsum("btd->bt", h),
    "product by a layer": lambda h, g: L.Dot(axes=-1)([h, g]),
    "product of two axes by a layer": lambda h, g: L.Dot(axes=(2, 1))([h, turned(g)]),
    "cosine": lambda h, g: L.Dot(axes=2, normalize=True)([h, g]),
    "attention": lambda h, g: L.Attention()([h, g]),
    "attention of three": lambda h, g: L.Attention()([h, turned(turned(g)), K.exp(g)]),
    "attention by sums": lambda h, g: L.Attention(score_mode="concat")([h, g]),
    "additive attention": lambda h, g: L.AdditiveAttention(use_scale=False)([h, g]),
}
PINNED: dict[str, Build] = {
    **along("mean max min std var prod logsumexp all median average argmax argmin", -1),
    **along(f"softmax log_softmax {RUNNING}", 2),
    "mean over two axes": lambda h: K.mean(h, axis=(1, 2)),
    "running sum over everything": lambda h: K.cumsum(h, axis=None),
    "sum of what is not zero": lambda h: K.sum(K.sigmoid(h), axis=-1),
    "largest amount": lambda h: K.norm(h, ord=np.inf, axis=-1),
    "length of a higher power": lambda h: K.norm(h, ord=3, axis=-1),
    "length of a matrix": lambda h: K.norm(h, ord=2, axis=(1, 2)),
    "mixing activation": lambda h: L.Activation("softmax")(h),
    "adapted": lambda h: adapted(L.Dense(3), h),
    "adapted convolution": lambda h: adapted(L.Conv1D(3, 2), h),
    "adapted equation": lambda h: adapted(L.EinsumDense("btx,xy->bty", (None, 3)), h),
    "adapted words": lambda h: adapted(L.ReversibleEmbedding(9, 4), h, reverse=True),
    "as a mask": lambda h, x: L.Softmax(axis=1)(x, mask=h > 0),
    "as steps": lambda h: L.LSTM(3)(turned(h)),
    "as steps of both directions": lambda h: L.Bidirectional(L.GRU(3))(turned(h)),
    "as tokens": lambda h: L.Embedding(5, 3)(K.cast(h, "int32")),
    "activation of a shape": lambda h: L.Activation(lambda v: K.reshape(v, (-1, 3, 4)))(h),
    "activation of a length": lambda h: L.Activation(lambda v: v + np.ones((3, 1)))(h),
    "mixing activation behind": lambda h: L.Activation(lambda v: K.softmax(v, axis=-2))(turned(h)),
    "mixing activation of a layer": lambda h: L.Dense(5, lambda v: K.softmax(v, axis=1))(turned(h)),
    "other values": lambda h, x: h + x,
    "other values first": lambda h, x: x * h,
    "written values": lambda h: h * np.arange(4.0),
    "along another axis": lambda h, g: h[:, :1] + turned(g)[..., :1],
    "after other values": lambda h, x: K.concatenate([h, x], axis=1),
    "above other values": lambda h, x: K.stack([x, h]),
    "beside others along another axis": lambda h, g: (
        K.concatenate([h[:, :1], turned(g)[..., :1]], axis=1)
        if h.shape[-1] == 1
        else K.concatenate([h[:, :, :4], K.tile(turned(g), (1, 1, 2))[:, :, :4]], axis=1)
    ),
    "words over time": lambda h: over_words(turned(h)),
    "as indices": lambda h, g: K.take_along_axis(h, K.cast(g > 0, "int32"), axis=1),
    "by a position": lambda h: K.take_along_axis(h, np.array([[[1]]]), axis=-1),
    "by a position of all": lambda h: K.take_along_axis(h, np.array([3]), axis=None),
    "weights of a mean": lambda h, g: K.average(h, axis=0, weights=g),
    "wider": lambda h: K.pad(h, ((0, 0), (0, 0), (0, 1))),
    "twice": lambda h: K.tile(h, (1, 1, 2)),
    "each twice": lambda h: K.repeat(h, 2, axis=-1),
    "flipped": lambda h: K.flip(h, axis=-1),
    "rolled": lambda h: K.roll(h, 1, axis=-1),
    "one": lambda h: h[..., :1],
    "half": lambda h: h[..., :2],
    "some": lambda h: K.take(h, np.array([0, 3]), axis=-1),
    "apart": lambda h: K.unstack(h, axis=-1)[0],
    "in groups over units": lambda h: L.Conv1D(3, 1, groups=3)(turned(h)),
    "pooled": lambda h: L.MaxPooling1D(2)(turned(h)),
    "pooled over all": lambda h: L.GlobalMaxPooling1D()(turned(h)),
    "distributed over units": lambda h: L.TimeDistributed(L.ReLU())(K.expand_dims(turned(h), -1)),
    "normalized, not zero": lambda h: K.normalize(K.exp(h)),
    "masked by another value": lambda h: L.Masking(-1.0)(h),
    "masked, not zero": lambda h: L.Masking()(K.sigmoid(h)),
    "product of what is not zero": lambda h, g: K.matmul(K.sigmoid(h), K.exp(turned(g))),
    "product with other values": lambda h, x: K.matmul(h, turned(x)),
    "product with other values first": lambda h, x: K.matmul(x, turned(h)),
    "product with a written matrix": lambda h: K.matmul(h, np.ones((4, 2))),
    "product with a written matrix over given axes": lambda h: K.tensordot(h, np.ones((4, 2)), axes=1),
    "product with a written matrix by letters": lambda h: K.einsum("btd,de->bte", h, np.ones((4, 2))),
    "product with a written matrix by an operation": lambda h: K.dot(h, np.ones((4, 2))),
    "product with a vector": lambda h, g: K.matmul(h, g[0, 0]),
    "product with a vector by an operation": lambda h, g: K.dot(h, g[0, 0]),
    "product of three": lambda h, g: K.einsum("btd,bsd,btd->bts", h, g, h),
    "diagonal": lambda h, g: K.einsum("btd,bdd->bt", h, K.matmul(turned(g), g)),
    "letters left out": lambda h, g: K.einsum("...d,...d->...", h, g),
    "cosine of what is not zero": lambda h, g: L.Dot(axes=2, normalize=True)([K.sigmoid(h), g]),
    "cosine of two that are not zero": lambda h, g: L.Dot(axes=2, normalize=True)([h, K.sigmoid(g)]),
    "attention of what is not zero": lambda h, g: L.Attention()([K.sigmoid(h), K.sigmoid(g)]),
    "attention by sums to what is not zero": lambda h, g: L.Attention(score_mode="concat")([h, K.sigmoid(g)]),
    "attention by sums of what is not zero": lambda h, g: L.AdditiveAttention(use_scale=False)([K.sigmoid(h), g]),
    "attention over units": lambda h: L.Attention()([turned(h), turned(h)]),
    "sum of units that start from what is not zero": lambda h, x: K.sum(
        L.GRU(4)(x, initial_state=K.sigmoid(h)[:, 0]), axis=-1
    ),
    "product with a mixed weight": lambda h: Mixed()(h),
    "a name of Keras": lambda h: Dropout()(h),
    "unknown": lambda h: K.glu(h),
}


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with in_double():
        yield


def pinned(tracer: Tracer) -> set[int]:
    """What is pinned for more than that the answer holds them."""
    found = (labels for labels, pin in tracer.records.pins if "an output of" not in pin.reason)
    return {root for labels in found for root in tracer.couplings.roots(labels).tolist()}


def read_directly(build: Build) -> bool:
    """Take away the second unit of every argument, and all that goes with it; whether any was read without a weight."""
    tracer, values = traced(build)
    roots = tracer.couplings.roots
    assert not pinned(tracer)
    held = [tensor.shadow.labels if tensor.shadow else np.zeros(4, int) for tensor in tracer.inputs]
    gone = [root for labels in held if labels.any() for root in roots(labels[1:2])]
    there = [~np.isin(roots(labels), gone) for labels in held]
    silenced = [np.where(keep, value, 0) for keep, value in zip(there, values, strict=True)]
    read = {root for labels, _ in tracer.records.direct for root in roots(labels)}
    assert not read or read.issuperset(gone)
    found = tracer.outputs[0].shadow
    with np.errstate(all="ignore"):
        narrow = array(build(*(value[..., keep] for keep, value in zip(there, values, strict=True))))
        whole, quiet = array(build(*(silenced if read else values))), array(build(*silenced))
    if found is None:
        np.testing.assert_allclose(whole, narrow, rtol=1e-10)
        return bool(read)
    (away,) = np.nonzero(np.isin(roots(found.labels), gone))
    np.testing.assert_allclose(np.delete(whole, away, found.axis), narrow, rtol=1e-10)
    assert found.silent == bool((np.take(quiet, away, found.axis) == 0).all())
    return bool(read)


@pytest.mark.parametrize("name", KEPT)
def test_units_are_kept_apart(name: str) -> None:
    assert not read_directly(KEPT[name])


@pytest.mark.parametrize("name", READ)
def test_units_that_are_read_directly_are_gone_once_they_are_zero(name: str) -> None:
    assert read_directly(READ[name])


@pytest.mark.parametrize("name", [*KEPT, *READ])
def test_what_holds_no_units_is_as_it_was(name: str) -> None:
    build = {**KEPT, **READ}[name]
    tracer, values = traced(build, units=False)
    (found,) = tracer.outputs
    assert found.shadow is None
    assert not tracer.records.pins
    assert not tracer.records.direct
    np.testing.assert_allclose(array(found.value), array(build(*values)))


@pytest.mark.parametrize("name", PINNED)
def test_units_are_pinned(name: str) -> None:
    tracer, _ = traced(PINNED[name])
    held = [tensor.shadow.labels for tensor in tracer.inputs if tensor.shadow]
    assert pinned(tracer).issuperset(tracer.couplings.roots(np.concatenate(held)).tolist())


@pytest.mark.parametrize(
    ("move", "axes"),
    [
        (lambda w: K.transpose(w), (None, 0, 1)),
        (lambda w: K.transpose(w, (1, 2, 0)), (0, None, 1)),
        (lambda w: K.expand_dims(K.squeeze(w, 2), 0), (None, 1, 0)),
        (lambda w: K.reshape(w, (6,)), (None,)),
        (lambda w: w[1], (0, None)),
        (lambda w: w[:, ::-1, 0], (1, None)),
        (lambda w: w[:, :2, 0], (1, None)),
        (lambda w: K.roll(w, -1, axis=1), (1, None, None)),
        (lambda w: K.take(w, np.array([0, 1, 1]), axis=1), (1, None, None)),
    ],
)
def test_the_axes_of_a_weight_that_is_moved_about(move: Build, axes: tuple[int | None, ...]) -> None:
    """Of a weight whose first axis is 1, and whose second is 0; the last one has a single place."""
    symbol = keras.Input(batch_shape=(2, 3, 1))
    tracer = Tracer(ModelGraph(keras.Model(symbol, move(symbol))), rule_of)
    variable = keras.Variable(np.zeros((3, 2, 1)))
    moved = Traced(K.transpose(variable, (1, 0, 2)), weight=variable, axes=(1, 0, None))
    found = run(tracer.graph.root, [moved], tracer.call)
    assert (found.axes, found.weight) == (axes, None if set(axes) == {None} else variable)


@pytest.mark.parametrize(
    "build",
    [
        lambda x: L.Dense(4, activation="softmax")(x),
        lambda x: L.Conv1D(4, 1, activation="softmax")(x),
        lambda x: L.Conv1DTranspose(4, 1, activation="softmax")(x),
        lambda x: L.SeparableConv1D(4, 1, activation="softmax")(x),
        lambda x: L.Conv1D(4, 1, groups=4, activation="softmax")(L.Dense(4)(x)),
        lambda x: L.GRU(4, activation="softmax")(x),
        lambda x: L.LSTM(4, recurrent_activation="softmax")(x),
        lambda x: L.DepthwiseConv1D(1, activation="softmax")(L.Dense(4)(x)),
        lambda x: L.EinsumDense("btx,xy->bty", (None, 4), activation="softmax")(L.Dense(4)(x)),
    ],
)
def test_an_activation_that_mixes_what_is_made_pins_it(build: Build) -> None:
    tracer, _ = traced(build)
    made = [*tracer.widths.values(), *tracer.cells.values()][0]
    assert pinned(tracer) == set(tracer.couplings.roots(made.labels).tolist())
    assert any("mixes" in pin.reason for _, pin in tracer.records.pins)


def test_an_embedding_with_an_update_is_followed_no_further() -> None:
    tracer, _ = traced(lambda x: adapted(L.Embedding(9, 4), K.cast(K.abs(x), "int32")))
    assert tracer.outputs[0].shadow is None
    assert not tracer.records.slots


def test_of_units_that_meet_on_two_axes_those_of_a_width_give_way() -> None:
    tracer, _ = traced(lambda h, g: K.matmul(turned(h), g))
    assert pinned(tracer) == {5, 6, 7, 8}
    found = tracer.outputs[0].shadow
    assert found is not None
    assert (found.axis, found.labels.tolist()) == (1, [1, 2, 3, 4])
    tracer, _ = traced(lambda x: K.matmul(turned(L.Dense(4)(x)), L.GRU(5, return_sequences=True)(x)))
    (width,), (cell,) = tracer.widths.values(), tracer.cells.values()
    assert pinned(tracer) == set(width.labels.tolist())
    found = tracer.outputs[0].shadow
    assert found is not None
    assert (found.axis, found.labels.tolist()) == (2, cell.labels.tolist())


@pytest.mark.parametrize("kind", [L.Dense, L.GRU, lambda units: L.Conv1D(units, 1)])
def test_a_layer_that_is_called_twice_makes_the_same_units(kind: Any) -> None:
    layer = kind(4)
    tracer, _ = traced(lambda x: [layer(x), layer(2 * x)])
    assert len(tracer.cells) + len(tracer.widths) == 1
    first, second = (output.shadow for output in tracer.outputs)
    assert first is not None
    assert second is not None
    assert first.labels.tolist() == second.labels.tolist()
    assert len(tracer.couplings.classes()) in (0, 4)
    assert not pinned(tracer)
