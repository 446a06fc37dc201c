from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from reprune.core.criteria import IssMedian
from tests.helpers.builders import stack


def test_scores_are_distances_between_whole_structures():
    model = stack((5, 3))
    ranking = IssMedian().rank([model.evidence().layers["a"]], np.random.default_rng(0))
    own = [model.tensors[f"a.{part}"].reshape(4, 5, -1).transpose(1, 0, 2).reshape(5, -1) for part in ("w_ih", "w_hh")]
    whole = np.concatenate([*own, model.tensors["a.w_hh"].T, model.tensors["b.w_ih"].T], axis=1)
    np.testing.assert_allclose(ranking.scores, cdist(whole, whole).sum(axis=1), rtol=1e-10)
