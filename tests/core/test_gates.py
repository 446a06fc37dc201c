"""What gates do, against PyTorch's own cells: their input is the pre-activations, their slopes those of autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.answers.gate_targets import Steps, targets

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
