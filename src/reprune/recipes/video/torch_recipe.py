"""The YouTube-8M recipe in PyTorch."""

from __future__ import annotations

from lightning.pytorch import seed_everything
from torch import Tensor, nn

from reprune.recipes.run.options import Options
from reprune.recipes.run.torch_recipe import TorchRecipe
from reprune.recipes.video.data import Share, Videos
from reprune.recipes.video.tagger import METRICS, Tagger
from reprune.youtube8m.model import VideoClassifier


class YouTube8M(TorchRecipe):
    """The paper's classifier on records of videos.

    Args:
        options: What to do.
    """

    metrics = METRICS

    def __init__(self, options: Options) -> None:
        self.options: Options = options
        self.labels = _labels

    def build(self) -> VideoClassifier:
        """The dense model, always with the same weights for the same seed."""
        options = self.options
        seed_everything(options.seed, verbose=False)
        features = sum(options.features.values())
        return VideoClassifier(features, options.classes, options.hidden, normalize=options.normalize)

    def data(self, offset: int = 0) -> Videos:
        """The records."""
        return Videos(self.options, offset)

    def module(self, model: nn.Module, *, finetune: bool = False) -> Tagger:
        """The classifier with its loss, optimiser and metrics."""
        # The paper's schedule falls too slowly to end a short fine-tuning on a quiet note.
        return Tagger(model, self.options, anneal=finetune)


def _labels(share: Share) -> Tensor | None:
    return None if share.batch is None else share.batch.labels
