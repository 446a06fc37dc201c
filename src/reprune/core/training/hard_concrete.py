"""Gates that learn to open or to close: the hard concrete distribution, and the penalty that holds their number.

L. Wen et al., "Structured Pruning of Recurrent Neural Networks through Neuron Selection", Neural Networks 2020
(arXiv 1906.06847), with the hard concrete gates of Louizos, Welling and Kingma, "Learning Sparse Neural Networks
through L0 Regularization", ICLR 2018. A unit's gate multiplies what every consumer reads of it: the next layer's input,
the layer's own recurrence, the output. A gate of zero is the masked model, so that closed gates can be cut out exactly.

The expected size is held at the target by an exact penalty (Nocedal and Wright, "Numerical Optimization", 2006, section
17.2), μ |d| with d = target − expected fraction removed, rounded off where |d| is small. μ grows until the target is
met, whatever the size of the training's own loss.
"""

from __future__ import annotations

from math import exp, log
from typing import Any

import numpy as np
from numpy.typing import NDArray

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
"""Temperature and stretch of the hard concrete distribution, as Louizos et al. set them."""
START = 2.0
"""First log α: nearly open."""
RATE = 0.05
"""Adam's step size for the gates."""
START_STRENGTH = 0.01
"""First μ."""
GROWTH = 0.02
"""Growth of log μ per step while the target is missed: tenfold in 115 steps."""
SLACK = 0.02
"""|d| below which the penalty is rounded off, and to which the target is met."""
SHIFT = BETA * log(-GAMMA / ZETA)

Vector = NDArray[np.float64]


def grown(strength: float, missing: float) -> float:
    """μ after a step that left the target missed by so much."""
    return strength * exp(GROWTH * min(max(missing / SLACK - 1, 0.0), 1.0))


class Gates:
    """The gates of all units in double precision, with an Adam of their own, where no automatic gradient is at hand.

    Args:
        log_alpha: Locations of the gates (units).
    """

    def __init__(self, log_alpha: Vector) -> None:
        self.log_alpha = log_alpha
        self._first, self._second = np.zeros_like(log_alpha), np.zeros_like(log_alpha)
        self._steps = 0

    def sampled(self, noise: Vector) -> tuple[Vector, Vector]:
        """z = min(1, max(0, s (ζ − γ) + γ)) with s = σ((log u − log(1 − u) + log α) / β), and its derivative by log α.

        Louizos et al., eq. 10 and 11.

        Args:
            noise: u, uniform between 0 and 1.
        """
        s = _sigmoid((np.log(noise) - np.log1p(-noise) + self.log_alpha) / BETA)
        stretched = s * (ZETA - GAMMA) + GAMMA
        inside = (stretched > 0) & (stretched < 1)
        return np.clip(stretched, 0, 1), np.where(inside, (ZETA - GAMMA) * s * (1 - s) / BETA, 0.0)

    def settled(self) -> Vector:
        """z = min(1, max(0, σ(log α) (ζ − γ) + γ)), the gate without noise; eq. 13."""
        return np.clip(_sigmoid(self.log_alpha) * (ZETA - GAMMA) + GAMMA, 0, 1)

    def opening(self) -> tuple[Vector, Vector]:
        """P(z ≠ 0) = σ(log α − β log(−γ / ζ)) (Louizos et al., eq. 12), and its derivative by log α."""
        p = _sigmoid(self.log_alpha - SHIFT)
        return p, p * (1 - p)

    def step(self, gradient: Vector) -> None:
        """A step of Adam (Kingma and Ba, ICLR 2015), PyTorch's defaults."""
        self._steps += 1
        self._first = 0.9 * self._first + 0.1 * gradient
        self._second = 0.999 * self._second + 0.001 * gradient**2
        mean, square = self._first / (1 - 0.9**self._steps), self._second / (1 - 0.999**self._steps)
        self.log_alpha = self.log_alpha - RATE * mean / (np.sqrt(square) + 1e-8)

    def kept(self, stay: NDArray[np.int64]) -> Gates:
        """The gates of some units alone."""
        gates = Gates(self.log_alpha[stay])
        gates._first, gates._second, gates._steps = self._first[stay], self._second[stay], self._steps
        return gates

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "log_alpha": self.log_alpha.tolist(),
            "first": self._first.tolist(),
            "second": self._second.tolist(),
            "steps": self._steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.log_alpha, self._first, self._second = (np.asarray(state[key]) for key in ("log_alpha", "first", "second"))
        self._steps = int(state["steps"])


def penalty_slope(missing: float, strength: float) -> float:
    """Derivative of the penalty by d, the fraction that is missing: μ sign(d), and μ d / SLACK where |d| < SLACK."""
    return strength * min(max(missing / SLACK, -1.0), 1.0)


def _sigmoid(x: Vector) -> Vector:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
