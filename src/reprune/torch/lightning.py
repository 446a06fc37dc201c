"""Pruning while Lightning trains. Lightning is imported here and nowhere else in `reprune.torch`."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from reprune.core.answers.divergence import Divergence, aligned, divergence_of
from reprune.core.evidence.passes import Labels
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.training.distill import Teacher
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


class TeachingCallback(Callback):
    """Lets a small model learn from a dense one's answers beside whatever its module's loss says.

    No change of `training_step`: where the gradient of the loss arrives at an output of the small model, it becomes
    (1 − share) of itself and `share` of the gradient of the divergence from the dense model's answers to the same
    inputs, a mean over the rows of that output. A loss that is summed over something else wants `scale`.

    Args:
        small: The model that learns, some module within the `LightningModule`.
        dense: The model that it was pruned from. It runs in eval mode, and moves to the device of the inputs.
        share: Of the dense model's answers in what is learned, from 0 to 1.
        divergence: How outputs are compared: `kl`, `bce`, `mse` or `cosine`; what they look like by default.
        scale: What the mean over rows is multiplied by, to be of the loss's unit: the number of steps of a window over
            which the loss is summed, say.

    Example:
        >>> callback = TeachingCallback(module.model, dense, share=0.5)          # doctest: +SKIP
        >>> Trainer(callbacks=[callback]).fit(module, loader)                    # doctest: +SKIP
    """

    def __init__(
        self,
        small: nn.Module,
        dense: nn.Module,
        share: float = 0.5,
        *,
        divergence: str | None = None,
        scale: float = 1.0,
    ) -> None:
        self._small, self._teacher, self._share, self._scale = small, Teacher(dense), share, scale
        self._divergence, self._kinds = divergence, dict[int, Divergence]()
        self._handle: Any = None
        self._factor = 1.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the small model is given and answers from here on."""
        self._handle = self._small.register_forward_hook(self._answered, with_kwargs=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note what Lightning multiplies the loss by."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._factor = (1.0 if scaler is None else scaler.get_scale()) / trainer.accumulate_grad_batches

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no more."""
        self._handle.remove()

    def _answered(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not module.training or not torch.is_grad_enabled():
            return
        wanted = tensors_in(self._teacher(*args, **kwargs))
        for place, (own, dense) in enumerate(zip(tensors_in(output), wanted, strict=True)):
            if own.requires_grad and own.shape == dense.shape and own.ndim:
                own.register_hook(partial(self._shared, place, own.detach(), dense))  # type: ignore[no-untyped-call]

    def _shared(self, place: int, own: Tensor, dense: Tensor, gradient: Tensor) -> Tensor:
        width = own.shape[-1] if own.ndim > 1 else 1
        found, wanted = aligned(own.reshape(-1, width).float(), dense.reshape(-1, width).float())
        if place not in self._kinds:
            self._kinds[place] = divergence_of(wanted, self._divergence)
        taught = self._kinds[place].gradient(found, wanted).reshape(own.shape) / len(found)
        shared: Tensor = gradient.lerp(self._scale * self._factor * taught.to(gradient.dtype), self._share)
        return shared
