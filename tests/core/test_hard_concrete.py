"""Gates by hand against PyTorch: its autograd, its Adam; and how often they are open, counted."""

from __future__ import annotations

import numpy as np
import torch

from reprune.core.training.hard_concrete import BETA, GAMMA, RATE, ZETA, Gates

LOG_ALPHA = np.array([-3.0, 0.1, 2.0])


def test_samples_and_their_slopes_are_those_of_autograd() -> None:
    noise = np.linspace(0.01, 0.99, 33).reshape(11, 3)
    location = torch.tensor(np.tile(LOG_ALPHA, (11, 1)), requires_grad=True)
    wanted = (
        torch.sigmoid((torch.logit(torch.tensor(noise)) + location) / BETA).mul(ZETA - GAMMA).add(GAMMA).clamp(0, 1)
    )
    wanted.sum().backward()
    found, slopes = Gates(LOG_ALPHA).sampled(noise)
    np.testing.assert_allclose(found, wanted.detach(), rtol=1e-12)
    assert (BETA, GAMMA, ZETA) == (2 / 3, -0.1, 1.1)  # As Louizos et al. have them.
    np.testing.assert_allclose(slopes, location.grad, rtol=1e-10)


def test_a_gate_is_open_as_often_as_it_says() -> None:
    noise = (np.arange(100_000)[:, None] + 0.5) / 100_000
    gates, step = Gates(LOG_ALPHA), 1e-6
    np.testing.assert_allclose((gates.sampled(noise)[0] > 0).mean(0), gates.opening()[0], atol=1e-5)
    ahead, behind = (Gates(LOG_ALPHA + change).opening()[0] for change in (step, -step))
    np.testing.assert_allclose(gates.opening()[1], (ahead - behind) / (2 * step), rtol=1e-6)
    # Noise of a half is none at all, but for the temperature.
    np.testing.assert_allclose(gates.settled(), Gates(BETA * LOG_ALPHA).sampled(np.full(3, 0.5))[0], rtol=1e-12)
    np.testing.assert_array_equal(Gates(np.array([-9.0, 9])).settled(), [0, 1])


def test_steps_are_those_of_adam_also_after_a_pause() -> None:
    twin = torch.tensor(LOG_ALPHA, requires_grad=True)
    adam, gates = torch.optim.Adam([twin], lr=RATE), Gates(LOG_ALPHA)
    for gradient in np.random.default_rng(0).normal(size=(5, 3)):
        twin.grad = torch.tensor(gradient)
        adam.step()
        gates.step(gradient)
        np.testing.assert_allclose(gates.log_alpha, twin.detach(), rtol=1e-12)
        held, gates = gates, Gates(np.zeros(3))
        gates.restore(held.state())
    part = gates.kept(np.array([0, 2]))
    part.step(np.ones(2))
    gates.step(np.ones(3))
    np.testing.assert_array_equal(part.log_alpha, gates.log_alpha[[0, 2]])
