"""PyTorch to `.pt2`, its own exported program: runs without the model's class, in Python or by AOTInductor."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job


def write(job: Job, path: Path) -> None:
    """Write a job as `.pt2`."""
    content = io.BytesIO()
    with quiet():
        # Into memory first: on a full disk, PyTorch's own writer aborts the process.
        torch.export.save(job.captured.program, content)
    path.write_bytes(content.getbuffer())


FORMAT = Format(write)
