"""Frame by frame, as a voice-activity or wake-word model runs: states are carried from one call to the next.

    python examples/streaming.py

Prunes a small detector, writes it as ONNX with its states as inputs and outputs, and feeds it one frame at a time.
"""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import reprune
from reprune.torch.export import export


class Detector(nn.Module):
    """Features of 10 ms of sound in, the probability of speech out."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 128, num_layers=2, batch_first=True)
        self.output = nn.Linear(128, 1)

    def forward(self, frames: Tensor) -> Tensor:
        return self.output(self.lstm(frames)[0]).sigmoid()


def main() -> None:
    torch.manual_seed(0)
    sound = torch.randn(1, 200, 40)
    small = reprune.prune(Detector().eval(), [torch.randn(8, 50, 40)], ratio=0.75).model
    whole = small(sound).detach().numpy()

    with TemporaryDirectory() as folder:
        path = Path(folder) / "detector.onnx"
        print(export(small, sound[:, :1], path, streaming=True))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # It warns that the states have defaults, which is meant.
        session = onnxruntime.InferenceSession(str(path), options)
    names = [port.name for port in session.get_outputs()]
    # The first call leaves the states out: they start from zeros. Every other one gets those of the call before.
    states: dict[str, np.ndarray] = {}
    speech, start = [], time.perf_counter()
    for frame in sound.numpy()[0]:
        outputs = dict(zip(names, session.run(None, {"frames": frame[None, None], **states}), strict=True))
        speech.append(outputs.pop("output")[0, 0])
        states = {name.replace("_n", "_0"): state for name, state in outputs.items()}
    seconds = time.perf_counter() - start
    difference = np.abs(np.stack(speech) - whole[0]).max()
    print(f"{len(speech)} frames, {1e6 * seconds / len(speech):.0f} µs each; from the whole sequence: {difference:.1e}")


if __name__ == "__main__":
    main()
