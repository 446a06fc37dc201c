from __future__ import annotations

import numpy as np

from reprune.core.criteria.given import Given
from tests.helpers.builders import stack


def test_units_go_by_the_scores_of_their_layer():
    layers = stack((3, 2)).evidence().layers
    criterion = Given({"a": np.array([0.7, 0.1, 0.4]), "b": np.array([2.0, 1.0])})
    ranked = [criterion.rank([layers[name]], np.random.default_rng(0)) for name in "ab"]
    assert [ranking.order.tolist() for ranking in ranked] == [[1, 2, 0], [1, 0]]
    assert [ranking.scores.tolist() for ranking in ranked] == [[0.7, 0.1, 0.4], [2.0, 1.0]]
