"""Single operations of Keras on labelled values."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from reprune.keras.tracing.graph import ModelGraph
from reprune.keras.tracing.rules import rule_of
from reprune.keras.tracing.tracer import Tracer

SHAPE = (2, 3, 4)
"""Sequences × steps × units."""


def traced(build: Callable[..., Any], *shapes: tuple[int, ...], units: bool = True) -> tuple[Tracer, list[Any]]:
    """What a trace of a function says, and what it was run on.

    Args:
        build: Of tensors; those called x hold no units, all others hold some along their last axis.
        shapes: Of its arguments, `SHAPE` by default.
        units: Whether any of them hold units.
    """
    names = [name for name, part in inspect.signature(build).parameters.items() if part.default is part.empty]
    inputs = [keras.Input(batch_shape=shape) for shape in shapes or [SHAPE] * len(names)]
    rng = np.random.default_rng(0)
    values = [rng.normal(size=one.shape) for one in inputs]
    graph = ModelGraph(keras.Model(inputs, build(*inputs)))
    tracer = Tracer(graph, rule_of, [place for place, name in enumerate(names) if units and name != "x"])
    tracer.run(values)
    return tracer, values
