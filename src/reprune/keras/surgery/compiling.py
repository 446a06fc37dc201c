"""Compiling a rebuilt model as the original was."""

from __future__ import annotations

from typing import Any

import keras


def compile_like(model: Any, rebuilt: Any) -> Any:
    """Compile `rebuilt` with the loss, metrics and optimizer settings of `model`, if that is compiled.

    The optimizer is a new one: its state belongs to weights of other shapes.
    """
    rebuilt.dtype_policy = model.dtype_policy
    if not model.trainable:
        rebuilt.trainable = False
    if not model.compiled:
        return rebuilt
    config = dict(model._compile_config.config)
    # That in use, which `compile` may have wrapped to scale losses.
    config["optimizer"] = _fresh(model.optimizer)
    for name in ("metrics", "weighted_metrics"):
        config[name] = keras.tree.map_structure(_fresh, config.get(name))
    rebuilt.compile(**config)
    return rebuilt


def _fresh(part: Any) -> Any:
    if isinstance(part, (keras.metrics.Metric, keras.optimizers.Optimizer)):
        return type(part).from_config(part.get_config())
    return part
