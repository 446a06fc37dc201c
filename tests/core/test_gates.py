"""What gates do, against PyTorch's own cells: their input is the pre-activations, their slopes those of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.answers.gate_targets import Steps, Targets, targets
from reprune.core.answers.gates import FLOOR, RIDGE, ROWS, WORK, Aims, affordable, regressed, spread

UNITS, SIZES = 3, (4, 2)

CELLS = {
    "lstm": (4, nn.LSTMCell),
    "gru": (3, nn.GRUCell),
    "rnn_tanh": (1, nn.RNNCell),
    "rnn_relu": (1, lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu")),
}


@pytest.mark.parametrize("name", CELLS)
def test_slopes_are_those_of_the_cell(name):
    torch.manual_seed(0)
    gates, make = CELLS[name]
    cell = make(gates * UNITS, UNITS).double().requires_grad_(False)
    cell.weight_ih.copy_(torch.eye(gates * UNITS))
    for bias in (cell.bias_ih, cell.bias_hh):
        bias.zero_()
    incoming = torch.randn(sum(SIZES), gates * UNITS, dtype=torch.float64, requires_grad=True)
    state = torch.randn(sum(SIZES), UNITS, dtype=torch.float64)
    incoming.data[0, 0], state[0] = 0, 0  # Where a rectifier has its kink, PyTorch takes it to be shut.
    memory = before = torch.randn(SIZES[0], UNITS, dtype=torch.float64)
    total = torch.zeros(())
    for given, held in zip(incoming.split(SIZES), state.split(SIZES), strict=True):
        if name == "lstm":
            shown, before = cell(given, (held, before[: len(given)].detach()))
        else:
            shown = cell(given, held)
        total = total + shown.sum()
    total.backward()
    steps = Steps(incoming.detach().numpy(), state.numpy(), SIZES, memory.numpy())
    found = targets(name, [cell.weight_ih.numpy(), cell.weight_hh.numpy()], steps)
    np.testing.assert_allclose(found.slopes, incoming.grad, rtol=1e-10, atol=1e-14)
    if name != "gru":
        recurrent = steps.state @ cell.weight_hh.numpy().T
        np.testing.assert_allclose(found.wanted, steps.read + recurrent, rtol=1e-12)


def test_states_before_the_steps_are_those_after_the_earlier_ones():
    """Sequences of 3, 2 and 1 steps, sorted: at every step those that go on come first."""
    first, response = np.arange(3.0)[:, None], 10 + np.arange(6.0)[:, None]
    steps = Steps.of(np.zeros((6, 2)), response, [3, 2, 1], first, first + 1)
    assert steps.state[:, 0].tolist() == [0, 1, 2, 10, 11, 13]
    assert (steps.read.shape, steps.sizes, steps.memory.tolist()) == ((6, 2), [3, 2, 1], [[1], [2], [3]])


def test_a_reset_before_the_product_acts_on_all_units():
    """A slope is the length of a column of autograd's Jacobian, of a GRU that is written out."""
    torch.manual_seed(0)
    incoming, weight, bias, state = (
        torch.randn(*shape, dtype=torch.float64)
        for shape in ((5, 3 * UNITS), (3 * UNITS, UNITS), (3 * UNITS,), (5, UNITS))
    )

    def shown(gates: torch.Tensor) -> torch.Tensor:
        """States after gates' pre-activations from the input; those of the new gate are read before the reset."""
        reset, keep = (gates[:, :-UNITS] + state @ weight[:-UNITS].T).sigmoid().split(UNITS, 1)
        new = torch.tanh(gates[:, -UNITS:] + (reset * state) @ weight[-UNITS:].T)
        return (1 - keep) * new + keep * state

    jacobian = torch.autograd.functional.jacobian(lambda gates: shown(gates).sum(0), incoming + bias)
    steps = Steps(incoming.numpy(), state.numpy(), (5,), None)
    found = targets("gru_before", [np.eye(3 * UNITS), weight.numpy(), bias.numpy()], steps)
    np.testing.assert_allclose(abs(found.slopes), jacobian.norm(dim=0), rtol=1e-10)


@pytest.mark.parametrize("resets", ["none", "after", "before"])
def test_rows_are_regressed_by_weighted_ridge_regression(resets):
    """Row by row with NumPy's least squares, the ridge as rows of its own; a column that is zero stays as it is."""
    rng = np.random.default_rng(0)
    steps, rows = 40, 2 * UNITS
    read, state = rng.normal(size=(steps, 4)), rng.normal(size=(steps, UNITS))
    read[:, 1] = 0
    held = rng.normal(size=(rows, 4)), rng.normal(size=(rows, UNITS))
    reset = None if resets == "none" else rng.uniform(size=(steps, rows))
    wanted = Targets(rng.normal(size=(steps, rows)), rng.normal(size=(steps, rows)), reset)
    found = regressed(read, state, held, wanted, before=resets == "before")
    for row in range(rows):
        own = {
            "none": lambda row: 1.0,
            "after": lambda row: reset[:, [row]],
            "before": lambda row: reset[:, :UNITS] if row < UNITS else reset[:, UNITS:],
        }[resets](row)
        features, now = np.hstack([read, own * state]), np.concatenate([part[row] for part in held])
        root = np.sqrt(wanted.slopes[:, row] ** 2 + FLOOR * np.mean(wanted.slopes[:, row] ** 2))[:, None]
        ridge = np.sqrt(RIDGE) * np.diag(np.linalg.norm(root * features, axis=0))
        right = np.append(root[:, 0] * (wanted.wanted[:, row] - features @ now), np.zeros(len(now)))
        expected = np.linalg.lstsq(np.vstack([root * features, ridge]), right, rcond=None)[0]
        np.testing.assert_allclose(np.concatenate([part[row] for part in found]), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sizes", [(30, 60), (90,)])
@pytest.mark.parametrize(("cell", "gates", "biases"), [("rnn_tanh", 1, 0), ("gru", 3, 2), ("gru_before", 3, 1)])
def test_a_layer_does_what_the_dense_one_did(monkeypatch, cell, gates, biases, sizes):
    """Of a dense layer with a unit that is always silent, a pruned one with other rows does all that is left."""
    monkeypatch.setattr("reprune.core.answers.gates.RIDGE", 1e-12)
    for name in ("ROWS", "MOST"):
        monkeypatch.setattr(f"reprune.core.answers.gates.{name}", 50)
    rng, kept, share = np.random.default_rng(0), [0, 2], 50 // len(sizes)
    stay = np.array([gate * UNITS + unit for gate in range(gates) for unit in kept])
    weights = [rng.normal(size=(gates * UNITS, size)) for size in (4, UNITS)]
    weights += [rng.normal(size=gates * UNITS) for _ in range(biases)]
    aims, dense, small = Aims(len(sizes)), [], []
    for size in sizes:
        read, state = rng.normal(size=(size, 4)), rng.normal(size=(size, UNITS)) * [1, 0, 1]
        dense.append(Steps(read, state, [size]))
        small.append(Steps(read, state[:, kept], [size]))
        aims.add("layer", cell, weights, dense[-1], stay)
    assert aims.layers == ["layer"]
    assert [len(aim.chosen) for aim in aims._aims["layer"]] == [share] * len(sizes)
    held = [weights[0][stay], weights[1][stay][:, kept], *(bias[stay] for bias in weights[2:])]
    held = [weight + rng.normal(size=weight.shape) for weight in held]
    steps = aims.steps("layer", held, small)
    assert [step.shape for step in steps] == [weight.shape for weight in held]
    moved = [weight + step for weight, step in zip(held, steps, strict=True)]
    for whole, part in zip(dense, small, strict=True):
        wanted, found = targets(cell, weights, whole), targets(cell, moved, part)
        np.testing.assert_allclose(found.wanted, wanted.wanted[:, stay], atol=1e-7)
    shorter = [Steps(part.read[1:], part.state[1:], []) for part in small]
    assert aims.steps("layer", held, shorter) == aims.steps("layer", held, [*small, small[0]]) == []


def test_what_is_affordable_and_how_places_are_spread():
    assert affordable(1000, int((WORK / 1000 / ROWS) ** 0.5))
    assert not affordable(1000, int((WORK / 1000 / ROWS) ** 0.5) + 1)
    assert [list(spread(range(10), most)) for most in (3, 5, 9, 10, 11)] == [
        [0, 4, 8], [0, 2, 4, 6, 8], [0, 2, 4, 6, 8], [*range(10)], [*range(10)],
    ]  # fmt: skip
