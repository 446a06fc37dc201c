from __future__ import annotations

import numpy as np

from reprune.core.criteria import Variance
from tests.helpers.builders import stack


def test_scores_are_the_variances_of_the_rows():
    rows = np.random.default_rng(1).normal(size=(80, 5)) * [3.0, 0.1, 2.0, 1.0, 0.0]
    ranking = Variance().rank([stack((5,)).evidence({"a": rows}).layers["a"]], np.random.default_rng(0))
    np.testing.assert_allclose(ranking.scores, np.var(rows, axis=0), rtol=1e-12)
    assert ranking.order.tolist() == [4, 1, 3, 2, 0]
