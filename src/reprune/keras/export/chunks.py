"""For export: whether a Keras model runs chunk by chunk as it does at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from reprune.core.exporting import CHUNKS_DIFFER, compare
from reprune.keras.export.job import Job


def chunks_differ(job: Job) -> list[str]:
    """A note if two chunks give other outputs than the whole sequence; none where they do not, or no time is free."""
    timed = [index for index, axes in enumerate(job.axes) if len(axes) > 1 and "time" in str(axes[1])]
    steps = {job.arrays[index].shape[1] for index in timed}
    if len(steps) != 1:
        return []
    (count,) = steps
    rng = np.random.default_rng(0)

    def chunk(array: Any) -> Any:
        real = np.issubdtype(array.dtype, np.floating)
        # Both chunks hold other numbers, for one read twice would hide what is carried.
        return rng.standard_normal(array.shape).astype(array.dtype) if real else array[:, rng.permutation(count)]

    halves = [{index: chunk(job.arrays[index]) for index in timed} for _ in range(2)]
    whole, begun, ended = list(job.arrays), list(job.arrays), list(job.arrays)
    for index in timed:
        begun[index], ended[index] = (half[index] for half in halves)
        whole[index] = np.concatenate([begun[index], ended[index]], 1)
    expected, first = ([np.asarray(output) for output in job.call(arrays)] for arrays in (whole, begun))
    after = job.fed_back(begun, first)
    second = [
        np.asarray(output) for output in job.call([ended[i] if i in timed else after[i] for i in range(len(after))])
    ]
    for one, early, late in zip(expected, first, second, strict=True):
        if one.shape != late.shape:
            late = np.concatenate([early, late], 1)
        if one.shape != late.shape or compare([], [one], [late]).relative > 1e-4:
            return [CHUNKS_DIFFER]
    return []
