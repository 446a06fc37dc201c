"""PyTorch to `.pt2`, its own exported program: runs without the model's class, in Python or by AOTInductor."""

from __future__ import annotations

from pathlib import Path

import torch

from reprune.torch.export.capture import quiet
from reprune.torch.export.format import Format, Job


def write(job: Job, path: Path) -> None:
    """Write a job as `.pt2`."""
    with quiet():
        torch.export.save(job.captured.program, path)


FORMAT = Format(write)
