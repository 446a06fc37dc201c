"""Keep hints of libraries that do not apply to a recipe from its user."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_HINTS = (
    # Lightning with newer versions of PyTorch.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Reading in the training process is the right choice for small data; --workers changes it.
    r"The '\w+_dataloader' does not have many workers",
    # The number of batches is not known before they are read.
    r"Your `IterableDataset` has `__len__` defined",
    r"You're resuming from a checkpoint that ended before the epoch ended",
    # Metrics are merged across processes before they are logged.
    r"It is recommended to use `self.log\(.*sync_dist=True\)`",
    # One device in a machine that has more is what --devices 1 asks for.
    r"GPU available but not used",
)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, Lightning keeps its tips, and hints that the recipes answer in their own way, to itself."""
    # TensorBoard's writer imports TensorFlow where it is installed, which then talks about its own kernels.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _HINTS:
            warnings.filterwarnings("ignore", message=message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
