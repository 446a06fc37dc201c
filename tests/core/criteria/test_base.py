from __future__ import annotations

import numpy as np
import pytest

from reprune.core.criteria import CRITERIA
from reprune.core.criteria.base import rank_by


def test_small_scores_go_first_and_ties_by_index():
    ranking = rank_by([np.array([2.0, 1.0, 2.0, 1.0, 0.5])])
    assert ranking.order.tolist() == [4, 1, 3, 0, 2]
    assert ranking.scores.tolist() == [2.0, 1.0, 2.0, 1.0, 0.5]


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_rounding_is_no_difference(scale):
    scores = np.array([0.3, 0.1 + 0.2, 0.3, 7.0, 0.3 - 5e-17])
    assert rank_by([scale * scores]).order.tolist() == [0, 1, 2, 4, 3]


def test_layers_of_a_group_count_alike_whatever_their_scale():
    small, large = np.array([1.0, 3.0, 2.0]), np.array([5e6, 4e6, 9e6])
    ranking = rank_by([small, large])
    np.testing.assert_allclose(ranking.scores, small / 2 + large / 6e6)
    assert ranking.order.tolist() == [0, 1, 2]


def test_nothing_but_zeros():
    for scores in ([np.zeros(3)], [np.zeros(3), np.zeros(3)]):
        assert rank_by(scores).order.tolist() == [0, 1, 2]


def test_what_has_to_be_seen_of_a_model_for_each_criterion():
    by_need = {
        need: {name for name, kind in CRITERIA.items() if getattr(kind, f"needs_{need}")}
        for need in ("statistics", "readings", "labels", "loss")
    }
    assert by_need == {
        "statistics": {"correlation", "reconstruction", "response-median", "variance"},
        "readings": {"reconstruction"},
        "labels": {"class-separability", "discriminant"},
        "loss": {"taylor"},
    }
