"""Models whose `call` takes several tensors: `model(frames, lengths)`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from reprune.core.errors import UnsupportedModelError

# What Keras itself passes, and every rebuilt model takes.
_OWN = ("training", "mask")


class Arguments:
    """The arguments of one call of a model, in the order of its signature.

    Attributes:
        names: Their names.
        values: Tensors, or nests of tensors.
    """

    def __init__(self, names: tuple[str, ...], values: tuple[Any, ...]) -> None:
        self.names = names
        self.values = values


@keras.saving.register_keras_serializable(package="reprune")
class ManyArguments(keras.Model):  # type: ignore[misc]
    """A functional model that is called as the subclassed one from which it was made: `model(frames, lengths)`.

    A list of all arguments is taken, too, which is how `fit` and `predict` give them.

    Example:
        >>> a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
        >>> model = ManyArguments(inputs=[a, b], outputs=keras.ops.subtract(a, b))
        >>> model(b=np.ones((1, 3)), a=np.zeros((1, 3)))                     # doctest: +SKIP
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """The outputs for these arguments, by position or by name."""
        return super().__call__(*self.together(arguments, options), **options)

    def together(self, arguments: Sequence[Any], options: dict[str, Any]) -> Sequence[Any]:
        """The inputs among the arguments of a call as one list, in the model's order; they leave `options`."""
        named = {spec.name: options.pop(spec.name) for spec in self.inputs if spec.name in options}
        if len(arguments) + len(named) < 2:
            return arguments
        names = [getattr(spec, "name", None) for spec in self.input]
        return ([*arguments, *(named[name] for name in names[len(arguments) :])],)


def arguments_of(model: Any, *args: Any, **options: Any) -> Any:
    """What a model is called with: its one argument, or `Arguments` if there are several.

    Raises:
        UnsupportedModelError: When an argument is no tensor: it would be built into the pruned model.
    """
    options = {name: value for name, value in options.items() if name not in _OWN}
    if isinstance(model, ManyArguments):
        args = tuple(model.together(args, options))
    if len(args) + len(options) == 1:
        return args[0] if args else next(iter(options.values()))
    bound = inspect.signature(model.call).bind(*args, **options).arguments
    given = {name: value for name, value in bound.items() if name not in _OWN}
    for name, value in given.items():
        leaves = keras.tree.flatten(value)
        if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
            raise UnsupportedModelError(
                f"{type(model).__name__} was called with {name}={value!r}, which is no tensor: it would be built "
                "into the pruned model: leave it out of forward=…, or make it an attribute of the model."
            )
    return next(iter(given.values())) if len(given) == 1 else Arguments(tuple(given), tuple(given.values()))


def wanted_arguments(model: Any) -> list[str]:
    """Names of the arguments without which a model cannot be called."""
    parts = inspect.signature(model.call).parameters.values()
    return [
        part.name
        for part in parts
        if part.name not in _OWN
        and part.default is part.empty
        and part.kind not in (part.VAR_POSITIONAL, part.VAR_KEYWORD)
    ]


def called_with(model: Any, batch: Any) -> Any:
    """A batch as the arguments of a model: a tuple or a dict stands for several if `call` takes several.

    A tuple from a data set is usually inputs and labels, so this is only so where `call` asks for it.
    """
    if not isinstance(batch, (tuple, Mapping)) or hasattr(model, "operations"):
        return batch
    wanted = wanted_arguments(model)
    if len(wanted) < 2:
        return batch
    if isinstance(batch, Mapping):
        return arguments_of(model, **batch) if set(wanted) <= set(batch) else batch
    return arguments_of(model, *batch)
