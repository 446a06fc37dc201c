"""Pruning while Lightning trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from reprune.torch.training import Pruner


class SoftPruning(Callback):
    """Steps a `Pruner` after every optimiser step, and keeps its state in Lightning's checkpoints.

    Args:
        pruner: The pruner of the model that is trained.
    """

    def __init__(self, pruner: Pruner) -> None:
        self.pruner = pruner

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count optimiser steps; with accumulated gradients, several batches make one."""
        if trainer.global_step > self.pruner.steps:
            self.pruner.step()

    def state_dict(self) -> dict[str, Any]:
        """State of the pruner."""
        return self.pruner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.pruner.load_state_dict(state_dict)
