"""For export: states that modules keep in buffers, attributes, lists and dicts from one call to the next."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from reprune.torch.export.example import Example
from reprune.torch.export.states import differ, fresh_outputs, varied
from reprune.torch.tracing.running.copies import duplicate


class Place(NamedTuple):
    """Where a model keeps something: a module, the attribute, and keys or positions inside it."""

    module: str
    attribute: str
    keys: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """`encoder.state`, or `cells.memory.0` inside a list."""
        return ".".join([*([self.module] if self.module else []), self.attribute, *map(str, self.keys)])

    def get(self, model: nn.Module) -> Any:
        """What is there."""
        value = getattr(model.get_submodule(self.module), self.attribute)
        for key in self.keys:
            value = _item(value, key)
        return value

    def put(self, model: nn.Module, value: Any) -> None:
        """Put something else there; containers on the way are copied, for they may be shared with a snapshot."""
        module = model.get_submodule(self.module)
        module._buffers.pop(self.attribute, None)
        setattr(module, self.attribute, _replaced(getattr(module, self.attribute, None), self.keys, value))


def _item(container: Any, key: Any) -> Any:
    return container[key] if isinstance(container, (Mapping, list, tuple)) else getattr(container, key)


def _replaced(container: Any, keys: tuple[Any, ...], value: Any) -> Any:
    """A container with another value in one place, which may not exist yet: the first call may fill a list."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    if isinstance(container, (list, tuple)) or (container is None and isinstance(key, int)):
        items = list(container or [])
        items += [None] * (key + 1 - len(items))
        items[key] = _replaced(items[key], rest, value)
        if not isinstance(container, tuple):
            return items
        return type(container)(*items) if hasattr(container, "_fields") else tuple(items)
    if container is None or isinstance(container, Mapping):
        return {**(container or {}), key: _replaced((container or {}).get(key), rest, value)}
    twin = copy.copy(container)
    setattr(twin, key, _replaced(getattr(container, key, None), rest, value))
    return twin


class KeptStates:
    """The states that a model keeps; see `Carrier`. What it keeps besides is forgotten after each call.

    The model's buffers among them become plain attributes, so that a tracer takes them for values.
    """

    def __init__(
        self, model: nn.Module, places: Sequence[Place], starts: Sequence[Tensor], moved: Sequence[Place]
    ) -> None:
        self.names = [place.name for place in places]
        self.starts = list(starts)
        self._model, self._places = model, list(places)
        attributes = {(place.module, place.attribute) for place in (*places, *moved)}
        for path, name in attributes:
            module = model.get_submodule(path)
            if name in module._buffers:
                setattr(module, name, module._buffers.pop(name))
        self._before = [
            (path, name, _frozen(getattr(model.get_submodule(path), name, None))) for path, name in attributes
        ]
        self.reset()

    def give(self, states: Sequence[Tensor]) -> None:
        """See `Carrier`. In-place writes go to a copy, as what is given belongs to the caller."""
        for place, state in zip(self._places, states, strict=True):
            place.put(self._model, state.clone())

    def take(self) -> list[Tensor]:
        """See `Carrier`."""
        return [place.get(self._model) for place in self._places]

    def reset(self) -> None:
        """See `Carrier`."""
        for path, name, value in self._before:
            setattr(self._model.get_submodule(path), name, _frozen(value))


def _frozen(value: Any) -> Any:
    """A value whose containers are copies: what a call appends to them or puts in is forgotten with the copy."""
    if isinstance(value, (Tensor, nn.Module)):
        return value
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_frozen(item) for item in value]
    return copy.copy(value) if hasattr(value, "__dict__") else value


def kept_states(model: nn.Module, example: Example) -> tuple[KeptStates | None, list[str]]:
    """The states that a model keeps and its answers depend on, and notes on those that no file can carry.

    Args:
        model: The model, which is changed when states are found: see `KeptStates`.
        example: Its inputs.
    """
    other, twin = varied(example), duplicate(model)
    snapshots = [_held(twin)]
    for inputs in (example, other):
        inputs.call(twin)
        snapshots.append(_held(twin))
    before, middle, after = snapshots
    moved = [
        place for place, value in after.items() if any(_changed(old.get(place), value) for old in (before, middle))
    ]
    alone = fresh_outputs(model, other)
    if not differ(alone, fresh_outputs(model, example, other)) or differ(alone, fresh_outputs(model, other)):
        # It forgets, or is random anyway.
        return (KeptStates(model, [], [], moved) if moved else None), []
    deciding = [place for place in moved if _decides(twin, place, other)]
    unable = [place.name for place in deciding if not _fits(middle.get(place), after[place])]
    if deciding and not unable:
        starts = [_start(before.get(place), after[place]) for place in deciding]
        candidate = duplicate(model)
        if _follows(model, candidate, KeptStates(candidate, deciding, starts, moved), example, other):
            return KeptStates(model, deciding, starts, moved), []
    names = ", ".join(unable or [place.name for place in deciding]) or "something outside its attributes"
    return (KeptStates(model, [], [], moved) if moved else None), [
        f"the file forgets what the model keeps from one call to the next ({names}) and answers every call as the "
        "first one: keep it in a buffer or an attribute that holds a tensor of one size, zeros at first"
    ]


def _held(model: nn.Module) -> dict[Place, Any]:
    """Tensors, copied, and numbers that modules hold besides their parameters."""
    found: dict[Place, Any] = {}
    for path, module in model.named_modules():
        own = {**vars(module), **module._buffers}
        for name, value in own.items():
            # PyTorch's own bookkeeping and submodules begin like this; users' attributes may as well.
            if name in vars(nn.Module()) or isinstance(value, nn.Module):
                continue
            found.update(_leaves(Place(path, name), value, depth=3))
    return found


def _leaves(place: Place, value: Any, depth: int) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, Tensor):
        yield place, value.detach().clone()
    elif isinstance(value, (bool, int, float)):
        yield place, value
    elif depth and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(place._replace(keys=(*place.keys, key)), item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(place._replace(keys=(*place.keys, index)), item, depth - 1)
    elif depth and hasattr(value, "__dict__") and not callable(value):
        for name, item in vars(value).items():
            yield from _leaves(place._replace(keys=(*place.keys, name)), item, depth - 1)


def _changed(old: Any, new: Any) -> bool:
    if isinstance(new, Tensor):
        return not (isinstance(old, Tensor) and torch.equal(old, new))
    return bool(old != new)


def _fits(old: Any, new: Any) -> bool:
    return isinstance(old, Tensor) and isinstance(new, Tensor) and (old.shape, old.dtype) == (new.shape, new.dtype)


def _decides(model: nn.Module, place: Place, example: Example) -> bool:
    """Whether another value in this place changes what the next call returns."""
    twin = duplicate(model)
    value = place.get(twin)
    if isinstance(value, Tensor):
        value = value + torch.randn_like(value) if value.is_floating_point() else value + 1
    else:
        value = not value if isinstance(value, bool) else value + 1
    try:
        place.put(twin, value)
        return differ(fresh_outputs(model, example), fresh_outputs(twin, example))
    except (RuntimeError, ValueError, IndexError, TypeError):
        return True  # Its code does not run with another value.


def _start(before: Any, after: Tensor) -> Tensor:
    """The value before the first call, in the size of later ones; zeros where there was none."""
    if isinstance(before, Tensor) and before.dtype == after.dtype:
        try:
            return before.expand(after.shape).clone()
        except RuntimeError:
            pass
    return torch.zeros_like(after)


def _follows(model: nn.Module, candidate: nn.Module, carrier: KeptStates, example: Example, other: Example) -> bool:
    """Whether calls in a row with the states handed over return what the model does by itself."""
    twin, states = duplicate(model), carrier.starts
    for inputs in (example, other, example, other):
        expected = [tensor.clone() for tensor in inputs.call(twin)]
        carrier.give(states)
        outputs = inputs.call(candidate)
        states = [state.clone() for state in carrier.take()]
        carrier.reset()
        if differ(expected, outputs):
            return False
    return True
