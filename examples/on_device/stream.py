"""Python, ONNX Runtime: a sequence chunk by chunk, through a file with its states as inputs and outputs."""

from collections.abc import Iterable, Iterator

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


def stream(path: str, chunks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Scores of each chunk of frames, (1, time, features)."""
    session = ort.InferenceSession(path)
    # After the frames come the states. They begin as zeros; sizes that are free have names, and are 1 for one sequence.
    states = {
        port.name: np.zeros([size if isinstance(size, int) else 1 for size in port.shape], np.float32)
        for port in session.get_inputs()[1:]
    }
    for frames in chunks:
        scores, *after = session.run(None, {"frames": frames, **states})
        states = dict(zip(states, after, strict=True))
        yield scores
