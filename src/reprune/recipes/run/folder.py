"""The folder of a run: what is done already, and files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from reprune.core.errors import RecipeError
from reprune.core.saving.files import reason, replacing, sole_writer
from reprune.recipes.run.interrupts import InterruptedRunError, stopped_by_user
from reprune.recipes.run.options import RunOptions

AnyOptions = TypeVar("AnyOptions", bound=RunOptions)
_OPTIONS = "options.json"
_STATE = "state.json"
_ANSWERS = "answers"
_OWN = (_OPTIONS, _STATE, _ANSWERS, "checkpoints", "logs", "data")


class RunFolder:
    """The folder of one run.

    A part of the run that is over is named in `state.json`, with the seconds it took, once everything it hands on is on
    disk; so after an interruption at any moment, `done` says where to go on.

    Attributes:
        path: The folder.
        writes: Whether this process notes what is done; of several, the first one does.
    """

    def __init__(self, path: str | os.PathLike[str], options: RunOptions, *, resume: bool = False) -> None:
        """Start a run in a folder, or take up the one that is there.

        Args:
            path: The folder; it is made when it does not exist.
            options: The options of the run.
            resume: Go on with the run that the folder holds. Without one, it starts like any other.

        Raises:
            RecipeError: The folder cannot be written, is not empty, or holds a run with other options.
        """
        self.path = Path(path)
        self.writes = True
        check_writable(self.path)
        if (self.path / _OPTIONS).exists() and self.worth_keeping():
            self._check_same(options, resume)
        elif not (self.path / _OPTIONS).exists() and any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise RecipeError(f"{self.path} holds other files and no run: give --out a new or empty folder.")
        else:
            write_json(self.path / _OPTIONS, options.to_dict())
        state = self.path / _STATE
        self._state: dict[str, Any] = read_json(state) if state.exists() else {"seconds": {}}
        if not isinstance(self._state, dict) or not isinstance(self._state.get("seconds"), dict):
            raise RecipeError(f"{state} does not say what is done: give --out another folder.")

    def worth_keeping(self) -> bool:
        """Whether any part of the run is done, or has come as far as a checkpoint."""
        checkpoints = self.path / "checkpoints"
        saved = [path for path in checkpoints.iterdir() if path.suffix != ".part"] if checkpoints.is_dir() else []
        return bool(saved) or (self.path / _STATE).exists()

    def discard(self) -> None:
        """Remove what a run writes before there is anything worth keeping."""
        for name in _OWN:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _check_same(self, options: RunOptions, resume: bool) -> None:
        if not resume:
            raise RecipeError(
                f"{self.path} holds a run already: add --resume to go on with it, or give --out another folder."
            )
        differences = options_of(self.path, type(options)).differences(options)
        if differences:
            lines = "".join(f"\n  {line}" for line in differences)
            raise RecipeError(
                f"{self.path} holds a run with other options:{lines}\n"
                "Resume it with its own options, or give --out another folder."
            )

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds that each finished part took."""
        return dict(self._state["seconds"])

    def done(self, part: str) -> bool:
        """Whether a part of the run is over."""
        return part in self._state["seconds"]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time a part of the run, and note it as done when it ends without an error."""
        start = time.perf_counter()
        yield
        self._state["seconds"][name] = round(time.perf_counter() - start, 2)
        if self.writes:
            write_json(self.path / _STATE, self._state)

    @property
    def answers(self) -> Path:
        """Where a dense model's answers to the training data are kept while they are learned."""
        return self.path / _ANSWERS

    def checkpoint(self, part: str) -> Path:
        """The checkpoint of a part that trains."""
        return self.path / "checkpoints" / f"{part}.ckpt"


def options_of(path: str | os.PathLike[str], kind: type[AnyOptions]) -> AnyOptions:
    """The options of the run that a folder holds.

    Raises:
        RecipeError: When it holds none, or one of another recipe.
    """
    file = Path(path) / _OPTIONS
    if not file.exists():
        raise RecipeError(f"{path} is not the folder of a run: it has no {_OPTIONS}.")
    return kind.from_dict(read_json(file))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        RecipeError: When it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path} is not valid JSON: {error}.") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is there whole or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def check_writable(path: Path) -> None:
    """Make a folder unless it is there.

    Raises:
        RecipeError: When nothing can be written to it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise RecipeError(f"--out {path} cannot be written. {reason(error)}.") from None


@contextmanager
def opened(
    path: Path, options: RunOptions, *, resume: bool = False, go_on: str = "add --resume to go on"
) -> Iterator[RunFolder]:
    """The folder of a run, which no other process writes to meanwhile.

    A run that fails, or is stopped, before there is anything worth keeping leaves nothing behind.

    Args:
        path: See `RunFolder`, as the following ones.
        options: The options of the run.
        resume: Go on with the run that the folder holds.
        go_on: What to tell somebody who presses Ctrl-C.

    Raises:
        RecipeError: See `RunFolder`.
        SaveError: Another process is at work there.
        InterruptedRunError: For Ctrl-C.
    """
    with held(path):
        folder = RunFolder(path, options, resume=resume)
        try:
            yield folder
        except BaseException as error:
            kept = folder.worth_keeping()
            if not kept:
                folder.discard()
            if stopped_by_user(error):
                raise InterruptedRunError(
                    f"Stopped: what is done is kept in {path}, {go_on}."
                    if kept
                    else "Stopped before there was anything to keep: the same command starts anew."
                ) from None
            raise


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A folder that no other process writes to meanwhile; made if need be, and not left behind empty.

    Raises:
        RecipeError: When nothing can be written to it.
        SaveError: When another process is at work there.
    """
    made = not path.exists()
    check_writable(path)
    try:
        with sole_writer(path):
            yield
    finally:
        if made and path.exists() and not any(path.iterdir()):
            path.rmdir()
