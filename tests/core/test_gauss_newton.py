"""Refitted consumers: least squares where that is the answer, the optimum of SciPy where there is a softmax."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from reprune.core.answers.answers import Answers
from reprune.core.answers.gauss_newton import (
    DAMPINGS,
    ENOUGH,
    LENGTHS,
    Refitted,
    Seen,
    _Factor,
    _steps,
    last_consumers,
    refit,
)
from reprune.core.layers import Consumer
from tests.helpers.builders import stack


class Linear:
    """A student in NumPy: one matrix with a bias, between fixed features and the answers."""

    def __init__(self, features, dense, divergence, axis=1):
        rng = np.random.default_rng(0)
        self.features, self.axis = features, axis
        self.weight = rng.normal(size=(dense[0].shape[1], features[0].shape[1]))
        self.weight = self.weight if axis == 1 else self.weight.T
        self.bias = np.zeros(dense[0].shape[1])
        self.answers = Answers(list(range(len(features))), lambda batch: [dense[batch]], divergence)
        seen = Seen([Consumer("w", axis, "b")], {"w": self.weight.shape, "b": self.bias.shape})
        for rows in features:
            seen.add("w", rows)
        self.weights = seen.weights()

    def run(self, batch):
        weight = self.weight if self.axis == 1 else self.weight.T
        return [self.features[batch] @ weight.T + self.bias]

    def read(self, names):
        return {name: {"w": self.weight, "b": self.bias}[name].copy() for name in names}

    def write(self, tensors):
        self.weight, self.bias = tensors["w"], tensors["b"]

    def divergence(self):
        return self.answers.divergence(self.run, self.answers.places, "judged")

    def gradients(self, names, rng):
        for batch, rows in enumerate(self.features):
            for _, *given in self.answers.cotangents(batch, self.run(batch), rng):
                yield tuple(
                    {"w": part.T @ rows if self.axis == 1 else rows.T @ part, "b": part.sum(0)} for part in given
                )


def problem(outputs=3, batches=40, rows=60, seed=1):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(5, 5))
    features = [rng.normal(size=(rows, 5)) @ mixing + 1 for _ in range(batches)]
    true = rng.normal(size=(outputs, 5))
    return features, [part @ true.T + 0.5 * np.sin(3 * part[:, :outputs]) for part in features]


@pytest.mark.parametrize("axis", [0, 1])
def test_on_a_linear_gaussian_problem_it_is_least_squares(axis):
    features, dense = problem()
    student = Linear(features, dense, "mse", axis)
    student.weight = student.weight.astype(np.float32)
    reached, changed = refit(student, student.answers, np.random.default_rng(0))
    assert reached == student.divergence()
    assert {name: value.dtype for name, value in changed.items()} == {"w": np.float32, "b": np.float64}
    np.testing.assert_allclose(changed["w"], student.weight, rtol=1e-6)
    np.testing.assert_array_equal(changed["b"], student.bias)
    rows, wanted = np.concatenate(features), np.concatenate(dense)
    rows = np.column_stack([rows, np.ones(len(rows))])
    best = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    weight = student.weight if axis == 1 else student.weight.T
    found = np.column_stack([weight, student.bias]).T
    errors = [np.square(rows @ solution - wanted).mean() for solution in (np.zeros_like(best), found, best)]
    assert errors[1] < errors[2] + 0.01 * errors[0]


def test_with_a_softmax_it_comes_to_the_optimum():
    features, dense = problem(outputs=4)
    student = Linear(features, dense, "kl")
    before = student.divergence()
    refit(student, student.answers, np.random.default_rng(0))

    compared = student.answers.compared
    pairs = [pair for batch in student.answers.places for pair in compared(batch, [dense[batch]], "fit")]
    rows = np.concatenate([features[batch][pair.rows] for batch, pair in enumerate(pairs)])
    rows, wanted = np.column_stack([rows, np.ones(len(rows))]), softmax(np.concatenate([p.wanted for p in pairs]), 1)

    def divergence(flat):
        """Mean of KL(wanted ‖ found), and its gradient."""
        found = log_softmax(rows @ flat.reshape(4, 6).T, 1)
        value = np.mean(np.sum(wanted * (np.log(wanted) - found), axis=1))
        return value, ((np.exp(found) - wanted).T @ rows).ravel() / len(rows)

    reached = divergence(np.column_stack([student.weight, student.bias]).ravel())[0]
    best = minimize(divergence, np.zeros(24), jac=True, method="L-BFGS-B").fun
    assert before > 5 * best
    assert reached - best < 0.05 * (before - best)


def test_what_rows_to_judge_by_do_not_confirm_is_not_done():
    features, dense = problem(batches=2)
    student = Linear(features, dense, "mse")
    start = student.read(["w", "b"])
    values = iter([1.0, *[2.0] * 100])
    student.answers.divergence = lambda *_: next(values)
    assert refit(student, student.answers, np.random.default_rng(0)) == (1.0, {})
    np.testing.assert_array_equal(student.weight, start["w"])
    assert next(values) == 2.0
    # One sweep tries every damping and length and is the last one, as nothing was gained.
    assert len([*values]) == 100 - len(DAMPINGS) * len(LENGTHS) - 1
    values = iter([0.0] * 100)  # Answers that are the same already: nothing is to be gained.
    assert refit(student, student.answers, np.random.default_rng(0)) == (0.0, {})
    assert len([*values]) == 100 - len(DAMPINGS) * len(LENGTHS) - 1


def test_where_nothing_can_be_refitted_nothing_is():
    features, dense = problem(batches=2)
    student = Linear(features, dense, "mse")
    student.gradients = lambda names, rng: iter(())  # As of a model without any gradient.
    assert refit(student, student.answers, np.random.default_rng(0)) == (student.divergence(), {})
    student.weights, student.gradients = [], None
    assert refit(student, student.answers, np.random.default_rng(0)) == (student.divergence(), {})


def test_sweeps_go_on_with_the_damping_that_did_best_until_little_is_gained():
    """Of six values the third is the best: with its damping sweeps go on, until one gains too little."""
    features, dense = problem(batches=2)
    student = Linear(features, dense, "mse")
    (step,) = _steps(student, [_Factor(student.weights[0].moments)], np.random.default_rng(0), ["w", "b"])
    better, best = 0.5 * (1 - 1.5 * ENOUGH), 0.5 * (1 - 2 * ENOUGH)
    values, written = iter([1.0, 0.9, 0.8, 0.5, 0.7, 0.8, 0.9, better, 0.6, 0.6, best]), []
    start, write = np.column_stack([student.weight, student.bias]), student.write
    student.answers.divergence = lambda *_: next(values)
    student.write = lambda tensors: (written.append(np.column_stack([tensors["w"], tensors["b"]])), write(tensors))
    reached, changed = refit(student, student.answers, np.random.default_rng(0))
    assert (reached, len(written)) == (best, 6 + 1 + 2 + 1 + 2 + 1)
    for trial, (damping, length) in zip(written, product(DAMPINGS, LENGTHS), strict=False):
        np.testing.assert_allclose(trial, start - length * step(damping))
    for taken, trial in ((6, 2), (9, 7), (12, 11)):
        np.testing.assert_array_equal(written[taken], written[trial])
    np.testing.assert_array_equal(np.column_stack([changed["w"], changed["b"]]), written[11])


@pytest.mark.parametrize("wide", [False, True])
def test_a_step_is_the_gradient_over_both_factors(monkeypatch, wide):
    """(S + d · diag S)⁻¹ G (A + d · diag A)⁻¹; of very many outputs S is its diagonal."""
    monkeypatch.setattr("reprune.core.answers.gauss_newton.WIDE", 2 if wide else 3)
    features, dense = problem(batches=3)
    student = Linear(features, dense, "mse")
    rows = np.concatenate(features)
    rows = np.column_stack([rows, np.ones(len(rows))])
    moments = rows.T @ rows / len(rows)
    np.testing.assert_allclose(student.weights[0].moments, moments, rtol=1e-12)
    gradient, curvature = np.zeros((3, 6)), np.zeros((3, 3))
    for slope, drawn in student.gradients(["w", "b"], np.random.default_rng(0)):
        gradient += np.column_stack([slope["w"], slope["b"]])
        drawn = np.column_stack([drawn["w"], drawn["b"]])
        curvature += drawn @ np.linalg.solve(moments, drawn.T) / 6
    curvature = np.diag(np.diagonal(curvature)) if wide else curvature
    (step,) = _steps(student, [_Factor(student.weights[0].moments)], np.random.default_rng(0), ["w", "b"])
    for damping in (0.1, 1.0):
        sides = [matrix + damping * np.diag(np.diagonal(matrix)) for matrix in (curvature, moments)]
        expected = np.linalg.solve(sides[0], gradient) @ np.linalg.inv(sides[1])
        np.testing.assert_allclose(step(damping), expected, rtol=1e-3, atol=1e-6 * abs(expected).max())


def test_a_direction_in_which_nothing_happened_is_left_alone():
    rows = np.array([[1.0, 0.0], [2.0, 0.0]])
    for matrix in (np.diag([4.0, 0.0]), np.array([4.0, 0.0]), np.array([4.0, -1e-20])):
        np.testing.assert_allclose(_Factor(matrix).solve(rows, 0.5), rows / 6, rtol=1e-5)
    same = np.ones((2, 2))  # Two features that are the same: their difference never happened.
    np.testing.assert_allclose(_Factor(same).solve(np.array([[1.0, -1.0]]), 1e-6), [[5e5, -5e5]], rtol=1e-5)
    for matrix in (np.zeros((2, 2)), np.zeros(2)):
        assert not _Factor(matrix).solve(0 * rows, 0.5).any()


def test_a_bias_that_is_no_entry_per_output_is_left_alone():
    seen = Seen([Consumer("conv", 1, "b")], {"conv": (4, 2, 3), "b": (4,)})
    seen.add("conv", np.ones((5, 2)))
    (weight,) = seen.weights()
    assert weight.bias is None
    np.testing.assert_array_equal(weight.moments, np.ones((2, 2)))
    tensor = np.random.default_rng(0).normal(size=(4, 2, 3))
    step = np.random.default_rng(1).normal(size=(12, 2))
    moved = weight.moved({"conv": tensor}, step)["conv"]
    np.testing.assert_allclose(weight.matrix({"conv": moved}), weight.matrix({"conv": tensor}) + step)


def test_a_bias_goes_with_a_weight_of_which_it_has_one_entry_per_output():
    shapes = {"w": (4, 2), "turned": (2, 4), "other": (4, 4), "b": (4,), "deep": (4, 1)}
    for tensor, axis, bias, taken in [
        ("w", 1, "b", "b"), ("turned", 0, "b", "b"), ("other", 0, "b", "b"), ("w", 0, "b", None),
        ("turned", 1, "b", None), ("w", 1, None, None), ("w", 1, "gone", None), ("w", 1, "deep", None),
    ]:  # fmt: skip
        seen = Seen([Consumer(tensor, axis, bias), Consumer("unseen", 0)], {**shapes, "unseen": (1, 1)})
        seen.add(tensor, np.ones((5, 2)))
        (weight,) = seen.weights()
        assert (weight.tensor, weight.axis, weight.bias) == (tensor, axis, taken)
        np.testing.assert_array_equal(weight.moments, np.ones((2 + (taken is not None),) * 2))


def test_only_what_nothing_recurrent_comes_after_is_refitted():
    structure = stack((4, 3)).structure
    tensors = {consumer.tensor for consumer in structure.consumers}
    heard = []

    def responses(changed):
        heard.append([consumer.tensor for consumer in changed])
        return 0

    found = last_consumers(structure, tensors, responses)
    assert [consumer.tensor for consumer in found] == ["out.weight"]
    assert heard == [[], ["out.weight"]]
    assert last_consumers(structure, tensors, lambda changed: len(changed)) == []
    # What is no tensor by itself cannot be set, and what a layer's own rows are in has a recurrence after it.
    assert last_consumers(structure, tensors - {"out.weight"}, responses) == []

    def disturbed(changed):
        return any(consumer.tensor == "b" for consumer in changed)

    both = replace(structure, slots=(), consumers=(Consumer("a", 0), Consumer("b", 0), Consumer("a", 1)))
    assert last_consumers(both, {"a", "b"}, disturbed) == [Consumer("a", 1)]


def test_a_width_s_own_weight_may_be_refitted():
    """A linear layer without a recurrence owns its rows, and reads a layer's units with its columns."""
    structure = stack((4, 3)).structure
    layers = {**structure.layers, "b": replace(structure.layers["b"], cell="linear")}
    heard = []
    found = last_consumers(replace(structure, layers=layers), {*structure.shapes}, heard.append)
    assert [consumer.tensor for consumer in found] == ["b.w_ih", "b.w_hh", "out.weight"]
    assert heard == [[], found]  # Where all of them together change nothing, none is asked about by itself.


def test_weights_as_a_matrix():
    weight = Refitted("w", 0, "b", np.eye(3))
    tensors = {"w": np.arange(6.0).reshape(2, 3), "b": np.array([7.0, 8.0, 9.0])}
    np.testing.assert_array_equal(weight.matrix(tensors), [[0, 3, 7], [1, 4, 8], [2, 5, 9]])
    step = np.array([[1.0, 4.0, 7.0], [2.0, 5.0, 8.0], [3.0, 6.0, 9.0]])
    moved = weight.moved(tensors, step)
    np.testing.assert_array_equal(moved["w"] - tensors["w"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(moved["b"] - tensors["b"], [7, 8, 9])
