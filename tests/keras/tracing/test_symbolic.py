"""Following code replaces functions of Keras for a while: one thread at a time, and for that thread alone."""

from __future__ import annotations

from threading import Event, Thread

import keras

from reprune.keras.tracing.symbolic import followed


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
