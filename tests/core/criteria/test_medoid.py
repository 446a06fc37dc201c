from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from reprune.core.criteria import Medoid
from reprune.core.criteria.medoid import medoid_distances
from tests.helpers.builders import stack


@pytest.mark.parametrize("scale", [1e-14, 1.0, 1e9])
def test_scores_are_distances_to_the_most_central_unit(scale):
    points = np.random.default_rng(3).normal(size=(9, 4))
    table = cdist(points, points)
    expected = table[np.argmin(table.sum(axis=0))]
    np.testing.assert_allclose(medoid_distances(scale * points) / scale, expected, rtol=1e-10, atol=1e-12)


def test_points_in_one_place_are_no_distance_apart():
    assert medoid_distances(np.full((3, 2), 5.0)).tolist() == [0.0, 0.0, 0.0]


def test_the_medoid_goes_first():
    layer = stack((6,)).evidence().layers["a"]
    ranking = Medoid().rank([layer], np.random.default_rng(0))
    assert ranking.order[0] == np.argmin(cdist(layer.incoming, layer.incoming).sum(axis=0))
    assert ranking.scores[ranking.order[0]] == 0
