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
