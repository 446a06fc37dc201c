"""Divergences against SciPy; their gradients against differences; their curvature, over all signs, against Hessians."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy.special import expit, log_softmax, rel_entr, softmax

from reprune.core.answers import divergence
from reprune.core.answers.divergence import (
    Chances,
    Cosine,
    Distribution,
    Numbers,
    Sigmoid,
    Softmax,
    Square,
    apart,
    divergence_of,
    namespace,
    random_signs,
)
from reprune.core.errors import RepruneError


def logits(seed, shape=(3, 4)):
    return np.random.default_rng(seed).normal(size=shape)


def made(kind, seed):
    raw = logits(seed)
    return {Distribution: lambda: softmax(raw, axis=1), Chances: lambda: expit(raw)}.get(kind, lambda: raw)()


KINDS = [Softmax(), Sigmoid(), Distribution(), Chances(), Square(0.7), Cosine(), Numbers(Square(0.7))]


class AllSigns:
    """In place of a generator: every pattern of signs of a row, one after the other; all rows have the same."""

    def __init__(self, patterns):
        self.patterns = iter(patterns)

    def integers(self, low, high, size, dtype):
        assert (low, high) == (0, 2)
        return np.broadcast_to(np.array(next(self.patterns), dtype=dtype), size)


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
    rows = made(type(kind), 4)
    step, hessian = 1e-5, np.zeros((3, 4, 4))
    for place, moved in enumerate(step * np.eye(4)):
        hessian[:, place] = (kind.gradient(rows + moved, rows) - kind.gradient(rows - moved, rows)) / (2 * step)
    np.testing.assert_allclose(curvatures(kind, rows, rows), hessian, rtol=1e-4, atol=1e-7)


def curvatures(kind, found, wanted):
    """Mean of v vᵀ over all 2⁴ signs, of every row (rows × 4 × 4)."""
    drawn = [kind.projection(found, wanted, AllSigns([pattern])) for pattern in product([0, 1], repeat=4)]
    return np.mean([part[:, :, None] * part[:, None, :] for part in drawn], axis=0)


def test_curvature_is_that_halfway_between_both_answers():
    found, wanted, diagonal = logits(4), logits(5), np.eye(4)
    chances, shares = ([of(part) for part in (found, wanted)] for of in (expit, lambda part: softmax(part, axis=1)))
    each, whole = (sum(parts) / 2 for parts in (chances, shares))
    outer = whole[:, :, None] * whole[:, None, :]
    np.testing.assert_allclose(curvatures(Softmax(), found, wanted), whole[:, None] * diagonal - outer, atol=1e-12)
    np.testing.assert_allclose(
        curvatures(Sigmoid(), found, wanted), (each * (1 - each))[:, None] * diagonal, atol=1e-12
    )
    np.testing.assert_allclose(curvatures(Distribution(), *shares), diagonal / whole[:, None], atol=1e-12)
    np.testing.assert_allclose(curvatures(Chances(), *chances), diagonal / (each * (1 - each))[:, None], atol=1e-12)
    np.testing.assert_allclose(curvatures(Square(0.5), found, wanted), np.broadcast_to(diagonal, (3, 4, 4)), atol=1e-12)
    # Of the cosine it is that of the row found: a projection onto what is orthogonal to it, over its squared length.
    square = (found**2).sum(1)[:, None, None]
    across = (diagonal - found[:, :, None] * found[:, None, :] / square) / square
    np.testing.assert_allclose(curvatures(Cosine(), found, wanted), across, atol=1e-12)


def test_certain_answers_are_finite():
    """Probabilities are taken to be from 1e-12 to 1."""
    wanted, found = np.array([[0.0, 1.0], [0.5, 0.5]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    entropy = [12 * np.log(10), 6 * np.log(10) - np.log(2)]
    np.testing.assert_allclose(Distribution().values(found, wanted), entropy, rtol=1e-9)
    np.testing.assert_allclose(Chances().values(found, wanted), 2 * np.array(entropy), rtol=1e-9)
    np.testing.assert_allclose(Distribution().gradient(found, wanted), [[1, 1 - 1e12], [1 - 5e11, 0.5]])
    beyond = np.array([[1.5, -0.5], [-1.0, 2.0]])
    np.testing.assert_array_equal(Distribution().values(beyond, wanted), Distribution().values(found, wanted))
    for kind in (Distribution(), Chances()):
        assert np.isfinite(kind.projection(found, found, np.random.default_rng(0))).all()


def test_curvatures_add_up():
    row = logits(5)[:1]
    patterns = list(product([0, 1], repeat=4))
    drawn = [Numbers(Square(0.7)).projection(row, row, AllSigns(pair)) for pair in product(patterns, patterns)]
    (expected,) = sum(curvatures(kind, row, row) for kind in (Square(0.7), Softmax()))
    np.testing.assert_allclose(np.mean([part.T @ part for part in drawn], axis=0), expected, atol=1e-12)


class TestWhatIsCompared:
    """Which divergence an output gets from what it looks like, and by name."""

    @pytest.mark.parametrize("off", [0.0, 9e-4, -9e-4])
    def test_rows_that_add_up_to_one_are_probabilities(self, off):
        """Up to rounding: of half precision it is some thousandths."""
        rows = softmax(logits(0), axis=1)
        rows[0] *= 1 + off
        assert divergence_of(rows) == Distribution()
        rows[0] *= 1.002 if off >= 0 else 0.998
        assert isinstance(divergence_of(rows), Square)

    @pytest.mark.parametrize("row", [[0.0, 1.0], [1.0, 0.0]])
    def test_certain_probabilities_are_some(self, row):
        assert divergence_of(np.array([row])) == Distribution()
        assert divergence_of(np.array([row]).T, chances=True) == Chances()

    @pytest.mark.parametrize("row", [[1.5, 0.5], [1.5, -0.5], [-0.5, 1.0], [0.5, -0.5]])
    @pytest.mark.parametrize("chances", [False, True])
    def test_probabilities_are_from_0_to_1(self, row, chances):
        assert divergence_of(np.array([row]), chances=chances) == Numbers(Square(np.var(row)))

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
        assert divergence_of(np.ones((3, 1))) == Square(1e-7)  # Nothing is divided by zero.

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


@pytest.mark.parametrize("name", [None, "kl"])
def test_outputs_of_any_shape_are_apart_by_the_mean_over_rows(name):
    found, wanted = logits(0, (2, 3, 4)), logits(1, (2, 3, 4))
    wanted[0, 0, 1] = -np.inf  # Ruled out, whatever was found there.
    counts = np.isfinite(wanted)
    own, dense = (softmax(np.where(counts, part, -np.inf), axis=-1) for part in (found, wanted))
    expected = rel_entr(dense, own)
    if name is None:
        expected = expected + np.where(counts, (found - np.where(counts, wanted, 0)) ** 2, 0) / 4 / wanted[counts].var()
    np.testing.assert_allclose(apart(found, wanted, name), expected.sum(-1).mean(), rtol=1e-9)
    sure = expit(wanted[1])
    both = (rel_entr(sure, expit(found[1])) + rel_entr(1 - sure, 1 - expit(found[1]))).sum(-1).mean()
    np.testing.assert_allclose(apart(expit(found[1]), sure, chances=True), both, rtol=1e-9)
    # Unless it is known that a sigmoid made them, numbers from 0 to 1 are just numbers.
    np.testing.assert_allclose(apart(expit(found[1]), sure), ((expit(found[1]) - sure) ** 2).mean() / sure.var())


def test_softmax_is_over_the_last_axis():
    rows = logits(0, (2, 3, 4))
    np.testing.assert_allclose(divergence.log_softmax(rows), log_softmax(rows, axis=-1), rtol=1e-10)
    np.testing.assert_allclose(divergence.softmax(rows), softmax(rows, axis=-1), rtol=1e-10)


def test_signs_are_as_often_negative():
    signs = random_signs(np.random.default_rng(0), np.zeros((100, 50), dtype=np.float32))
    assert signs.dtype == np.float32
    assert set(signs.ravel().tolist()) == {-1, 1}
    assert abs(signs.mean()) < 4 / 5000**0.5


def test_other_libraries_bring_their_own_operations(monkeypatch):
    class Own:
        """No array of any library."""

    monkeypatch.setattr(divergence, "NAMESPACES", [lambda rows: "theirs" if isinstance(rows, Own) else None])
    assert namespace(Own()) == "theirs"
    assert namespace(np.zeros(1)) is array_namespace(np.zeros(1))
