"""Refitted consumers: least squares where that is the answer, the optimum of SciPy where there is a softmax."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from reprune.core.answers.answers import Answers
from reprune.core.answers.gauss_newton import Refitted, Seen, last_consumers, refit
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
    refit(student, student.answers, np.random.default_rng(0))
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


def test_a_bias_that_is_no_entry_per_output_is_left_alone():
    seen = Seen([Consumer("conv", 1, "b")], {"conv": (4, 2, 3), "b": (4,)})
    seen.add("conv", np.ones((5, 2)))
    (weight,) = seen.weights()
    assert weight.bias is None
    assert weight.moments.shape == (2, 2)
    tensor = np.random.default_rng(0).normal(size=(4, 2, 3))
    step = np.random.default_rng(1).normal(size=(12, 2))
    moved = weight.moved({"conv": tensor}, step)["conv"]
    np.testing.assert_allclose(weight.matrix({"conv": moved}), weight.matrix({"conv": tensor}) + step)


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


def test_weights_as_a_matrix():
    weight = Refitted("w", 0, "b", np.eye(3))
    tensors = {"w": np.arange(6.0).reshape(2, 3), "b": np.array([7.0, 8.0, 9.0])}
    np.testing.assert_array_equal(weight.matrix(tensors), [[0, 3, 7], [1, 4, 8], [2, 5, 9]])
