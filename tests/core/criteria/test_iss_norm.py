from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reprune.core.criteria import IssNorm
from reprune.core.evidence.evidence import Evidence
from tests.helpers.builders import stack


@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_equals_the_norm_of_everything_a_unit_touches(of):
    model = stack((4, 3))
    evidence = Evidence(model.structure, {name: of(tensor) for name, tensor in model.tensors.items()})
    ranking = IssNorm().rank([evidence.layers["a"]], np.random.default_rng(0))
    for unit in range(4):
        rows = [unit + 4 * gate for gate in range(4)]
        parts = (
            model.tensors["a.w_ih"][rows],
            model.tensors["a.w_hh"][rows],
            model.tensors["a.w_hh"][:, unit],
            model.tensors["b.w_ih"][:, unit],
        )
        assert ranking.scores[unit] == pytest.approx(np.sqrt(sum(float(np.sum(part**2)) for part in parts)), rel=1e-12)
    np.testing.assert_array_equal(ranking.order, np.argsort(ranking.scores))


def test_half_precision_does_not_overflow():
    model = stack((4,))
    tensors = {name: torch.full(tensor.shape, 300.0, dtype=torch.float16) for name, tensor in model.tensors.items()}
    layer = replace(model, tensors=tensors).evidence().layers["a"]
    assert np.all(np.isfinite(IssNorm().rank([layer], np.random.default_rng(0)).scores))
