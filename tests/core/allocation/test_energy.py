from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprune.core.allocation.energy import Energy, components
from reprune.core.budget.budget import Block, Budget, allocate
from reprune.core.budget.cost import COUNTED, CostModel
from reprune.core.criteria import Ranking
from reprune.core.evidence.evidence import LayerEvidence
from reprune.core.evidence.moments import Moments
from tests.helpers.builders import responses, stack

UNUSED = Ranking(np.arange(0), np.zeros(0))


def layer_with(spectrum):
    moments = Moments("a", len(spectrum))
    count = 10
    scatter = np.diag(np.asarray(spectrum, dtype=float)) * count
    moments.restore({"count": count, "mean": np.zeros(len(spectrum)), "scatter": scatter})
    return LayerEvidence(stack((len(spectrum),)).structure, {}, "a", moments)


def components_kept(spectrum, tau):
    """k(τ), word for word: the smallest k whose k leading eigenvalues hold the share τ of their sum."""
    total = sum(spectrum)
    for k in range(1, len(spectrum)):
        if sum(spectrum[:k]) / total >= tau:
            return k
    return len(spectrum)


def bisect_threshold(spectra, of, ratio, cost, before):
    """ISS-GM's search: halve the interval of τ until no model lies between its ends; then the nearer end."""
    low, high = 0.0, 1.0  # removes too much, removes too little
    total = cost(of, before)

    def model(tau):
        counts = {name: components_kept(spectrum, tau) for name, spectrum in spectra.items()}
        return counts, (total - cost(of, counts)) / total

    for _ in range(60):
        middle = (low + high) / 2
        if model(middle)[1] >= ratio:
            low = middle
        else:
            high = middle
    (small, much), (large, little) = model(low), model(high)
    return small if much - ratio < ratio - little - 1e-9 else large


@given(
    st.lists(st.integers(2, 12), min_size=1, max_size=3),
    st.floats(0.01, 0.8),
    st.sampled_from(COUNTED),
    st.integers(0, 2**32 - 1),
)
def test_thresholds_equal_a_literal_bisection(units, ratio, of, seed):
    rng = np.random.default_rng(seed)
    model = stack(units)
    cost, before = CostModel(model.structure), model.structure.counts()
    spectra = {name: np.sort(rng.gamma(0.3, size=size) + 1e-3)[::-1] for name, size in before.items()}
    smallest = dict.fromkeys(before, 1)
    ratio = ratio * (1 - cost(of, smallest) / cost(of, before))
    blocks = [Block((name,), Energy().thresholds([layer_with(spectra[name])], UNUSED)) for name in before]
    assert allocate(Budget(ratio, of), blocks, cost, before) == bisect_threshold(spectra, of, ratio, cost, before)


@given(st.integers(1, 20), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_components_follow_the_definition(units, tau, seed):
    spectrum = np.sort(np.random.default_rng(seed).gamma(0.5, size=units) + 1e-6)[::-1]
    assert components(spectrum, tau) == components_kept(spectrum, tau)


def test_a_threshold_that_is_met_exactly_counts():
    assert [components(np.array([4.0, 3.0, 2.0, 1.0]), tau) for tau in (0.4, 0.7, 0.9, 0.91, 1.0)] == [1, 2, 3, 4, 4]


def test_a_concentrated_spectrum_loses_more():
    concentrated, flat = (Energy().thresholds([layer_with(s)], UNUSED) for s in ([8, 1, 0.5, 0.5], [3, 3, 2, 2]))
    assert np.all(concentrated[:-1] < flat[:-1])


def test_small_tails_keep_their_digits():
    spectrum = [1.0, 1e-13, 1e-17, 1e-20]
    np.testing.assert_allclose(
        Energy().thresholds([layer_with(spectrum)], UNUSED)[:3], [1e-20, 1.001e-17, 1.0001001e-13], rtol=1e-9
    )


def test_a_dead_layer_goes_first():
    dead = Energy().thresholds([layer_with([0.0, 0.0, 0.0])], UNUSED)
    np.testing.assert_array_equal(dead, np.zeros(3))
    assert components(np.zeros(3), 0.5) == 0


def test_layers_that_go_together_share_the_mean_of_their_shares():
    first, second = [3.0, 1.0], [60.0, 40.0]
    together = Energy().thresholds([layer_with(first), layer_with(second)], UNUSED)
    np.testing.assert_allclose(together, [(0.25 + 0.4) / 2, 1.0])


def test_spectra_come_from_responses():
    spectrum = np.array([5.0, 2.0, 1.0, 0.25])
    layer = stack((4,)).evidence({"a": responses(spectrum)}).layers["a"]
    np.testing.assert_allclose(Energy().thresholds([layer], UNUSED), np.cumsum(spectrum[::-1]) / 8.25, rtol=1e-10)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_fewer_rows_than_units(rows):
    layer = stack((6,)).evidence({"a": np.random.default_rng(0).normal(size=(rows, 6))}).layers["a"]
    thresholds = Energy().thresholds([layer], UNUSED)
    assert np.all(np.diff(thresholds) >= 0)
    # n rows span n − 1 directions: no other component holds energy.
    np.testing.assert_allclose(thresholds[: 6 - (rows - 1)], 0.0, atol=1e-14)
