"""Run `.pt2` files, PyTorch's own exported programs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from reprune.core.exporting import ExportError
from reprune.runtimes import need, running


class ProgramRunner:
    """A `.pt2` file; it needs PyTorch, but neither the model's class nor its dense form."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._torch = need("torch", "Running .pt2 files")
        self._tree = need("torch.utils._pytree", "Running .pt2 files")
        self._threads = threads
        try:
            self._program = self._torch.export.load(path)
        except Exception as error:  # A damaged archive raises whatever its reader meets first.
            raise ExportError(f"{path} cannot be loaded by torch.export: {error}") from error
        self._module = self._program.module()
        self.runtime = f"torch {self._torch.__version__}"

    def __call__(self, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
        """The outputs for inputs in the file's order, nested ones flattened."""
        with running(self.runtime, inputs), pytorch_threads(self._threads), self._torch.no_grad():
            flat = [self._torch.from_numpy(array) for array in inputs]
            args, kwargs = self._tree.tree_unflatten(flat, self._program.call_spec.in_spec)
            outputs = self._tree.tree_leaves(self._module(*args, **kwargs))
        return [output.numpy() for output in outputs if output is not None]


@contextmanager
def pytorch_threads(number: int | None) -> Iterator[None]:
    """Inside, PyTorch computes on so many threads, in the whole process; afterwards on as many as before.

    Args:
        number: How many; None leaves it at what it is.
    """
    torch = need("torch", "Counting PyTorch's threads")
    before = torch.get_num_threads()
    try:
        if number is not None:
            torch.set_num_threads(number)
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


def open_file(path: Path, threads: int | None) -> ProgramRunner:
    """Load a file; see `runtimes.open_file`."""
    return ProgramRunner(path, threads)
