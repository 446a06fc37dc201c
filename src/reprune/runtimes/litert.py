"""Run `.tflite` files in LiteRT (ai-edge-litert), the interpreter of Android and iOS."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.exporting import EightBits, ExportError
from reprune.runtimes import need, running


class LiteRtRunner:
    """A `.tflite` file in LiteRT's interpreter; inputs are resized to the arrays given."""

    def __init__(self, path: Path, threads: int | None) -> None:
        interpreter = need("ai_edge_litert.interpreter", "ai-edge-litert", "Running .tflite files")
        try:
            self._interpreter = interpreter.Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"{path} cannot be loaded by LiteRT: {error}") from error
        self.runtime = f"LiteRT {version('ai-edge-litert')}"
        self._shapes: list[tuple[int, ...]] = [tuple(port["shape"]) for port in self._interpreter.get_input_details()]

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for inputs in the file's order."""
        ports = self._interpreter.get_input_details()
        if len(ports) != len(inputs):
            names = [port["name"] for port in ports]
            raise ExportError(f"The file takes {len(ports)} inputs {names}, got {len(inputs)}.")
        with running(self.runtime, inputs):
            shapes = [tuple(array.shape) for array in inputs]
            if shapes != self._shapes:
                for port, shape in zip(ports, shapes, strict=True):
                    self._interpreter.resize_tensor_input(port["index"], shape, strict=True)
                self._interpreter.allocate_tensors()
                self._shapes = shapes
            for port, array in zip(ports, inputs, strict=True):
                self._interpreter.set_tensor(port["index"], array)
            self._interpreter.invoke()
            outputs = self._interpreter.get_output_details()
            return [np.asarray(self._interpreter.get_tensor(port["index"])) for port in outputs]


def open_file(path: Path, threads: int | None) -> LiteRtRunner:
    """Load a file; see `runtimes.open_file`."""
    return LiteRtRunner(path, threads)


def count_eight_bits(path: Path) -> EightBits:
    """What a `.tflite` file holds in 8 bits: weights and activations."""
    raise NotImplementedError
