"""Selection by correlation against the published rules, written out over `np.corrcoef`."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.criteria import Correlation
from tests.helpers.builders import stack


def rows_of(units, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(200, units)) @ rng.normal(size=(units, units))


def by_sum(rows):
    left, order = list(range(rows.shape[1])), []
    while len(left) > 1:
        table = np.abs(np.corrcoef(rows[:, left].T))
        order.append(left.pop(int(np.argmax(table.sum(axis=0)))))
    return order + left


def by_max(rows):
    left, order = list(range(rows.shape[1])), []
    while len(left) > 2:
        table = np.abs(np.corrcoef(rows[:, left].T)) - np.eye(len(left))
        pair = np.unravel_index(np.argmax(table), table.shape)
        unit = max(pair, key=lambda place: np.sort(table[place])[-2])
        order.append(left.pop(unit))
    return order


@pytest.mark.parametrize("seed", range(4))
def test_rules(seed):
    rows = rows_of(7, seed) * 10.0 ** (-3 * seed)
    evidence = [stack((7,)).evidence({"a": rows}).layers["a"]]
    assert Correlation().rank(evidence, np.random.default_rng(0)).order.tolist()[:5] == by_sum(rows)[:5]
    assert Correlation(by="max").rank(evidence, np.random.default_rng(0)).order.tolist()[:5] == by_max(rows)


def test_units_that_never_respond_go_first_and_independent_ones_last():
    rows = rows_of(6, 9)
    rows[:, 3] = 0.5
    rows[:, 1] = -2.0 * rows[:, 5]
    ranking = Correlation().rank([stack((6,)).evidence({"a": rows}).layers["a"]], np.random.default_rng(0))
    assert ranking.order[0] == 3
    assert ranking.scores[3] == 0
    assert sorted(ranking.order.tolist()) == list(range(6))


@pytest.mark.parametrize("by", ["sum", "max"])
def test_a_single_unit(by):
    layer = stack((1,)).evidence({"a": rows_of(1, 0)}).layers["a"]
    ranking = Correlation(by).rank([layer], np.random.default_rng(0))
    assert (ranking.order.tolist(), ranking.scores.tolist()) == ([0], [0.0])
