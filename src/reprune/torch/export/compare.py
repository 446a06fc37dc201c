"""After an export: run the file and the model on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from reprune.core.exporting import Comparison, compare
from reprune.runtimes import open_file
from reprune.torch.export.example import Example


def run_beside(model: nn.Module, path: Path, examples: Sequence[Example]) -> tuple[tuple[Comparison, ...], Any]:
    """Compare a file with the model it came from on some inputs; also returns the loaded file."""
    runner = open_file(path)
    found = []
    for example in examples:
        expected = [tensor.numpy() for tensor in example.call(model)]
        found.append(compare(example.arrays(), expected, runner(*example.arrays())))
    return tuple(found), runner
