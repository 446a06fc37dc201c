"""PyTorch to `.tflite`, the format of LiteRT on Android and iOS, by LiteRT's own PyTorch converter."""

from __future__ import annotations

from pathlib import Path

from reprune.runtimes import need
from reprune.torch.export.capture import quiet
from reprune.torch.export.formats.format import Format, Job


def write(job: Job, path: Path) -> None:
    """Write a job as `.tflite`."""
    converter = need("litert_torch", "litert-torch", "Exporting PyTorch models to .tflite")
    example = job.captured.example
    with quiet():
        converter.convert(job.model, example.args, sample_kwargs=example.kwargs or None).export(str(path))


FORMAT = Format(
    write,
    dynamic=False,
    needs=(("litert_torch", "litert-torch"),),
    note="all sizes are those of the example: this converter unrolls the steps",
)
