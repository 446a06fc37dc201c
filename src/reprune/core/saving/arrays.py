"""Arrays that are computed batch by batch, once, and read from disk from then on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprune.core.saving.files import replacing

_LIST = "arrays.json"


class StoredArrays:
    """Named arrays in a folder, which are all there or count as not there at all.

    They are memory-mapped: what is not looked at takes no memory, and processes share what is.

    Args:
        folder: The folder; `write` makes it.

    Example:
        >>> stored = StoredArrays(folder)                                          # doctest: +SKIP
        >>> if not stored.done:                                                    # doctest: +SKIP
        ...     stored.write({"squares": np.arange(n, n + 2) ** 2} for n in range(0, 6, 2))
        >>> stored["squares"]                                                      # doctest: +SKIP
        memmap([ 0,  1,  4,  9, 16, 25])
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, NDArray[Any]] = {}

    @property
    def done(self) -> bool:
        """Whether they are there, in their full sizes."""
        return (self._folder / _LIST).exists() and all(
            path.exists() and path.stat().st_size == math.prod(shape) * dtype.itemsize
            for path, dtype, shape in self._listed().values()
        )

    def write(self, batches: Iterable[Mapping[str, NDArray[Any]]]) -> None:
        """Write arrays whose parts come one after the other, along the first axis; nothing if no batch comes."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / _LIST).unlink(missing_ok=True)
        self._arrays.clear()
        listed: dict[str, tuple[str, list[int]]] = {}
        with ExitStack() as stack:
            files: dict[str, Any] = {}
            for batch in batches:
                for name, part in batch.items():
                    if name not in files:
                        files[name] = stack.enter_context((self._folder / f"{name}.bin").open("wb"))
                        listed[name] = (part.dtype.str, [0, *part.shape[1:]])
                    files[name].write(np.ascontiguousarray(part).data)
                    listed[name][1][0] += len(part)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        with replacing(self._folder / _LIST) as part_path:
            part_path.write_text(json.dumps(listed), encoding="utf-8")

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._arrays:
            path, dtype, shape = self._listed()[name]
            # An empty file cannot be mapped.
            self._arrays[name] = (
                np.memmap(path, dtype, "r", shape=shape) if math.prod(shape) else np.empty(shape, dtype)
            )
        return self._arrays[name]

    def _listed(self) -> dict[str, tuple[Path, np.dtype[Any], tuple[int, ...]]]:
        listed = json.loads((self._folder / _LIST).read_text(encoding="utf-8"))
        return {
            name: (self._folder / f"{name}.bin", np.dtype(dtype), tuple(shape))
            for name, (dtype, shape) in listed.items()
        }
