"""Private copies of models and batches: whatever a pass writes, it writes into these."""

from __future__ import annotations

import copy
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def duplicate(model: Model, instead: Mapping[int, torch.Tensor] | None = None, *, share: bool = False) -> Model:
    """A deep copy of a model, in which tensors computed with a graph are plain values.

    What Python cannot copy (a lock, an open file, a pool of threads) belongs to both.

    Args:
        model: The model; another thread may be running it.
        instead: What the copy has in the places of tensors that are not copied, by their id.
        share: Use the same memory for its parameters; only for a model that is private itself.
    """
    memo: dict[int, Any] = dict(instead or {})
    if share:
        for weight in model.parameters():
            if type(weight) is nn.Parameter:
                memo[id(weight)] = nn.Parameter(weight.detach(), weight.requires_grad)
    for module in model.modules():
        _plain(list(vars(module).values()), memo)
    twin: Model = _copy(model, memo)
    for module in twin.modules():
        if isinstance(module, nn.RNNBase) and not share:
            # Copied weights lie in memory one by one; cuDNN wants those of a module in one piece.
            module.flatten_parameters()
    return twin


def fresh(batch: Any) -> Any:
    """A copy of a batch into which a model may write; tensors computed with a graph, or in inference mode, are plain.

    What cannot be copied (an open file beside the tensors) is shared.
    """
    memo: dict[int, Any] = {}
    _plain(batch, memo)
    _cropped(batch, memo)
    return _copy(batch, memo)


def _plain(value: Any, memo: dict[int, Any]) -> None:
    """Tell a copy that tensors with a graph, which `copy.deepcopy` refuses, are to be plain values."""
    for tensor in _held(value, depth=4):
        if not tensor.is_leaf and id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()


def _cropped(value: Any, memo: dict[int, Any]) -> None:
    """Tell a copy to take a view's own elements alone: `copy.deepcopy` takes the whole memory that it looks into.

    Batches cut from one tensor would be copied with all of the data every time. Views that share memory with others of
    the batch are left alone, as what is written into one has to be seen in the other.
    """
    views = [tensor for tensor in _held(value, depth=4) if type(tensor) is torch.Tensor and id(tensor) not in memo]
    views = list({id(view): view for view in views if view.layout is torch.strided}.values())
    shared = Counter(view.untyped_storage().data_ptr() for view in views)
    for view in views:
        storage = view.untyped_storage()
        if shared[storage.data_ptr()] == 1 and view.nbytes < storage.nbytes() and not view.requires_grad:
            memo[id(view)] = view.clone()


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    """A deep copy; where there is none of the whole, of its parts: containers, modules and plain objects."""
    trial = dict(memo)  # What has failed leaves unfinished copies behind.
    try:
        copied = copy.deepcopy(value, trial)
    except Exception:  # Whatever an object raises that does not want to be copied.
        return _copy_parts(value, memo)
    memo.update(trial)
    return copied


def _copy_parts(value: Any, memo: dict[int, Any]) -> Any:
    if id(value) in memo:
        return memo[id(value)]
    made: Any = value
    if isinstance(value, dict):
        made = memo[id(value)] = copy.copy(value)
        made.update({key: _copy(item, memo) for key, item in list(value.items())})
    elif type(value) is list:
        made = memo[id(value)] = []
        made.extend(_copy(item, memo) for item in list(value))
    elif type(value) is tuple:
        made = tuple(_copy(item, memo) for item in value)
    elif isinstance(value, nn.Module) or _is_plain(value):
        made = memo[id(value)] = object.__new__(type(value))
        made.__dict__.update({name: _copy(item, memo) for name, item in list(vars(value).items())})
    return memo.setdefault(id(value), made)


def _is_plain(value: Any) -> bool:
    """Whether a value is an object of a user's class, all of whose state is in its attributes."""
    kind: Any = type(value)
    known = kind.__module__.partition(".")[0] in sys.stdlib_module_names
    return kind.__new__ is object.__new__ and hasattr(value, "__dict__") and not known


def _held(value: Any, depth: int) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from _held(item, depth - 1)
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _held(item, depth - 1)
