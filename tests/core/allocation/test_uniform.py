from __future__ import annotations

import numpy as np
import pytest

from reprune.core.allocation import Uniform
from reprune.core.budget.budget import Block, Budget, allocate
from reprune.core.budget.cost import CostModel
from reprune.core.criteria import Ranking
from tests.helpers.builders import stack


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.77, 0.9])
def test_every_layer_loses_the_same_share(ratio):
    units = {"a": 100, "b": 50, "c": 20}
    model = stack(tuple(units.values()))
    layers = model.evidence().layers
    unused = Ranking(np.arange(0), np.zeros(0))
    blocks = [Block((name,), Uniform().thresholds([layers[name]], unused)) for name in units]
    counts = allocate(Budget(ratio), blocks, CostModel(model.structure), units)
    assert sum(counts.values()) == round(170 * (1 - ratio))
    for name, size in units.items():
        assert abs(counts[name] - size * (1 - ratio)) <= 1
