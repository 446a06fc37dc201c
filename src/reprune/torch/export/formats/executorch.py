"""PyTorch to `.pte`, the format of ExecuTorch on phones and microcontrollers, with XNNPACK kernels."""

from __future__ import annotations

import warnings
from pathlib import Path

from reprune.runtimes import need
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job


def write(job: Job, path: Path) -> None:
    """Write a job as `.pte`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Its dependencies announce changes of their own.
        exir = need("executorch.exir", "executorch", "Exporting to .pte")
        xnnpack = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", "Exporting to .pte")
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="executorch|torch")
        lowered = exir.to_edge_transform_and_lower(job.captured.program, partitioner=[xnnpack.XnnpackPartitioner()])
        path.write_bytes(lowered.to_executorch().buffer)


FORMAT = Format(
    write,
    dynamic=False,
    needs=(("executorch", "executorch"),),
    note="all sizes are those of the example: ExecuTorch has no recurrent operator, its steps are unrolled",
)
