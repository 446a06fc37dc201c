from __future__ import annotations

import numpy as np

from reprune.core.criteria import Random
from tests.helpers.builders import stack


def order(seed):
    layer = stack((50,)).evidence().layers["a"]
    return Random().rank([layer], np.random.default_rng(seed)).order.tolist()


def test_a_seed_gives_one_order_and_another_seed_another():
    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(50))


def test_every_unit_is_as_likely_to_go_first():
    rng, layer = np.random.default_rng(0), stack((4,)).evidence().layers["a"]
    first = np.bincount([Random().rank([layer], rng).order[0] for _ in range(2000)], minlength=4)
    assert np.all(np.abs(first - 500) < 5 * np.sqrt(2000 * 0.25 * 0.75))
