"""The order of removal equals the one found by refitting every candidate from scratch."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from reprune.core.budget.budget import Budget
from reprune.core.criteria.reconstruction import Elimination, Reconstruction
from reprune.core.decide import decide
from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.readings import SplitMoments, readings
from reprune.core.layers import Consumer, Layer, Slot, Span, Structure
from reprune.core.methods import Method
from tests.helpers.builders import stack


def refitted_error(moments, weights, gone):
    """Squared error of the consumer's output when `gone` is predicted from the rest by least squares."""
    stay = [u for u in range(len(moments)) if u not in gone]
    coefficients = np.linalg.solve(moments[np.ix_(stay, stay)], moments[np.ix_(stay, gone)]).T
    residual = moments[np.ix_(gone, gone)] - coefficients @ moments[np.ix_(stay, gone)]
    return float(np.trace(weights[gone].T @ residual @ weights[gone]))


@pytest.mark.parametrize("block", [1, 3, 48])
def test_costs_are_those_of_refitting_from_scratch(block, monkeypatch):
    monkeypatch.setattr(Elimination, "BLOCK", block)
    rng = np.random.default_rng(block)
    rows = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
    moments, weights = rows.T @ rows / 300, rng.normal(size=(12, 20))
    elimination = Elimination.start(moments, weights @ weights.T, 1e-14)
    gone, left = [], list(range(12))
    while len(left) > 1:
        so_far = refitted_error(moments, weights, gone) if gone else 0.0
        expected = [refitted_error(moments, weights, [*gone, feature]) - so_far for feature in left]
        np.testing.assert_allclose(elimination.costs()[left], expected, rtol=1e-6)
        cheapest = left[int(np.argmin(expected))]
        elimination.remove(cheapest)
        left.remove(cheapest)
        gone.append(cheapest)


@pytest.mark.parametrize("ridge", [1e-2, None])
def test_the_ridge_is_a_share_of_the_mean_square(ridge):
    rng = np.random.default_rng(1)
    rows, weight = 30 * rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(3, 7))
    criterion = Reconstruction() if ridge is None else Reconstruction(ridge)
    ranking = criterion.rank([two_towers((7,), 1, rows, weight).layers["a"]], rng)
    moments = rows.T @ rows / 50
    inverse = np.linalg.inv(moments + (ridge or 1e-4) * np.trace(moments) / 7 * np.eye(7))
    costs = (weight**2).sum(axis=0) / inverse.diagonal()
    assert ranking.order[0] == np.argmin(costs)
    assert ranking.scores[ranking.order[0]] == pytest.approx(costs.min(), rel=1e-6)


@pytest.mark.timeout(20)
def test_units_that_nothing_reads_are_ranked_too():
    unread = SimpleNamespace(units=3, readings=())
    ranking = Reconstruction().rank([unread], np.random.default_rng(0))
    assert sorted(ranking.order.tolist()) == [0, 1, 2]
    assert not ranking.scores.any()


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


def two_towers(sizes, each, rows, weight):
    """Layers side by side that one linear output reads, every unit at `each` positions."""
    names = [chr(ord("a") + place) for place in range(len(sizes))]
    spans, start = [], 0
    for name, units in zip(names, sizes, strict=True):
        spans.append(Span(start, name, 0, units, each))
        start += units * each
    slot = Slot("out", 1, start, "reads", tuple(spans))
    structure = Structure(
        layers={name: Layer(name, "lstm", units, None) for name, units in zip(names, sizes, strict=True)},
        slots=(slot,),
        shapes={"out": weight.shape},
        index_coupled=tuple((name,) for name in names),
        count_coupled=(),
        consumers=(Consumer("out", 1),),
    )
    split = SplitMoments("out", start)
    split.update(rows)
    found = readings(structure, {"out": weight}, {}, {("out", 1): split})
    return Evidence(structure, {"out": weight}, {}, found)


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("seed", range(8))
def test_layers_that_are_read_together_lose_units_in_one_sequence(each, seed):
    rng = np.random.default_rng(seed)
    width, savings = 10 * each, {"a": 1.0, "b": 3.0}
    # What one layer holds the other mostly holds as well: whose unit goes first decides which goes next.
    rows = rng.normal(size=(400, width)) @ (np.eye(width) + rng.normal(size=(width, width)))
    rows[:, : 4 * each] = rows[:, 4 * each : 8 * each] + 0.3 * rng.normal(size=(400, 4 * each))
    weight = rng.normal(size=(5, width))
    layers = two_towers((4, 6), each, rows, weight).layers
    ranked = Reconstruction(ridge=1e-12).rank_all([[[layers[name]]] for name in "ab"], list(savings.values()), rng)
    orders = {name: found[0].order.tolist() for name, found in zip("ab", ranked, strict=True)}
    moments = rows.T @ rows / 400
    left, gone = [("a", unit) for unit in range(4)] + [("b", unit) for unit in range(6)], []
    while len(left) > 1:

        def places(name, unit):
            return [((name == "b") * 4 + unit) * each + place for place in range(each)]

        def price(owner, gone=tuple(gone)):
            """Rise of the error with each position of a unit, for what the unit saves."""
            so_far = refitted_error(moments, weight.T, list(gone)) if gone else 0.0
            rises = [refitted_error(moments, weight.T, [*gone, place]) - so_far for place in places(*owner)]
            return sum(rises) / savings[owner[0]]

        name, unit = min(left, key=price)
        assert orders[name].pop(0) == unit
        left.remove((name, unit))
        gone += places(name, unit)


def test_layers_that_lose_the_same_units_are_read_by_one_weight():
    rng = np.random.default_rng(2)
    rows, weight = rng.normal(size=(300, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(3, 8))
    layers = two_towers((4, 4), 1, rows, weight).layers
    ranking = Reconstruction(ridge=1e-12).rank([layers["a"], layers["b"]], rng)
    moments, left, gone = rows.T @ rows / 300, [0, 1, 2, 3], []
    while len(left) > 1:
        so_far = refitted_error(moments, weight.T, gone) if gone else 0.0
        rises = {
            unit: sum(refitted_error(moments, weight.T, [*gone, place]) - so_far for place in (unit, 4 + unit))
            for unit in left
        }
        unit = min(left, key=rises.__getitem__)
        assert ranking.order[4 - len(left)] == unit
        np.testing.assert_allclose(ranking.scores[unit], rises[unit], rtol=1e-6)
        left.remove(unit)
        gone += [unit, 4 + unit]


def test_groups_of_one_set_lose_units_in_step():
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(300, 8)) * np.array([1, 1, 1, 1, 9, 9, 9, 9.0])
    layers = two_towers((4, 4), 1, rows, rng.normal(size=(3, 8))).layers
    criterion = Reconstruction()
    coupled = criterion.rank_all([[[layers["a"]], [layers["b"]]]], [1.0], rng)[0]
    assert [sorted(ranking.order.tolist()) for ranking in coupled] == [[0, 1, 2, 3]] * 2
    # Alone, all of the quiet layer goes before the loud one loses a unit, and its costs know nothing of that.
    alone = criterion.rank_all([[[layers["a"]]], [[layers["b"]]]], [1.0, 1.0], rng)
    assert alone[0][0].scores.max() < alone[1][0].scores.min()
    assert not np.allclose(alone[1][0].scores, coupled[1].scores)


@pytest.mark.parametrize("method", [Method("cost", "reconstruction"), "reconstruct"])
def test_a_layer_that_never_responds_costs_nothing_and_goes_first(method):
    model, rng = stack((6, 6)), np.random.default_rng(0)
    evidence = evidence_of(model, {"a": np.zeros((300, 6)), "b": 0.01 * rng.normal(size=(300, 6))})
    plan = decide(evidence, Budget(0.4), method)
    assert plan.counts() == {"a": 1, "b": 6}
    assert max(plan.diagnostics.scores["a"]) < 1e-300


def test_a_layer_that_keeps_all_units_stands_in_for_the_others():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 10))
    # The first two units of the second layer are the first two of the first one over again.
    rows[:, 4:6] = rows[:, :2] + 1e-3 * rng.normal(size=(300, 2))
    evidence = two_towers((4, 6), 1, rows, rng.normal(size=(3, 10)))
    whole = decide(evidence, Budget(0.5), "reconstruct", counts={"b": 6, "a": 2})
    assert whole.kept == {"a": [2, 3], "b": list(range(6))}
    assert [fold.tensor for fold in whole.folds] == ["out"]
    assert whole.kept == decide(evidence, Budget(0.5), "reconstruct", exclude=["b"], counts={"a": 2}).kept
