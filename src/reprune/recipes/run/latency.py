"""How long a model takes for one input, measured so that two models can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any


def latency_ms(passes: Mapping[str, Callable[[], Any]], *, repeats: int = 30) -> dict[str, float]:
    """Median time of a forward pass in milliseconds.

    The models take turns, so that whatever else the machine does falls on all of them alike.

    Args:
        passes: One forward pass of each model, by name.
        repeats: Timed passes of each model.
    """
    times: dict[str, list[float]] = {name: [] for name in passes}
    # The first passes allocate memory and choose kernels.
    for _ in range(3):
        for run in passes.values():
            run()
    for _ in range(repeats):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: round(1e3 * median(seconds), 4) for name, seconds in times.items()}
