"""Distillation: what both frameworks do alike when a pruned model learns the dense one's answers.

G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network" (2015). What is compared follows from the
dense model's outputs, so that nothing but calibration batches is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reprune.core.errors import StatisticsError

Progress = Callable[[int, float], Any]
"""Called after every step with its number and the divergence of its batch."""

WARM_UP = 0.05
"""Share of the steps over which the step size rises."""


def step_size(step: int, steps: int, largest: float) -> float:
    """Step size of a step (from 1): it rises over the first ones, and falls to zero along a line.

    Example:
        >>> [step_size(step, 4, 1.0) for step in (1, 2, 3, 4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    warm = max(round(WARM_UP * steps), 1)
    return largest * min(step / warm, (steps - step + 1) / steps)


def check_steps(steps: int) -> None:
    """Raise unless this is a number of steps."""
    if steps < 1:
        raise StatisticsError(f"steps={steps} must be a whole number, at least 1.")


def nothing_may_change(model: Any) -> StatisticsError:
    """The error of a model whose weights are all frozen."""
    return StatisticsError(
        f"No weight of {type(model).__name__} may change: unfreeze those that should learn (requires_grad_ in PyTorch, "
        "trainable in Keras)."
    )


def nothing_to_compare() -> StatisticsError:
    """The error of two models without outputs in common."""
    return StatisticsError(
        "The two models return no numbers that could be compared: give divergence=, a function of what the small and "
        "the dense model return, or forward= that returns logits."
    )


def diverged(value: float, step: int, largest: float) -> StatisticsError:
    """The error of a divergence that is no finite number any more."""
    return StatisticsError(
        f"The divergence became {value} at step {step}: give a smaller learning_rate than {largest}. The model is as "
        "it was before."
    )
