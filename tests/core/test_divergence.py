"""Divergences against SciPy; their gradients against differences; their curvature, over all signs, against Hessians."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.special import expit, log_softmax, rel_entr, softmax

from reprune.core.answers.divergence import (
    Chances,
    Cosine,
    Distribution,
    Numbers,
    Sigmoid,
    Softmax,
    Square,
    divergence_of,
)
from reprune.core.errors import RepruneError


def logits(seed, shape=(3, 4)):
    return np.random.default_rng(seed).normal(size=shape)


def made(kind, seed):
    raw = logits(seed)
    return {Distribution: lambda: softmax(raw, axis=1), Chances: lambda: expit(raw)}.get(kind, lambda: raw)()


KINDS = [Softmax(), Sigmoid(), Distribution(), Chances(), Square(0.7), Cosine(), Numbers(Square(0.7))]


class AllSigns:
    """In place of a generator: every pattern of signs of one row, one after the other."""

    def __init__(self, patterns):
        self.patterns = iter(patterns)

    def integers(self, low, high, size, dtype):
        return np.array(next(self.patterns), dtype=dtype).reshape(size)


def test_values():
    found, wanted = logits(0), logits(1)
    p, q = expit(found), expit(wanted)
    entropy = rel_entr(softmax(wanted, axis=1), softmax(found, axis=1)).sum(1)
    both = (rel_entr(q, p) + rel_entr(1 - q, 1 - p)).sum(1)
    np.testing.assert_allclose(Softmax().values(found, wanted), entropy, rtol=1e-10)
    np.testing.assert_allclose(Sigmoid().values(found, wanted), both, rtol=1e-10)
    np.testing.assert_allclose(Chances().values(p, q), both, rtol=1e-9)
    np.testing.assert_allclose(Distribution().values(softmax(found, 1), softmax(wanted, 1)), entropy, rtol=1e-9)
    np.testing.assert_allclose(Square(2.0).values(found, wanted), ((found - wanted) ** 2).mean(1) / 2)
    angles = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    np.testing.assert_allclose(Cosine().values(found, wanted), 1 - angles, rtol=1e-9)


def test_large_logits_do_not_overflow():
    found, wanted = logits(0) + 1e4, 1e3 * logits(1)
    apart = (softmax(wanted, axis=1) * (log_softmax(wanted, axis=1) - log_softmax(found, axis=1))).sum(1)
    np.testing.assert_allclose(Softmax().values(found, wanted), apart, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_gradients_are_those_of_the_values(kind):
    found, wanted = made(type(kind), 2), made(type(kind), 3)
    step, gradient = 1e-6, np.zeros_like(found)
    for place in np.ndindex(*found.shape):
        moved = [found.copy(), found.copy()]
        moved[0][place] += step
        moved[1][place] -= step
        gradient[place] = (kind.values(moved[0], wanted) - kind.values(moved[1], wanted)).sum() / (2 * step)
    np.testing.assert_allclose(kind.gradient(found, wanted), gradient, rtol=1e-5, atol=1e-7)


def test_a_row_of_zeros_is_pulled_towards_the_wanted_direction():
    wanted = logits(1)
    assert ((Cosine().gradient(np.zeros_like(wanted), wanted) * wanted).sum(1) < 0).all()


@pytest.mark.parametrize("kind", KINDS[:-1], ids=lambda kind: type(kind).__name__)
def test_projections_have_the_curvature_where_both_answers_agree(kind):
    """There, the Hessian is the curvature of Gauss-Newton; the mean over all 2⁴ signs is exact."""
    row = made(type(kind), 4)[:1]
    patterns = list(product([0, 1], repeat=4))
    drawn = [kind.projection(row, row, AllSigns([pattern])) for pattern in patterns]
    mean = np.mean([part.T @ part for part in drawn], axis=0)
    step, hessian = 1e-5, np.zeros((4, 4))
    for place in range(4):
        moved = [row.copy(), row.copy()]
        moved[0][0, place] += step
        moved[1][0, place] -= step
        hessian[place] = (kind.gradient(moved[0], row) - kind.gradient(moved[1], row))[0] / (2 * step)
    if isinstance(kind, Cosine):
        # The length of a row has no gradient at all, but its Hessian is that of a projection onto the sphere.
        assert abs(mean @ row[0]).max() < 1e-10
    np.testing.assert_allclose(mean, hessian, rtol=1e-4, atol=1e-7)


def test_curvatures_add_up():
    row = logits(5)[:1]
    patterns = list(product([0, 1], repeat=4))
    kind = Numbers(Square(0.7))
    drawn = [kind.projection(row, row, AllSigns(pair)) for pair in product(patterns, patterns)]
    apart = [Square(0.7).projection(row, row, AllSigns([p])) for p in patterns]
    soft = [Softmax().projection(row, row, AllSigns([p])) for p in patterns]
    expected = sum(np.mean([part.T @ part for part in parts], axis=0) for parts in (apart, soft))
    np.testing.assert_allclose(np.mean([part.T @ part for part in drawn], axis=0), expected, atol=1e-12)


class TestWhatIsCompared:
    """Which divergence an output gets from what it looks like, and by name."""

    def test_rows_that_add_up_to_one_are_probabilities(self):
        assert divergence_of(softmax(logits(0), axis=1)) == Distribution()

    def test_numbers_of_a_sigmoid_are_probabilities_each(self):
        assert divergence_of(expit(logits(0)), chances=True) == Chances()

    def test_other_numbers_from_0_to_1_are_numbers(self):
        embeddings = np.maximum(logits(0), 0)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        assert divergence_of(embeddings) == Square(embeddings.var())

    def test_anything_else_may_be_logits(self):
        assert divergence_of(logits(0)) == Numbers(Square(logits(0).var()))

    def test_a_single_number_is_no_class(self):
        assert divergence_of(logits(0)[:, :1]) == Square(logits(0)[:, :1].var())

    @pytest.mark.parametrize(
        ("name", "of_logits", "of_probabilities"),
        [("kl", Softmax(), Distribution()), ("bce", Sigmoid(), Chances()), ("cosine", Cosine(), Cosine())],
    )
    def test_names(self, name, of_logits, of_probabilities):
        assert divergence_of(logits(0), name) == of_logits
        assert divergence_of(softmax(logits(0), axis=1), name) == of_probabilities

    def test_unknown_names_are_refused(self):
        with pytest.raises(RepruneError, match="kl, bce, mse, cosine"):
            divergence_of(logits(0), "euclid")


def test_classes_ruled_out_do_not_count_in_the_variance():
    wanted = np.concatenate([logits(0), np.full((3, 1), -np.inf)], axis=1)
    kind = divergence_of(wanted)
    assert isinstance(kind, Numbers)
    np.testing.assert_allclose(kind.square.variance, logits(0).var())
    assert np.isfinite(log_softmax(np.where(np.isfinite(wanted), wanted, -1e4), axis=1)).all()
