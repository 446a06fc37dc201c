"""The folder of a run: what is done already, and files that are there whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from reprune.core.errors import RecipeError
from reprune.recipes.run.options import RunOptions

AnyOptions = TypeVar("AnyOptions", bound=RunOptions)
_OPTIONS = "options.json"
_STATE = "state.json"


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
        if (self.path / _OPTIONS).exists():
            self._check_same(options, resume)
        elif any(not file.name.startswith(".") for file in self.path.iterdir()):
            raise RecipeError(f"{self.path} holds other files and no run: give --out a new or empty folder.")
        else:
            write_json(self.path / _OPTIONS, options.to_dict())
        state = self.path / _STATE
        self._state: dict[str, Any] = read_json(state) if state.exists() else {"seconds": {}}
        if not isinstance(self._state, dict) or not isinstance(self._state.get("seconds"), dict):
            raise RecipeError(f"{state} does not say what is done: give --out another folder.")

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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place once it is on disk.

    The old file stays when writing fails, and when the machine stops at any moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
        raise RecipeError(
            f"--out {path} cannot be written: {error.strerror or error}. Give a folder that can."
        ) from None
