"""Following code replaces functions of Keras for a while: one thread at a time, and for that thread alone."""

from __future__ import annotations

from threading import Event, Thread

import keras
import numpy as np

from reprune.keras.tracing.positional import Arguments
from reprune.keras.tracing.symbolic import _specs, followed


def test_threads_follow_code_one_after_the_other() -> None:
    functions = dict(vars(keras.ops))
    inputs, owner = keras.Input((3,)), keras.layers.Dense(2)
    entered = Event()

    def follow() -> None:
        with followed(inputs, owner):
            entered.set()

    other = Thread(target=follow)
    with followed(inputs, owner), followed(inputs, owner):  # Code inside code is followed, too.
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()
    assert vars(keras.ops) == functions


def test_another_thread_computes_with_the_weights_themselves() -> None:
    embedding = keras.layers.Embedding(4, 2)
    embedding.build()
    model = keras.Sequential([embedding])
    found: list[object] = []
    with followed(keras.Input((3,), dtype="int32"), model):
        other = Thread(target=lambda: found.append(keras.ops.transpose(embedding.embeddings)))
        other.start()
        other.join()
        here = keras.ops.transpose(embedding.embeddings)
    assert isinstance(here, keras.KerasTensor)
    assert tuple(found[0].shape) == (2, 4)  # type: ignore[attr-defined]
    assert not isinstance(found[0], keras.KerasTensor)


def test_axes_between_batch_and_features_are_tried_open_and_then_as_they_are() -> None:
    model = keras.Sequential([keras.layers.Dense(2)])
    frames, maps, tokens, texts = (
        np.ones((2, 5, 3), "float32"),
        np.ones((2, 5, 4, 3)),
        np.ones((2, 5), int),
        np.ones(2, int),
    )

    def shapes(example: object) -> list[object]:
        return [keras.tree.map_structure(lambda spec: spec.shape, spec) for spec in _specs(model, example)]

    assert shapes(frames) == [(None, None, 3), (None, 5, 3)]
    assert shapes(maps) == [(None, None, None, 3), (None, 5, 4, 3)]
    assert shapes(tokens) == [(None, None), (None, 5)]
    assert shapes(tokens[..., None]) == [(None, None, 1), (None, 5, 1)]
    assert shapes(frames[:, 0]) == [(None, 3), (None, 3)]
    assert shapes(texts) == [(None,), (None,)]
    assert shapes([frames, tokens]) == [[(None, None, 3), (None, None)], [(None, 5, 3), (None, 5)]]
    named = next(_specs(model, {"words": tokens, "frames": frames}))
    assert {name: (spec.name, spec.dtype) for name, spec in named.items()} == {
        "words": ("words", "int64"),
        "frames": ("frames", "float32"),
    }
    several = list(_specs(model, Arguments(("frames", "words"), (frames, [tokens]))))
    assert [spec.names for spec in several] == [("frames", "words")] * 2
    assert [spec.values[0].shape for spec in several] == [(None, None, 3), (None, 5, 3)]
    assert several[1].values[1][0].shape == (None, 5)
    assert several[0].values[0].name == "frames"
