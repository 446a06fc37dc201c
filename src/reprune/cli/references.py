"""Objects that command lines name as `package.module:name`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

from reprune.cli.checks import check_takes
from reprune.core.errors import RepruneError, did_you_mean


def build(reference: str) -> Any:
    """The model that a reference names, or the one that the function it names returns.

    Raises:
        RepruneError: When there is no such module or name.
    """
    found = find(reference)
    # A model can be called as well; a factory is a function or a class.
    is_model = not isinstance(found, type) and (hasattr(found, "state_dict") or hasattr(found, "layers"))
    return found if is_model else check_takes(found, "the model", reference, ())()


def value(reference: str) -> Any:
    """The data that a reference names, or what the function it names returns.

    Raises:
        RepruneError: When there is no such module or name.
    """
    found = find(reference)
    is_value = isinstance(found, (Mapping, list, tuple)) or hasattr(found, "shape") or not callable(found)
    return found if is_value else check_takes(found, "the data", reference, ())()


def function(option: str, reference: str | None, *arguments: str) -> Any:
    """The function that a reference names, which can be called with so many arguments; None for no reference.

    Raises:
        RepruneError: When there is no such function, or it takes others.
    """
    return None if reference is None else check_takes(find(reference), option, reference, arguments)


def find(reference: str) -> Any:
    """The object that `package.module:name` means, looked for from the current folder as well.

    Raises:
        RepruneError: When there is no such module or name.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise RepruneError(f"{reference!r} is not of the form package.module:name.")
    # A console script has its own folder first on the path, not the user's.
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        hint = "run reprune where it can be imported."
        if module.endswith(".py"):
            hint = f"a file is named without its ending, {module.removesuffix('.py').replace('/', '.')}:{name}."
        raise RepruneError(f"{reference!r}: there is no module {error.name!r}; {hint}") from None
    try:
        return getattr(found, name)
    except AttributeError:
        near = did_you_mean(name, dir(found))
        raise RepruneError(f"{reference!r}: module {module!r} has no {name!r}.{near}") from None
