"""A model's answers among many classes in few numbers: its most likely classes, and some that are drawn of the others.

Of the probability of all that is not among the k most likely, each of m drawn classes stands for an equal part. So over
draws what is kept is the whole answer, and a small model learns from it what it would from that, as it does from
labels. Likely classes that are made to add up to 1 would teach that nothing else ever comes, and one number for the
rest would teach nothing about which of many rare classes comes.

M. Anshumann et al., "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs" (arXiv 2503.16870, 2025), show
both. Draws here are systematic: equal steps from a random start along the sum of the probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 48
"""The most likely of many classes that are kept."""
DRAWN = 16
"""Classes that are drawn of the others."""
FEW = 256
"""Of so many classes, all are kept."""

CLASSES, LOGS = "classes", "logs"
"""Names of the arrays as `packed` makes them."""


def kept_of(classes: int) -> tuple[int, int]:
    """How many of the most likely classes are kept, and how many are drawn of the others."""
    return (classes, 0) if classes <= FEW else (KEPT, DRAWN)


def starts(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    """Where draws are along the sum of the others' probabilities, as fractions of it (rows × m)."""
    return ((rng.random((rows, 1)) + np.arange(DRAWN)) / DRAWN).astype(np.float32)


def packed(classes: NDArray[Any], logs: NDArray[Any], of: int) -> dict[str, NDArray[Any]]:
    """Classes (uint16 or int32) and the logarithms of what each stands for (float16), as they are stored.

    Args:
        classes: Which classes (… × k + m).
        logs: Logarithms of what they stand for; these add up to 1.
        of: Number of all classes.
    """
    lowest = float(np.finfo(np.float16).min)
    numbers = np.uint16 if of <= np.iinfo(np.uint16).max + 1 else np.int32
    return {CLASSES: classes.astype(numbers), LOGS: np.maximum(logs, lowest).astype(np.float16)}
