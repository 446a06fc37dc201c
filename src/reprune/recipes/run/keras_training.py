"""What every training of a recipe in Keras does: pruning, measuring, and checkpoints from which a run goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import safetensors
import safetensors.numpy

from reprune.core.errors import RecipeError
from reprune.core.saving.files import replacing
from reprune.keras.tracing.graph import array
from reprune.recipes.run.interrupts import InterruptedRunError, Interrupts

Logs = dict[str, Any] | None


class Pruning(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells a pruner of every step, and the logs what it has selected."""

    def __init__(self, pruner: Any) -> None:
        super().__init__()
        self._pruner = pruner

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """A step was taken."""
        self._pruner.step()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Note the share."""
        if logs is not None:
            logs["pruned"] = self._pruner.removed_share()


class Measurement(keras.callbacks.Callback):  # type: ignore[misc]
    """Adds metrics to the logs of every epoch, and keeps them in a CSV file.

    Args:
        folder: Where `metrics.csv` goes; a run that goes on adds to it.
        measure: Returns metrics by name.
    """

    def __init__(self, folder: Path, measure: Callable[[], dict[str, float]]) -> None:
        super().__init__()
        self._path = folder / "metrics.csv"
        self._measure = measure

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measure."""
        logs = {} if logs is None else logs
        logs.update(self._measure())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            rows = csv.DictWriter(file, ["epoch", *sorted(logs)])
            if not file.tell():
                rows.writeheader()
            rows.writerow({"epoch": epoch, **logs})


class Checkpoints(keras.callbacks.Callback):  # type: ignore[misc]
    """Keeps one checkpoint up to date: every so many steps, after every epoch, and when told to stop.

    It holds the model, its optimizer, the position in the data, and the state of the pruner; in safetensors,
    so a file from elsewhere cannot run code. The last one stays until the next one is on disk.

    Args:
        path: The checkpoint file.
        every: Steps from one checkpoint to the next.
        model: The compiled model, its optimizer built.
        pruning: The pruner, or None.
        beside: Further variables that a step changes.
    """

    def __init__(self, path: Path, every: int, model: Any, pruning: Any = None, beside: Iterable[Any] = ()) -> None:
        super().__init__()
        self._path = path
        self._every = every
        variables = [*model.weights, *model.optimizer.variables, *beside]
        self._variables = {f"{i:04d}": v for i, v in enumerate(variables)}
        self._pruning = pruning
        self._interrupts = Interrupts()
        self._epoch, self._done, self._steps = 0, 0, 0

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, Ctrl-C finishes the step, saves, and raises `InterruptedRunError`; a second one stops at once."""
        self._interrupts.listen()
        try:
            yield
        finally:
            self._interrupts.restore()

    def load(self) -> tuple[int, int]:
        """Go on where the checkpoint was saved, if there is one; the epoch, and how many of its batches are used up.

        Raises:
            RecipeError: When it cannot be read.
        """
        if not self._path.exists():
            self._save()
            # Only tried: a run that fails in its first step has nothing worth keeping.
            self._path.unlink()
            return 0, 0
        try:
            with safetensors.safe_open(str(self._path), framework="numpy") as file:
                state = json.loads(file.metadata()["state"])
                if self._pruning is not None:
                    # First: it gives the variables the sizes that they had.
                    self._pruning.load_state_dict(state["pruning"])
                for name, variable in self._variables.items():
                    variable.assign(file.get_tensor(name))
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise RecipeError(
                f"The checkpoint {self._path} cannot be read: {error}. Start again in another folder."
            ) from error
        self._epoch, self._done, self._steps = state["epoch"], state["batches"], state["steps"]
        return self._epoch, self._done

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Count batches from here; in the epoch that is gone on with, from where it was left."""
        if epoch != self._epoch:
            self._epoch, self._done = epoch, 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Save when it is time, or when the run is to stop."""
        self._done += 1
        self._steps += 1
        if self._interrupts.asked or self._steps % self._every == 0:
            self._save()
        self._stop_if_asked(f"in epoch {self._epoch + 1}, after {self._steps} steps")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Save after every epoch."""
        self._epoch, self._done = epoch + 1, 0
        self._save()
        self._stop_if_asked(f"after epoch {epoch + 1}")

    def _stop_if_asked(self, where: str) -> None:
        if self._interrupts.asked:
            raise InterruptedRunError(f"Stopped {where}: --resume goes on.")

    def _save(self) -> None:
        state = {"epoch": self._epoch, "batches": self._done, "steps": self._steps}
        if self._pruning is not None:
            state["pruning"] = self._pruning.state_dict()
        tensors = {name: array(variable) for name, variable in self._variables.items()}
        try:
            with replacing(self._path) as part:
                safetensors.numpy.save_file(tensors, str(part), metadata={"state": json.dumps(state)})
        except (OSError, safetensors.SafetensorError) as error:
            raise RecipeError(
                f"The checkpoint {self._path} cannot be written: {error}. Make room, then add --resume to go on."
            ) from error
