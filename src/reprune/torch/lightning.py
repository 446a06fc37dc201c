"""Pruning while Lightning trains. Lightning is imported here and nowhere else in `reprune.torch`."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from reprune.core.passes import Labels
from reprune.torch.training.distributed import everyone, rank
from reprune.torch.training.pruner import Pruner


class PruningCallback(Callback):
    """Steps a `Pruner` after every optimiser step, and keeps its state in Lightning's checkpoints.

    A method's own term needs no change of `training_step`: its gradient is added before the optimiser steps.

    Args:
        pruner: The pruner of the model that is trained.
        labels: Classes of a batch's sequences, for methods that look at them: a function of a batch that returns class
            numbers (sequences) or ones and zeros (sequences × classes).

    Example:
        >>> pruner = Pruner(module.model, ratio=0.5, schedule="soft:200")        # doctest: +SKIP
        >>> Trainer(callbacks=[PruningCallback(pruner)]).fit(module, loader)     # doctest: +SKIP
        >>> small = pruner.finish()                                              # doctest: +SKIP
    """

    def __init__(self, pruner: Pruner, labels: Labels | None = None) -> None:
        self.pruner = pruner
        self._labels = labels

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let a model that had shrunk take its later size before a checkpoint's weights go into it."""
        if stage != "fit" or not self.pruner.schedule.shrinks:
            return
        inner = pl_module.on_load_checkpoint

        def first_shrink(checkpoint: dict[str, Any]) -> None:
            self.load_state_dict(checkpoint["callbacks"][self.state_key])
            inner(checkpoint)

        # Callbacks are told after the weights were loaded, the module before.
        pl_module.on_load_checkpoint = first_shrink  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the pruner what the trainer knows: the optimisers, and how long it will train."""
        if not self.pruner.optimizers:
            self.pruner.optimizers = list(trainer.optimizers)
        if self.pruner.total_steps is None and math.isfinite(trainer.estimated_stepping_batches):
            self.pruner.total_steps = int(trainer.estimated_stepping_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Tell the pruner the classes of the batch."""
        if self._labels is not None:
            self.pruner.label(self._labels(batch))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Add the gradient of the method's own term: once for each step, and after losses were scaled back."""
        term = self.pruner.loss()
        if term.requires_grad:
            term.backward()  # type: ignore[no-untyped-call]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count optimiser steps; with accumulated gradients, several batches make one."""
        if trainer.global_step > self.pruner.steps:
            self.pruner.step()

    def state_dict(self) -> dict[str, Any]:
        """State of the pruner, in every process."""
        return {"processes": everyone(self.pruner.state_dict())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.pruner.load_state_dict(state_dict["processes"][rank()])
