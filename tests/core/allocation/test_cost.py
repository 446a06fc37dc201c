from __future__ import annotations

import numpy as np
import pytest

from reprune.core.allocation import Cost
from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel
from reprune.core.criteria import Criterion, Ranking
from reprune.core.decide import decide
from reprune.core.methods import Method
from tests.helpers.builders import stack


class Given(Criterion):
    """Costs that are written down."""

    def __init__(self, costs):
        self.costs = costs

    def rank(self, group, rng):
        scores = np.asarray(self.costs[group[0].name])
        return Ranking(np.argsort(scores), scores)


@pytest.mark.parametrize("of", ["units", "parameters", "macs"])
def test_units_go_by_cost_for_what_the_budget_counts(of):
    model = stack((4, 4), inputs=60, outputs=1)
    costs = {"a": [2.0, 3.0, 5.0, 9.0], "b": [1.0, 1.5, 2.5, 4.0]}
    cost = CostModel(model.structure)
    before = model.structure.counts()
    saved = {name: cost(of, before) - cost(of, {**before, name: 3}) for name in "ab"}
    queue = sorted((value / saved[name], name) for name, values in costs.items() for value in values)
    for goal in (0.2, 0.4, 0.6):
        counts = decide(model.evidence(), Budget(goal, of), Method(Cost(), Given(costs))).counts()
        gone = [name for _, name in queue[: 8 - sum(counts.values())]]
        assert counts == {name: 4 - gone.count(name) for name in "ab"}
    first = {"units": "b", "parameters": "a", "macs": "a"}[of]
    assert queue[0][1] == first


@pytest.mark.parametrize("of", ["units", "parameters"])
def test_layers_that_keep_equally_many_lose_a_unit_each_at_the_sum_of_their_costs(of):
    model = stack((4, 4, 4), inputs=20, count_coupled=[("a", "b")])
    costs = {"a": [9.0, 2.0, 3.0, 1.0], "b": [4.0, 1.0, 2.0, 1.5], "c": [1.2, 1.4, 2.0, 8.0]}
    cost, before = CostModel(model.structure), model.structure.counts()
    together = np.sort(costs["a"]) + np.sort(costs["b"])
    saved = {names: cost(of, before) - cost(of, before | dict.fromkeys(names, 3)) for names in ("ab", "c")}
    prices = {"ab": together / saved["ab"], "c": np.array(costs["c"]) / saved["c"]}
    steps = sorted((price, names) for names, held in prices.items() for price in held[:3])
    counts = dict(before)
    for place in range(6):
        counts |= dict.fromkeys(steps[place][1], counts[steps[place][1][0]] - 1)
        ratio = 1 - cost(of, counts) / cost(of, before)
        plan = decide(model.evidence(), Budget(ratio, of), Method(Cost(), Given(costs)))
        assert plan.counts() == counts
        assert {name: plan.diagnostics.scores[name] for name in costs} == costs
