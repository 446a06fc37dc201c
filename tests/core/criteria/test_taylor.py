from __future__ import annotations

import numpy as np
import pytest

from reprune.core.criteria import Taylor
from reprune.core.errors import StatisticsError
from reprune.core.evidence.evidence import Evidence
from tests.helpers.builders import stack


def test_scores_are_sums_over_all_that_a_unit_touches():
    model = stack((4, 3))
    rng = np.random.default_rng(5)
    gradients = {name: rng.normal(size=tensor.shape) for name, tensor in model.tensors.items()}
    evidence = Evidence(model.structure, model.tensors, gradients=gradients)
    ranking = Taylor().rank([evidence.layers["a"]], rng)
    product = {name: np.abs(model.tensors[name] * gradients[name]) for name in gradients}
    for unit in range(4):
        rows = [gate * 4 + unit for gate in range(4)]
        expected = product["a.w_ih"][rows].sum() + product["a.w_hh"][rows].sum()
        expected += product["a.w_hh"][:, unit].sum() + product["b.w_ih"][:, unit].sum()
        assert ranking.scores[unit] == pytest.approx(expected)


def test_without_a_loss_it_says_what_to_give():
    with pytest.raises(StatisticsError, match="loss="):
        Taylor().rank([stack((3,)).evidence().layers["a"]], np.random.default_rng(0))
