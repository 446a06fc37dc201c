"""Passes over calibration batches: what is gathered of them, who is told the answers, and what is left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from reprune.core.layers import Consumer, Layer, Slot, Span, Structure
from reprune.torch.calibration.responses import gather, observe

SPANS = (Span(0, "rnn:l0", 0, 4),)
STRUCTURE = Structure(
    {"rnn:l0": Layer("rnn:l0", "rnn", 4)},
    (
        Slot("rnn.weight_ih_l0", 0, 4, "own", SPANS),
        Slot("rnn.weight_hh_l0", 0, 4, "own", SPANS),
        Slot("rnn.weight_hh_l0", 1, 4, "reads", SPANS),
        Slot("head.weight", 1, 4, "reads", SPANS),
    ),
    {"rnn.weight_ih_l0": (4, 3), "rnn.weight_hh_l0": (4, 4), "head.weight": (2, 4)},
    (("rnn:l0",),),
    consumers=(Consumer("rnn.weight_hh_l0", 1), Consumer("head.weight", 1)),
)


class Noisy(nn.Module):
    """Adds random numbers to batches of one length, writes into batches, and counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head, self.drop = nn.RNN(3, 4), nn.Linear(4, 2), nn.Dropout(0.5)
        self.passes = nn.Buffer(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if len(x) == 5:
            x += torch.randn(x.shape, dtype=x.dtype)
        return self.head(self.drop(torch.tanh(self.rnn(x.mul_(2))[0])))


def given() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(steps, 2, 3, generator=generator, dtype=torch.float64) for steps in (4, 5, 6, 5)]


def assert_moments(found: object, rows: torch.Tensor) -> None:
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(rows.numpy().T, bias=True), atol=1e-12)


@pytest.mark.parametrize("readings", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_statistics_are_those_of_all_steps_of_all_batches(readings: bool, share: bool) -> None:
    torch.manual_seed(0)
    model, told = Noisy().double().train(), []
    with torch.no_grad():
        states, answers = [], []
        for number, x in enumerate(given()):
            torch.manual_seed(number)  # Each batch has random numbers of its own, always the same.
            x = x + torch.randn(x.shape, dtype=x.dtype) if len(x) == 5 else x
            states.append(model.rnn(2 * x)[0])
            answers.append(model.head(states[-1].tanh()))
    rows = torch.cat([part.flatten(0, 1) for part in states])
    batches, seed = given(), torch.get_rng_state()
    found = observe(model, STRUCTURE, batches, readings=readings, share=share, told=told.append)
    assert_moments(found["rnn:l0"], rows)
    if readings:
        assert_moments(found.readings["head.weight", 1].merged(), rows.tanh())
        assert_moments(found.readings["rnn.weight_hh_l0", 1].merged(), rows)
        assert_moments(found.fed["rnn.weight_hh_l0", 1].first, torch.zeros(8, 4, dtype=torch.float64))
        assert_moments(found.fed["rnn.weight_hh_l0", 1].last, torch.cat([part[-1] for part in states]))
    else:
        assert not found.readings
    for output, wanted in zip(told, answers[::2], strict=True):  # Not those that random numbers made.
        torch.testing.assert_close(output, wanted)
        assert not output.requires_grad
    assert all(map(torch.equal, batches, given()))
    assert torch.equal(torch.get_rng_state(), seed)
    assert model.training
    assert model.passes == 0


def test_passes_of_ones_own_are_gathered_while_one_looks() -> None:
    torch.manual_seed(0)
    model, (x, *_) = Noisy().double(), given()
    with gather(model, STRUCTURE) as statistics:
        for scale in (1, 3):
            model(scale * x)
    rows = torch.cat([model.rnn(2 * scale * x)[0].flatten(0, 1) for scale in (1, 3)]).detach()
    assert_moments(statistics["rnn:l0"], rows)
    model(x.clone())
    assert statistics["rnn:l0"].count == len(rows)
