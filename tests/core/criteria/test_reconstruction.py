"""The order of removal equals the one found by refitting every candidate from scratch."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.criteria.reconstruction import Elimination, Reconstruction
from reprune.core.evidence import Evidence
from reprune.core.readings import SplitMoments, readings

from ..builders import stack


def refitted_error(moments, weights, gone):
    """Squared error of the consumer's output when `gone` is predicted from the rest by least squares."""
    stay = [u for u in range(len(moments)) if u not in gone]
    coefficients = np.linalg.solve(moments[np.ix_(stay, stay)], moments[np.ix_(stay, gone)]).T
    residual = moments[np.ix_(gone, gone)] - coefficients @ moments[np.ix_(stay, gone)]
    return float(np.trace(weights[gone].T @ residual @ weights[gone]))


@pytest.mark.parametrize("block", [1, 3, 48])
@pytest.mark.parametrize("width", [1, 2])
def test_costs_are_those_of_refitting_from_scratch(block, width, monkeypatch):
    monkeypatch.setattr(Elimination, "BLOCK", block)
    rng = np.random.default_rng(block)
    rows = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
    moments, weights = rows.T @ rows / 300, rng.normal(size=(12, 20))
    places = np.arange(12).reshape(-1, width)
    elimination = Elimination.start(moments, weights @ weights.T, places, 1e-14)
    gone, left = [], list(range(len(places)))
    while len(left) > 1:
        if width == 1:
            so_far = refitted_error(moments, weights, gone) if gone else 0.0
            expected = [refitted_error(moments, weights, [*gone, *places[u]]) - so_far for u in left]
            np.testing.assert_allclose(elimination.costs()[left], expected, rtol=1e-6)
        unit = left[int(np.argmin(elimination.costs()[left]))]
        elimination.remove(unit)
        left.remove(unit)
        gone += places[unit].tolist()


def evidence_of(model, rows):
    observed = {}
    for consumer in model.structure.consumers:
        layer = next(s for s in model.structure.slots if (s.tensor, s.axis) == (consumer.tensor, consumer.axis))
        split = SplitMoments(consumer.tensor, layer.size)
        split.update(rows[layer.spans[0].layer])
        observed[consumer.tensor, consumer.axis] = split
    moments = model.evidence(rows).layers
    responses = {name: layer.moments for name, layer in moments.items()}
    found = readings(model.structure, model.tensors, responses, observed)
    return Evidence(model.structure, model.tensors, responses, found)


def test_a_copied_unit_and_a_dead_unit_go_first():
    model = stack((6, 4))
    rng = np.random.default_rng(1)
    rows = {name: rng.normal(size=(500, layer.units)) for name, layer in model.structure.layers.items()}
    first = next(iter(rows))
    rows[first][:, 4] = 0.0
    rows[first][:, 2] = 0.5 * rows[first][:, 0] - rows[first][:, 1]
    ranking = Reconstruction(ridge=1e-9).rank([evidence_of(model, rows).layers[first]], rng)
    assert ranking.order[0] == 4
    assert ranking.order[1] in (0, 1, 2)
    assert sorted(ranking.order.tolist()) == list(range(6))
    assert ranking.scores[ranking.order[1]] < 1e-5 * ranking.scores[ranking.order[2]]
