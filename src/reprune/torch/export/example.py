"""Example inputs: their names, and the same inputs in other sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from reprune.core.exporting import ExportError
from reprune.torch.tracing.running.copies import duplicate

Axis = tuple[int, int]
"""An input's position and one of its axes."""


@dataclass(frozen=True)
class Example:
    """Arguments of a model's `forward`.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        names: A name for each tensor in them, in order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, example: Any) -> Example:
        """From an input as `prune` takes it: a tensor, a tuple or list of arguments, or a dict of them.

        Raises:
            ExportError: When it holds something that no file format can take as an input.
        """
        args = (
            () if isinstance(example, Mapping) else tuple(example) if isinstance(example, (tuple, list)) else (example,)
        )
        kwargs = dict(example) if isinstance(example, Mapping) else {}
        if any(isinstance(leaf, PackedSequence) for leaf in (*args, *kwargs.values())):
            raise ExportError(
                "A PackedSequence cannot be an input of an exported file. Let forward take padded sequences and their "
                "lengths, and call pack_padded_sequence inside: that is exported."
            )
        parameters = list(inspect.signature(model.forward).parameters)
        names = []
        for path, leaf in pytree.tree_leaves_with_path((args, kwargs)):
            if isinstance(leaf, Tensor):
                names.append(_name(path, parameters))
        if not names:
            raise ExportError(
                f"The example holds no tensor: {type(example).__name__}. Give inputs as the model takes them."
            )
        return cls(args, kwargs, tuple(names))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, in order."""
        return [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    def tensor(self, name: str) -> Tensor:
        """The tensor of a name."""
        return self.tensors[self.names.index(name)]

    def with_tensors(self, change: Callable[[int, Tensor], Any]) -> Example:
        """The same arguments with every tensor replaced by `change(position, tensor)`."""
        leaves, spec = pytree.tree_flatten((self.args, self.kwargs))
        position = -1
        changed = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                position += 1
                leaf = change(position, leaf)
            changed.append(leaf)
        args, kwargs = pytree.tree_unflatten(changed, spec)
        return Example(args, kwargs, self.names)

    def resized(self, sizes: Mapping[Axis, int]) -> Example:
        """The same inputs repeated or cut along some axes; rows go on with what the example holds."""

        def resize(position: int, tensor: Tensor) -> Tensor:
            for axis in range(tensor.dim()):
                size = sizes.get((position, axis), tensor.shape[axis])
                tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
            return tensor

        return self.with_tensors(resize)

    def dynamic_shapes(self, model: nn.Module, free: Collection[Axis]) -> Any:
        """The argument of `torch.export.export` that leaves these axes free."""
        positions = {id(tensor): position for position, tensor in enumerate(self.tensors)}

        def shape(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return None
            position = positions[id(leaf)]
            return {axis: torch.export.Dim.AUTO for axis in range(leaf.dim()) if (position, axis) in free}

        signature = inspect.signature(model.forward)
        bound = signature.bind(*self.args, **self.kwargs).arguments
        extra = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")
        named = {**bound, **bound.pop(extra, {})}
        return pytree.tree_map(shape, named)

    def returned(self, model: nn.Module) -> Any:
        """What the model returns; the example is left as it was."""
        with torch.no_grad():
            # Copies: a model may write into what it is given, or hand it on.
            copied = self.with_tensors(lambda _, tensor: tensor.clone())
            return model(*copied.args, **copied.kwargs)

    def call(self, model: nn.Module) -> list[Tensor]:
        """The tensors that the model returns, nested ones flattened; the example is left as it was."""
        returned = self.returned(model)
        leaves = pytree.tree_leaves(returned)
        if any(isinstance(leaf, PackedSequence) for leaf in _containers(returned)):
            raise ExportError(
                f"{type(model).__name__} returns a PackedSequence, which no file format knows: "
                "return pad_packed_sequence(output) instead."
            )
        return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def arrays(self) -> list[Any]:
        """The tensors as NumPy arrays."""
        return [tensor.numpy() for tensor in self.tensors]


def require_part(model: nn.Module, path: str) -> None:
    """Raise an `ExportError` if a model has no module of this path."""
    parts = dict(model.named_modules())
    if path not in parts:
        near = ", ".join(name for name in parts if name and "." not in name)
        raise ExportError(f"submodule={path!r}: {type(model).__name__} has no such part; it has {near}.")


def submodule_example(model: nn.Module, example: Example, path: str) -> Example:
    """What a part of a model is given first when the model runs on an example.

    Raises:
        ExportError: When it does not run.
    """
    twin = duplicate(model)
    part, seen = twin.get_submodule(path), []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))

    handle = part.register_forward_pre_hook(note, with_kwargs=True)
    try:
        require_runs(twin, example, f"submodule={path!r}")
    finally:
        handle.remove()
    if not seen:
        raise ExportError(f"submodule={path!r} does not run as a module when the model does.")
    args, kwargs = seen[0]
    bound = inspect.signature(part.forward).bind(*args, **kwargs)
    given = bound.args if not bound.kwargs else {**bound.arguments, **bound.arguments.pop("kwargs", {})}
    return Example.of(part, given).with_tensors(lambda _, tensor: tensor.detach())


def require_runs(model: nn.Module, example: Example, what: str) -> list[Tensor]:
    """What a model returns; raises an `ExportError` that names the option and the shapes if it does not run."""
    try:
        return example.call(model)
    except ExportError:
        raise
    except Exception as error:  # Whatever the model's own code raises.
        shapes = ", ".join(map(shape_of, example.tensors))
        raise ExportError(f"{what}: {title(model)} does not run on {shapes}: {error}") from error


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape, for messages."""
    return "×".join(map(str, tensor.shape)) or "a scalar"


def title(model: nn.Module) -> str:
    """What errors call a model: its class, and within an export that of the user's own."""
    return str(getattr(model, "title", type(model).__name__))


def _containers(returned: Any) -> list[Any]:
    found: list[Any] = pytree.tree_leaves(returned, is_leaf=lambda node: isinstance(node, PackedSequence))
    return found


def _name(path: tuple[Any, ...], parameters: list[str]) -> str:
    """`hx_0` for the first tensor of the argument `hx`."""
    keys = [next(getattr(key, kind) for kind in ("idx", "key", "name") if hasattr(key, kind)) for key in path[1:]]
    first = keys[0]
    if isinstance(first, int):
        # Arguments beyond the named ones belong to *args, which has the last name.
        name = parameters[first] if first < len(parameters) else f"{parameters[-1]}_{first - len(parameters) + 1}"
    else:
        name = str(first)
    return "_".join([name, *map(str, keys[1:])])
