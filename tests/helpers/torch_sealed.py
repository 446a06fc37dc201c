"""A model that cannot be written to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class TouchedError(AssertionError):
    """Something was written to the user's model."""


def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise TouchedError(f"{type(self).__name__} was written to")


class Sealed(dict):  # type: ignore[type-arg]
    """A dictionary that can be read only; copies of it are what it was before."""

    def __init__(self, plain: dict[Any, Any]) -> None:
        dict.__init__(self, plain)
        self.kind = type(plain)

    __setitem__ = __delitem__ = update = pop = popitem = setdefault = clear = refuse

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[Any, Any]:
        memo[id(self)] = copied = self.kind()
        for key, value in self.items():
            copied[key] = copy.deepcopy(value, memo)
        return copied

    def __copy__(self) -> dict[Any, Any]:
        return self.kind(self)

    def copy(self) -> dict[Any, Any]:
        return self.kind(self)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@contextmanager
def sealed(model: nn.Module) -> Iterator[None]:
    """Within this context, any write to the model raises: to attributes, dictionaries, modes, hooks, tensors."""
    kinds = {type(module) for module in model.modules()}
    modules = set(map(id, model.modules()))
    before = {name: (id(t), t._version, t.detach().clone(), t.requires_grad) for name, t in tensors_of(model).items()}
    held = [(module, dict(vars(module))) for module in model.modules()]
    lists = [(value, list(value)) for _, attributes in held for value in attributes.values() if type(value) is list]

    def guarded(name: str, plain: Any) -> Any:
        def write(self: Any, *args: Any) -> Any:
            if id(self) in modules:
                raise TouchedError(f"{type(self).__name__}: {name}{args[:1]}")
            return plain(self, *args)

        return write

    patched = [(kind, name, vars(kind).get(name)) for kind in kinds for name in ("__setattr__", "__delattr__")]
    for kind, name, _ in patched:
        setattr(kind, name, guarded(name, getattr(kind, name)))
    for module, attributes in held:
        kept = {name: Sealed(value) if isinstance(value, dict) else value for name, value in attributes.items()}
        object.__setattr__(module, "__dict__", Sealed(kept))
    try:
        yield
        assert all(value == items for value, items in lists if not any(map(torch.is_tensor, items)))
        for module, attributes in held:
            assert vars(module).keys() == attributes.keys()
            for name, value in attributes.items():
                found = vars(module)[name]
                assert dict(found) == dict(value) if isinstance(value, dict) else found is value, name
        for name, tensor in tensors_of(model).items():
            identity, version, values, requires = before[name]
            assert (id(tensor), tensor._version, tensor.requires_grad) == (identity, version, requires), name
            assert torch.equal(tensor, values), name
            assert tensor.grad is None, name
    finally:
        for kind, name, own in patched:
            delattr(kind, name) if own is None else setattr(kind, name, own)
        for module, attributes in held:
            object.__setattr__(module, "__dict__", attributes)
