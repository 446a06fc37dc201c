"""A model's answers among many classes in few numbers: its most likely classes, and all others together.

Cross entropy with them is that of a coarser partition of the classes: each of the likely ones by itself, and the rest
as one. So it is least for a small model that gives each part what the dense one gives it, and the dense model itself is
one of these; probabilities that are cut off and made to add up to 1 again would teach that nothing else ever comes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 64
"""Classes that are kept of many."""
FEW = 256
"""Of so many, all are kept: all but one by themselves, and the last one as the rest."""
LEAST = 1e-7
"""Of the rest's probability, which is found as what the others lack of 1 and known no better than that."""

CLASSES, LOGS = "classes", "logs"
"""Names of the arrays as `packed` makes them."""


def kept_of(classes: int) -> int:
    """How many classes are kept by themselves, k."""
    return classes - 1 if classes <= FEW else KEPT


def packed(classes: NDArray[Any], logs: NDArray[Any], of: int) -> dict[str, NDArray[Any]]:
    """Likely classes (uint16 or int32) and logarithms of their probabilities (float16), as they are stored.

    Args:
        classes: Which classes are likely (… × k).
        logs: Logarithms of their probabilities, and in the last place of all others together (… × k + 1).
        of: Number of all classes.
    """
    lowest = float(np.finfo(np.float16).min)
    numbers = np.uint16 if of <= np.iinfo(np.uint16).max + 1 else np.int32
    return {CLASSES: classes.astype(numbers), LOGS: np.maximum(logs, lowest).astype(np.float16)}
