"""Lightning's trainer, set up for the recipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from reprune.recipes.run.checkpoints import AtomicCheckpointIO
from reprune.recipes.run.options import RunOptions
from reprune.recipes.run.processes import devices, hardware


def make_trainer(
    options: RunOptions, *, epochs: int = 1, logs: Path | None = None, callbacks: Sequence[Callback] = ()
) -> Trainer:
    """A trainer with the options' hardware, whose checkpoints are there whole or not at all.

    Args:
        options: Accelerator, devices, precision and so on.
        epochs: Passes over the training data.
        logs: Folder of the CSV and TensorBoard logs; None keeps none. A resumed run adds a version to it.
        callbacks: Callbacks, in the order in which they are called.
    """
    loggers: list[Any] = []
    if logs is not None:
        # TensorBoard's writer imports TensorFlow where it is installed, which then talks about its kernels.
        if "tensorflow" not in sys.modules:
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        loggers = [CSVLogger(logs, name="csv"), TensorBoardLogger(logs, name="tensorboard")]
    precision: Any = options.precision
    with hardware(options):
        return Trainer(
            accelerator=options.accelerator,
            devices=devices(options),
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=precision,
            max_epochs=epochs,
            gradient_clip_val=options.clip_gradients or None,
            logger=loggers,
            callbacks=list(callbacks),
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=options.progress,
            enable_model_summary=False,
            log_every_n_steps=10,
            num_sanity_val_steps=0,
            # Every process reads its own share of the records.
            use_distributed_sampler=False,
        )
