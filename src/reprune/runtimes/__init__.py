"""Exported files and the runtimes that run them: NumPy arrays in, NumPy arrays out, one runtime per file.

run = open_file("small.onnx", threads=1)
(logits,) = run(frames)
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from reprune.core.exporting import EightBits, ExportError
from reprune.core.extras import lacking

RUNTIMES = {
    ".onnx": "onnxruntime",
    ".tflite": "litert",
    ".pte": "executorch",
    ".pt2": "torch_export",
}
"""The module of this package that runs files of a suffix."""


class Runner(Protocol):
    """A loaded file."""

    runtime: str
    """Name and version of the runtime."""

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs, in the file's own order, for inputs in the file's own order."""


def open_file(path: str | Path, *, threads: int | None = None) -> Runner:
    """Load an exported file into the runtime for its suffix.

    Args:
        path: The file.
        threads: Threads the runtime may use; its own choice if None.

    Raises:
        ExportError: When the suffix is unknown, the runtime is not installed, or the file cannot be loaded.
    """
    path = Path(path)
    name = RUNTIMES.get(path.suffix)
    if name is None:
        raise ExportError(f"{path}: no runtime for {path.suffix!r} files; known are {', '.join(RUNTIMES)}.")
    if not path.is_file():
        raise ExportError(f"{path} does not exist.")
    runner: Runner = importlib.import_module(f"reprune.runtimes.{name}").open_file(path, threads)
    return runner


def count_eight_bits(path: Path) -> EightBits:
    """What a file holds in 8 bits, counted in the file itself."""
    counted: EightBits = importlib.import_module(f"reprune.runtimes.{RUNTIMES[path.suffix]}").count_eight_bits(path)
    return counted


@contextmanager
def running(runtime: str, inputs: Sequence[NDArray[Any]]) -> Iterator[None]:
    """Within this context, whatever a runtime raises becomes an `ExportError` that names the inputs."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # The runtimes' errors share no base class.
        given = ", ".join(f"{array.dtype} {array.shape}" for array in inputs)
        raise ExportError(f"{runtime} cannot run the file on {given}: {error}") from error


def require(modules: Iterable[str], purpose: str) -> None:
    """Look for optional modules, without importing them.

    Raises:
        ExportError: When one is not installed; the message says what to install.
    """
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise ExportError(lacking(module, purpose) or f"{purpose} needs {module}")


def need(module: str, purpose: str) -> Any:
    """Import an optional module.

    Raises:
        ExportError: When it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is not None and not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ExportError(lacking(module, purpose) or f"{purpose} needs {module}") from None
