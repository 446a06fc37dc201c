from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy

from reprune.core.allocation import KL, Energy
from reprune.core.allocation.kl import kept_share
from reprune.core.budget.budget import Budget
from reprune.core.criteria import Ranking
from reprune.core.decide import decide
from reprune.core.errors import BudgetError
from reprune.core.methods import Method
from tests.helpers.builders import responses, stack

SPECTRA = {"a": [8.0, 1.0, 0.5, 0.25, 0.2, 0.05], "b": [3.0, 2.5, 2.0, 1.5]}


def evidence():
    return stack((6, 4)).evidence({name: responses(spectrum) for name, spectrum in SPECTRA.items()})


def published(spectrum):
    """Units to keep as the paper says, the divergence by SciPy."""
    units = len(spectrum)
    divergence = entropy(np.asarray(spectrum) / sum(spectrum), np.full(units, 1 / units))
    return math.ceil(units * (1 - divergence / math.log(units)))


@pytest.mark.parametrize("spectra", [[[8.0, 1.0, 0.5, 0.25]], [[4.0, 0.0, 0.0], [3.0, 2.0, 0.5]]])
def test_at_a_factor_a_layer_loses_that_times_what_the_rule_asks(spectra):
    units = len(spectra[0])
    layers = [stack((units,)).evidence({"a": responses(spectrum)}).layers["a"] for spectrum in spectra]
    lost = [units * entropy(np.array(s) / sum(s), np.full(units, 1 / units)) / math.log(units) for s in spectra]
    thresholds = KL().thresholds(layers, Ranking(np.arange(0), np.zeros(0)))
    np.testing.assert_allclose(thresholds * np.mean(lost), [1.0, 2.0, 3.0, 4.0][:units])


def test_a_single_unit_is_all_of_a_layer():
    assert kept_share(np.array([3.0])) == 1.0


def test_without_a_ratio_it_is_the_published_rule():
    plan = decide(evidence(), Budget(None), "pfa-kl")
    assert plan.counts() == {name: published(spectrum) for name, spectrum in SPECTRA.items()}
    assert plan.ratio == pytest.approx(1 - sum(plan.counts().values()) / 10)


def test_a_ratio_scales_what_each_layer_loses():
    lost = {name: len(spectrum) - published(spectrum) for name, spectrum in SPECTRA.items()}
    plan = decide(evidence(), Budget(0.5), "pfa-kl")
    assert 10 - sum(plan.counts().values()) == 5
    assert plan.counts()["a"] < 6 - lost["a"] / 2
    assert plan.counts()["b"] >= 3


def test_spectra_at_the_ends():
    even = stack((4,)).evidence({"a": responses([1.0] * 4)})
    assert decide(even, Budget(None), "pfa-kl").counts() == {"a": 4}
    assert decide(even, Budget(0.5), "pfa-kl").counts() == {"a": 2}
    dead = stack((4,)).evidence({"a": np.zeros((9, 4))})
    assert decide(dead, Budget(None), Method(KL(), "random")).counts() == {"a": 1}


def test_energy_with_a_threshold_of_its_own_needs_no_ratio():
    plan = decide(evidence(), Budget(None), Method(Energy(threshold=0.8), "random"))
    assert plan.counts() == {"a": 1, "b": 3}
    # The published share is 95%: 9.5 of 10, and all but 1.5 of 9 are less.
    assert decide(evidence(), Budget(None), "pfa-en").counts() == {"a": 3, "b": 4}
    with pytest.raises(BudgetError, match="give ratio="):
        decide(evidence(), Budget(None), "iss-gm")
