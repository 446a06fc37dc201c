"""Run `.pte` files in ExecuTorch's Python binding."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from reprune.core.exporting import ExportError
from reprune.runtimes import need, running


class ExecuTorchRunner:
    """A `.pte` file in ExecuTorch."""

    def __init__(self, path: Path) -> None:
        self._torch = need("torch", "Running .pte files")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The binding announces that it is experimental.
            runtime = need("executorch.runtime", "Running .pte files")
            need("executorch.extension.pybindings.portable_lib", "Running .pte files")
        try:
            # The program is memory-mapped: it must live as long as its method.
            self._program = runtime.Runtime.get().load_program(path)
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise ExportError(f"{path} cannot be loaded by ExecuTorch: {error}") from error
        self.runtime = f"ExecuTorch {version('executorch')}"

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for inputs in the file's order."""
        with running(self.runtime, inputs):
            outputs = self._method.execute([self._torch.from_numpy(array.copy()) for array in inputs])
        return [output.numpy().copy() for output in outputs]


def open_file(path: Path, threads: int | None) -> ExecuTorchRunner:
    """Load a file; see `runtimes.open_file`. ExecuTorch's binding chooses its threads itself."""
    return ExecuTorchRunner(path)
