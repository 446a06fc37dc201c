"""The paper's whole procedure on YouTube-8M records: train → prune → fine-tune → evaluate.

N. Gkalelis, V. Mezaris, "Structured Pruning of LSTMs via Eigenanalysis and Geometric Median for Mobile Multimedia and
Deep Learning Applications", IEEE ISM 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from torch import nn

from reprune.recipes import procedure
from reprune.recipes.folder import options_of
from reprune.recipes.options import Options
from reprune.recipes.procedure import Recipe, Say, Summary
from reprune.recipes.tagger import METRICS, Tagger
from reprune.recipes.videos import Videos
from reprune.youtube8m.model import VideoClassifier


class YouTube8M(Recipe):
    """The paper's classifier on records of videos.

    Args:
        options: What to do.
    """

    metrics = METRICS

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def build(self) -> VideoClassifier:
        """The dense model, always with the same weights for the same seed."""
        return build(self.options)

    def data(self, offset: int = 0) -> Videos:
        """The records."""
        return Videos(self.options, offset)

    def module(self, model: nn.Module, *, finetune: bool = False) -> Tagger:
        """The classifier with its loss, optimiser and metrics."""
        # The paper's schedule falls too slowly to end a short fine-tuning on a quiet note.
        return Tagger(model, self.options, anneal=finetune)


def run(options: Options, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder. See `procedure.run`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run.
        RecordError: Records are missing or damaged.
        InterruptedRunError: The user asked to stop.
    """
    return procedure.run(YouTube8M(options), out, resume=resume, say=say)


def build(options: Options) -> VideoClassifier:
    """The dense model, always with the same weights for the same seed."""
    seed_everything(options.seed, verbose=False)
    features = sum(options.features.values())
    return VideoClassifier(features, options.classes, options.hidden, normalize=options.normalize)


def evaluate_folder(
    folder: Path, data: tuple[str, ...], *, batch_size: int | None = None, accelerator: str = "auto"
) -> Summary:
    """Measure both models of a finished run on other records: a summary without sizes and times.

    Raises:
        RecipeError: The folder holds no run.
        PlanError: The run is not finished.
    """
    options = replace(options_of(folder, Options), test=data, accelerator=accelerator, progress=False)
    return procedure.evaluate_folder(folder, YouTube8M(replace(options, batch_size=batch_size or options.batch_size)))


def measure(model: nn.Module, options: Options) -> dict[str, float]:
    """GAP, mAP, Hit@1 and PERR of a model on the records of the final measurement."""
    return procedure.measure(model, YouTube8M(options))


def table(summary: Mapping[str, Any]) -> str:
    """A summary as a table for people."""
    return procedure.table(summary, _LABELS)


_LABELS = {
    "gap": "GAP@20",
    "map": "mAP",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "macs": "MACs per frame",
    "latency_ms": "ms per video",
}
