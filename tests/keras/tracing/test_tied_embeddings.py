"""Embeddings whose matrix makes the answers, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import reprune.keras
from tests.helpers import keras_zoo as zoo
from tests.helpers.keras_models import error, in_double, outputs, some_plan

L, K = zoo.L, zoo.K
T, WORDS = 3, 11


class Language(keras.Model):
    """A language model of one's own class."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn = L.Embedding(WORDS, 6, mask_zero=True), L.LSTM(6, return_sequences=True, name="rnn")

    def call(self, words: Any) -> Any:
        return K.matmul(self.rnn(self.embedding(words)), K.transpose(self.embedding.embeddings))


class Tied(L.Layer):
    """Layers outside of it, which no configuration tells."""

    def __init__(self, embedding: Any, **options: Any) -> None:
        super().__init__(**options)
        self.embedding = embedding

    def call(self, x: Any) -> Any:
        return K.einsum("bth,vh->btv", x, self.embedding.embeddings)


class TiedWithBias(Tied):
    """And a weight of its own."""

    def build(self, shape: Any) -> None:
        self.bias = self.add_weight(shape=(WORDS,), name="bias")

    def call(self, x: Any) -> Any:
        return K.dot(x, K.transpose(self.embedding.embeddings)) + self.bias


def language() -> Any:
    model = Language()
    model.embedding.build()
    model(np.zeros((2, T), dtype="int32"))
    return zoo.randomise(model)


def tied(layer: Callable[[Any], Any], embedding: Any = L.Embedding, **options: Any) -> Any:
    def build(words: Any) -> Any:
        table = embedding(WORDS, 6, name="words", **options)
        return layer(table)(L.LSTM(6, return_sequences=True, name="rnn")(table(words)))

    return zoo.functional(build, (T,), dtype="int32")


def reversed_(**options: Any) -> Any:
    return tied(lambda table: lambda x: table(x, reverse=True), L.ReversibleEmbedding, **options)


MODELS = {
    "model": language,
    "layer": lambda: tied(Tied),
    "layer with a weight": lambda: tied(TiedWithBias),
    "reversible": lambda: reversed_(logit_soft_cap=3.0),
    "reversible, untied": lambda: reversed_(tie_weights=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_columns_go_with_the_units(name: str) -> None:
    with in_double():
        model = MODELS[name]()
        words = np.random.default_rng(0).integers(0, WORDS, size=(5, T))
        structure = reprune.keras.inspect(model, [words]).structure
        assert structure.prunable == ("rnn",)
        # Four gates that read six columns and six units, and a product with eleven words, at every step.
        macs = [
            product.rows * np.prod([size(structure.counts()) for size in product.extents])
            for product in structure.contractions
        ]
        assert sum(macs) / structure.steps == 2 * 6 * 24 + 6 * WORDS
        plan = some_plan(structure, 1)
        small, masked = reprune.keras.apply(model, plan), reprune.keras.mask(model, plan)
        assert error(outputs(masked, words), outputs(small, words)) < 1e-10
        (table,) = (layer for layer in small.layers if isinstance(layer, L.Embedding))
        original = next(weight for weight in model.weights if tuple(weight.shape) == (WORDS, 6))
        if "untied" not in name:
            assert np.array_equal(table.embeddings, np.asarray(original)[:, plan.kept["rnn"]])
        before = outputs(small, words)[0]
        table.embeddings.assign(table.embeddings * 2)
        assert np.abs(outputs(small, words)[0] - before).max() > 1e-3


def test_a_model_that_computes_with_a_weight_of_a_layer_says_how_it_is_saved(tmp_path: Path) -> None:
    model = language()
    small = reprune.keras.apply(model, some_plan(reprune.keras.trace(model, np.zeros((2, T), dtype="int32"))))
    with pytest.raises(NotImplementedError, match=r"result\.save"):
        small.save(tmp_path / "small.keras")


def test_an_embedding_in_a_lambda_is_pinned() -> None:
    model = tied(lambda table: L.Lambda(lambda x: K.matmul(x, K.transpose(table.embeddings))))
    (pin,) = reprune.keras.inspect(model, [np.zeros((2, T), dtype="int32")]).pinned.values()
    assert "a weight outside any layer" in pin.reason
