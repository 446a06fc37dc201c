"""What a command can know to be wrong before it works for minutes."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from reprune.core.errors import RepruneError
from reprune.core.saving.files import part_of, reason


def check_file(option: str, path: Path) -> None:
    """Try to write beside a file that is to be written at the end.

    Raises:
        RepruneError: When that fails; the message names the option.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    probe = part_of(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(21, "Is a directory")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
    except OSError as error:
        raise RepruneError(f"{option} {path} cannot be written. {reason(error)}.") from None
    finally:
        with suppress(OSError):
            probe.unlink()
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def check_installed(*modules: str) -> None:
    """Look for modules that a command needs later on.

    Raises:
        ModuleNotFoundError: When it is not installed; `Commands` says what to install.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def check_takes(found: Any, option: str, reference: str, arguments: Sequence[str]) -> Any:
    """A function that can be called with so many arguments, which the message calls by these names.

    Raises:
        RepruneError: When it cannot.
    """
    wanted = f"a function of {' and '.join(arguments)}" if arguments else "a function without arguments"
    if not callable(found):
        raise RepruneError(f"{option} {reference} is a {type(found).__name__}: give {wanted}.")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # Written in C, it does not say.
        return found
    try:
        signature.bind(*arguments)
    except TypeError:
        raise RepruneError(f"{option} {reference}{signature} does not take these: give {wanted}.") from None
    return found
