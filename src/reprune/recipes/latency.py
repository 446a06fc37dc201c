"""How long a model takes for one input, measured so that two models can be compared."""

from __future__ import annotations

import time
from collections.abc import Mapping
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import nn


def latency_ms(models: Mapping[str, nn.Module], inputs: tuple[Any, ...], *, repeats: int = 30) -> dict[str, float]:
    """Median time of a forward pass on the CPU in milliseconds.

    The models take turns, so that whatever else the machine does falls on all of them alike.

    Args:
        models: The models by name.
        inputs: Arguments of `forward`.
        repeats: Timed passes of each model.
    """
    copies = {name: deepcopy(model).cpu().eval() for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in copies}
    with torch.inference_mode():
        # The first passes allocate memory and choose kernels.
        for _ in range(3):
            for model in copies.values():
                model(*inputs)
        for _ in range(repeats):
            for name, model in copies.items():
                start = time.perf_counter()
                model(*inputs)
                times[name].append(time.perf_counter() - start)
    return {name: round(1e3 * median(seconds), 4) for name, seconds in times.items()}
