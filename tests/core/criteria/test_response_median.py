from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from reprune.core.criteria import ResponseMedian
from tests.helpers.builders import stack


@pytest.mark.parametrize(("criterion", "means"), [(ResponseMedian(), True), (ResponseMedian(means=False), False)])
def test_scores_are_distances_between_columns_of_responses(criterion, means):
    rows = np.random.default_rng(2).normal(size=(60, 5)) + np.arange(5)
    ranking = criterion.rank([stack((5,)).evidence({"a": rows}).layers["a"]], np.random.default_rng(0))
    columns = (rows if means else rows - rows.mean(axis=0)).T
    np.testing.assert_allclose(ranking.scores, cdist(columns, columns).sum(axis=1) / np.sqrt(60), rtol=1e-10)
