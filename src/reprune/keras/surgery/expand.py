"""A full-size Keras model that computes what a pruned one does."""

from __future__ import annotations

from typing import Any

import numpy as np

from reprune.core.plan import Plan
from reprune.keras.tracing.graph import array, graph_of


def expand(dense: Any, small: Any, plan: Plan) -> Any:
    """The dense model, with the weights of the pruned one in place and zeros where units were removed.

    Args:
        dense: A model like the one for which the plan was made; its weights do not matter, and are replaced.
        small: The pruned model.
        plan: Which units of the dense model it kept.
    """
    pairs = zip(graph_of(dense).weights().values(), graph_of(small).weights().values(), strict=True)
    for name, (whole, part) in zip(plan.structure.shapes, pairs, strict=True):
        value = np.zeros_like(array(whole))
        value[np.ix_(*plan.stays(name, value.shape))] = array(part)
        whole.assign(value)
    return dense
