"""Checkpoints from which a run goes on as if nothing had happened."""

from __future__ import annotations

import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from reprune.core.errors import RecipeError
from reprune.core.saving.files import replacing
from reprune.recipes.run.interrupts import InterruptedRunError, Interrupts
from reprune.recipes.run.processes import once
from reprune.torch.training.distributed import everyone, rank, summed

_PARTS = ("state_dict", "optimizer_states", "callbacks", "loops", "pytorch-lightning_version")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the last one, and lets it take its place only when all of it is on disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            RecipeError: When the disk is full or the folder cannot be written any more; the last one is still good.
        """
        try:
            with replacing(Path(path)) as part:
                torch.save(checkpoint, part)
        except (OSError, RuntimeError) as error:
            raise RecipeError(
                f"The checkpoint {path} cannot be written: {error}. Make room, then add --resume to go on."
            ) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain data only, so a file from elsewhere cannot run code.

        Raises:
            RecipeError: When it cannot be read, or is damaged anywhere.
        """
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()  # PyTorch itself looks at no checksum.
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} in it does not have its checksum")
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
            if not isinstance(checkpoint, dict) or not all(checkpoint.get(part) for part in _PARTS):
                raise zipfile.BadZipFile(f"it does not hold {', '.join(_PARTS)}")
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:
            raise RecipeError(
                f"The checkpoint {path} cannot be read: {error}. Delete it and add --resume, to begin this part of the "
                "run anew, or give --out another folder."
            ) from error
        return checkpoint


class Checkpoints(Checkpoint):
    """Keeps one checkpoint up to date: at the start, every so many steps, after every epoch, and when told to stop.

    The first one is there before a step is spent, and after the first step, when the optimiser has its moments, two
    more: so a disk without room for a checkpoint beside the last one shows at once. Beside what Lightning saves, it
    holds the position in the data and the state of the random number generators. A training that fails in its very
    first step has nothing worth keeping, and takes its checkpoint along.

    Ctrl-C finishes the step, saves, and raises `InterruptedRunError`; a second one stops at once.

    Args:
        path: The checkpoint file.
        every: Steps from one checkpoint to the next.
        position: Told where the data go on, as (epoch, batches of it that are used up), when a checkpoint is loaded.
    """

    def __init__(self, path: Path, every: int, position: Callable[[int, int], None]) -> None:
        self.path = path
        self.every = every
        self._tell = position
        self._position = (0, 0)
        self._has_room = False
        self._is_new = False
        self._interrupts = Interrupts()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C, and save unless there is a checkpoint already."""
        self._interrupts.listen()
        if not once(self.path.exists):
            trainer.save_checkpoint(self.path)
            self._is_new = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, or when the run is to stop."""
        self._position = (trainer.current_epoch, batch_idx + 1)
        # A signal reaches the processes at different steps, but all must stop at the same.
        stop = summed(self._interrupts.asked or trainer.received_sigterm) > 0
        # After its last batch an epoch still has to be measured: that checkpoint comes when it is over.
        if trainer.is_last_batch:
            return
        if stop or not self._has_room or trainer.global_step % self.every == 0:
            trainer.save_checkpoint(self.path)
        if not self._has_room:
            trainer.save_checkpoint(self.path)
            self._has_room = True
        if stop:
            raise InterruptedRunError(
                f"Stopped in epoch {trainer.current_epoch + 1}, after {trainer.global_step} steps: --resume goes on."
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after every epoch."""
        self._position = (trainer.current_epoch + 1, 0)
        trainer.save_checkpoint(self.path)
        if summed(self._interrupts.asked or trainer.received_sigterm):
            raise InterruptedRunError(f"Stopped after epoch {trainer.current_epoch + 1}: --resume goes on.")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C its usual meaning back, and leave nothing of a training that could not begin."""
        self._interrupts.restore()
        stopped = isinstance(exception, InterruptedRunError) or not isinstance(exception, Exception)
        if self._is_new and trainer.global_step == 0 and not stopped and trainer.is_global_zero:
            self.path.unlink(missing_ok=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give Ctrl-C its usual meaning back."""
        self._interrupts.restore()

    def state_dict(self) -> dict[str, Any]:
        """Position in the data and state of the random number generators."""
        generators = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
        return {"position": self._position, "generators": everyone(generators)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._position = tuple(state_dict["position"])
        self._tell(*self._position)
        host, *devices = state_dict["generators"][rank()]
        torch.set_rng_state(host.cpu())
        if len(devices) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in devices])
