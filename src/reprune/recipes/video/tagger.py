"""The video classifier as Lightning trains and measures it."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from reprune.recipes.run.options import Options
from reprune.recipes.video.data import Share
from reprune.torch.training.distributed import processes
from reprune.youtube8m.torch_loader import Batch
from reprune.youtube8m.torch_metrics import video_metrics

METRICS = ("gap", "map", "hit_at_1", "perr")


class Tagger(LightningModule):
    """A classifier of videos with Adam, the paper's staircase of learning rates, and YouTube-8M's four metrics.

    Args:
        model: Maps (frames, lengths) to logits; has an `output` layer.
        options: Learning rate, its decay, and the L2 penalty on the output layer.
        anneal: Lower the learning rate from epoch to epoch in equal parts as well: to 1/n in the last of n epochs.
    """

    def __init__(self, model: nn.Module, options: Options, *, anneal: bool = False) -> None:
        super().__init__()
        self.model = model
        self.options = options
        self.anneal = anneal
        self.metric = video_metrics(options.classes)

    def training_step(self, share: Share, batch_idx: int) -> Tensor:
        """Cross-entropy summed over the classes and averaged over the videos of all processes.

        It is times the number of processes, over which gradients are averaged. Where videos come with a dense model's
        answers, `options.teach` of each label is what that answers. The L2 penalty on the output layer is added.
        """
        batch = share.batch
        penalty = self.options.output_decay / 2 * self.model.get_parameter("output.weight").square().sum()
        if batch is None:
            # The others wait for this process's gradient.
            return torch.stack([parameter.sum() for parameter in self.model.parameters()]).sum() * 0 + penalty
        logits = self.model(batch.frames, batch.lengths)
        labels = batch.labels.to(logits.dtype)
        if share.answers is not None:
            labels = labels.lerp(share.answers.sigmoid().to(logits.dtype), self.options.teach)
        total = functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        loss = total / share.videos * processes()
        self.log("train_loss", loss, prog_bar=True)
        return loss + penalty

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Take a batch into the metrics."""
        self.metric.update(self.model(batch.frames, batch.lengths).float().sigmoid(), batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all videos."""
        values = self.metric.compute()
        self.log_dict({name: values[name] for name in METRICS}, prog_bar=True)
        self.metric.reset()

    def configure_optimizers(self) -> Any:
        """Adam, and the learning rate lowered in steps."""
        options = self.options
        optimizer = torch.optim.Adam(self.model.parameters(), lr=options.learning_rate)

        def factor(step: int) -> float:
            left = 1 - self.trainer.current_epoch / (self.trainer.max_epochs or 1) if self.anneal else 1.0
            return left * options.staircase(step)

        staircase = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": staircase, "interval": "step"}}
