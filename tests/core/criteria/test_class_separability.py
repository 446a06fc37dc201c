from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import f_oneway

from reprune.core.criteria import ClassSeparability, Discriminant
from reprune.core.criteria.class_separability import interleave
from reprune.core.criteria.geometric_median import distance_sums
from reprune.core.errors import StatisticsError
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.evidence import Evidence
from tests.helpers.builders import stack


def labelled(units=5, rows=90, classes=3):
    rng = np.random.default_rng(4)
    labels = rng.integers(0, classes, size=rows)
    values = rng.normal(size=(rows, units)) + labels[:, None] * np.linspace(0, 2, units)
    moments = ClassMoments("a", units)
    for part in np.array_split(np.arange(rows), 4):
        moments.update(values[part], np.eye(classes)[labels[part]])
    model = stack((units,))
    return Evidence(model.structure, model.tensors, classes={"a": moments}).layers["a"], values, labels


def test_scores_are_those_of_an_analysis_of_variance():
    layer, values, labels = labelled()
    ranking = ClassSeparability().rank([layer], np.random.default_rng(0))
    statistic = f_oneway(*(values[labels == label] for label in range(3))).statistic
    np.testing.assert_allclose(ranking.scores, statistic * (3 - 1) / (len(values) - 3), rtol=1e-9)


def test_the_mixture_takes_its_share_from_each():
    layer, *_ = labelled(units=10)
    ranking = Discriminant().rank([layer], np.random.default_rng(0))  # FSDP's own share: a fifth.
    separability, median = np.argsort(layer.separability), np.argsort(distance_sums(layer.incoming))
    assert set(median[:4]) <= set(ranking.order[:5].tolist())
    assert ranking.order[4] == next(unit for unit in separability if unit not in median[:4])
    assert sorted(ranking.order.tolist()) == list(range(10))
    assert interleave(separability, median, 1.0).tolist() == separability.tolist()
    assert interleave(separability, median, 0.0).tolist() == median.tolist()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.7, 0.99])
def test_of_any_number_of_units_the_first_order_chose_its_share(share):
    rng = np.random.default_rng(0)
    first, second = rng.permutation(30), rng.permutation(30)
    order = interleave(first, second, share).tolist()
    for gone in range(1, 31):
        # Whole where share · gone is, in spite of rounding.
        mine = math.floor(round(share * gone, 6))
        if mine == math.floor(round(share * (gone - 1), 6)):
            expected = next(unit for unit in second.tolist() if unit not in order[: gone - 1])
        else:
            expected = next(unit for unit in first.tolist() if unit not in order[: gone - 1])
        assert order[gone - 1] == expected


def test_without_labels_it_says_what_to_give():
    with pytest.raises(StatisticsError, match="labels="):
        ClassSeparability().rank([stack((3,)).evidence().layers["a"]], np.random.default_rng(0))
    one_class = ClassMoments("a", 2)
    one_class.update(np.zeros((4, 2)), np.ones((4, 1)))
    with pytest.raises(StatisticsError, match="fewer than two classes"):
        one_class.separability()
    with pytest.raises(StatisticsError, match="3 labels for 4 responses"):
        one_class.update(np.zeros((4, 2)), np.ones((3, 1)))


def test_moments_merge_and_travel() -> None:
    """Two halves, one of them through its state, give what all rows give; a class that one half lacks is no trouble."""
    rng = np.random.default_rng(0)
    rows, members = rng.normal(size=(40, 3)), np.eye(3)[rng.integers(0, 3, 40)]
    members[:20, 2] = 0
    whole, first, second = (ClassMoments("lstm:l0", 3) for _ in range(3))
    whole.update(rows, members)
    first.update(rows[:20], members[:20, :2])
    second.update(rows[20:], members[20:])
    copy = ClassMoments("lstm:l0", 3)
    copy.restore(second.state())
    saved = {name: part.copy() for name, part in first.state().items()}
    kept = first.state()
    first.merge(copy)
    for name, part in saved.items():  # What was kept of it before is as it was.
        np.testing.assert_array_equal(kept[name], part)
    assert first.count == whole.count == int(members.sum())
    np.testing.assert_allclose(first.separability(), whole.separability(), rtol=1e-12)


def test_there_are_as_many_classes_as_were_named():
    moments = ClassMoments("a", 2)
    for labels in ([[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0, 1.0]]):
        moments.update(np.ones((1, 2)), np.array(labels))
    assert moments.state()["counts"].tolist() == [1, 1, 1]
    assert moments.state()["means"].tolist() == [[1, 1]] * 3
    assert moments.state()["scatters"].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("apart", [1e-3, 20.0])
def test_units_without_scatter_within_classes_are_worth_as_much_whatever_their_scale(apart):
    moments = ClassMoments("l", 1)
    moments.update(np.array([[0.0], [apart]]), np.eye(2))
    np.testing.assert_allclose(moments.separability(), 1 / np.finfo(float).eps)
