"""For export: the states of recurrent modules as inputs and outputs of the model, to run it chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.exporting import ExportError
from reprune.torch.export.example import Example
from reprune.torch.export.recurrent import recurrent_modules

_fake: Callable[[str], Callable[[Callable[..., Any]], Callable[..., Any]]] = torch.library.register_fake
torch.library.define("reprune::to_batch", "(Tensor state, Tensor data, int axis) -> Tensor")


@torch.library.impl("reprune::to_batch", "CompositeExplicitAutograd")
def _to_batch(state: Tensor, data: Tensor, axis: int) -> Tensor:
    return state.expand(*state.shape[:-2], data.shape[axis], -1).clone()


@_fake("reprune::to_batch")
def _fake_to_batch(state: Tensor, data: Tensor, axis: int) -> Tensor:
    # The model is traced with states of every sequence; only a file's default is one state for all of them.
    if state.shape[-2] != data.shape[axis]:
        raise RuntimeError(f"a state for {state.shape[-2]} sequences does not fit a batch of {data.shape[axis]}")
    return torch.empty_like(state)


class Streaming(nn.Module):
    """A model with one more argument, the states to start from, and one more result, the states at the end.

    Args:
        model: The model. Modules whose caller gives them a state already are left alone.
        example: Arguments of the model.

    Attributes:
        state_names: A name for every state tensor: `lstm.h_0`, or `lstm.h_0.1` for a piece of a ragged module.
        zeros: The states of the beginning of a sequence, for a batch of one.

    Raises:
        ExportError: When no module can carry a state over, or one reads backwards.
    """

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        self._given: dict[str, list[Tensor]] = {}
        self._ended: dict[str, list[Tensor]] = {}
        self._forms: dict[str, list[list[tuple[int, ...]]]] = {}
        modules = dict(recurrent_modules(model))
        for path, module in modules.items():
            module.register_forward_pre_hook(_Start(self, path), with_kwargs=True)
            module.register_forward_hook(_End(self, path))
        example.call(model)
        backward = [path for path in self._forms if modules[path].bidirectional]
        if not self._forms or backward:
            reason = f"{backward} read backwards as well" if backward else "no recurrent module starts from zeros"
            raise ExportError(f"streaming=True: {reason}, so the model cannot run chunk by chunk.")
        self.state_names = [name for path in self._forms for name in self._names(path)]
        shapes = [shape for forms in self._forms.values() for kind in forms for shape in kind]
        self.zeros = [torch.zeros(*shape[:-2], 1, shape[-1]) for shape in shapes]

    def forward(self, *args: Any, states: list[Tensor], **kwargs: Any) -> tuple[Any, list[Tensor]]:
        """What the model returns, and the states at the end."""
        rest = list(states)
        for path, forms in self._forms.items():
            count = sum(map(len, forms))
            self._given[path], rest = rest[:count], rest[count:]
        try:
            returned = self.model(*args, **kwargs)
        finally:
            self._given.clear()
        ended = [state for path in self._forms for state in self._ended.pop(path)]
        return returned, ended

    def example(self, example: Example) -> Example:
        """The model's example with states beside it."""
        states = [torch.zeros(shape) for forms in self._forms.values() for kind in forms for shape in kind]
        return Example(example.args, {**example.kwargs, "states": states}, (*example.names, *self.state_names))

    def _names(self, path: str) -> list[str]:
        found = []
        for letter, kind in zip("hc", self._forms[path], strict=False):
            single = len(kind) == 1
            found += [f"{path}.{letter}_0".lstrip(".") + ("" if single else f".{k}") for k in range(len(kind))]
        return found


class _Start:
    """Forward pre-hook: gives a module the state that the streaming model was given."""

    def __init__(self, owner: Streaming, path: str) -> None:
        # In a list, so that the owner does not become a submodule of its own hooks' state.
        self.owner, self.path = [owner], path

    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        data = args[0] if args else kwargs["input"]
        if (args[1] if len(args) > 1 else kwargs.get("hx")) is not None:
            return None
        if isinstance(data, PackedSequence) or data.dim() != 3:
            raise ExportError(f"streaming=True: {self.path!r} reads packed or unbatched input; give padded batches.")
        owner = self.owner[0]
        if self.path not in owner._given:
            owner._forms[self.path] = []
            return None
        axis = 0 if module.batch_first else 1
        states = [torch.ops.reprune.to_batch(state, data, axis) for state in owner._given[self.path]]
        kinds = []
        for form in owner._forms[self.path]:
            kind, states = states[: len(form)], states[len(form) :]
            kinds.append(kind[0] if len(form) == 1 else tuple(kind))
        return (data, tuple(kinds) if len(kinds) == 2 else kinds[0]), {}


class _End:
    """Forward hook: keeps the final states of a module for the streaming model."""

    def __init__(self, owner: Streaming, path: str) -> None:
        self.owner, self.path = [owner], path

    def __call__(self, module: Any, args: Any, returned: Any) -> None:
        owner = self.owner[0]
        kinds = list(returned[1]) if module.mode == "LSTM" else [returned[1]]
        pieces = [[kind] if isinstance(kind, Tensor) else list(kind) for kind in kinds]
        if owner._forms.get(self.path) == []:
            owner._forms[self.path] = [[tuple(piece.shape) for piece in kind] for kind in pieces]
        if self.path in owner._forms:
            owner._ended[self.path] = [piece for kind in pieces for piece in kind]
