"""The calls of one trace: the example, and again with the states that it takes, leaves out or keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reprune.torch.tracing.leaves import Path, leaves, positional_names, replaced_arguments
from reprune.torch.tracing.modes import run
from reprune.torch.tracing.running.copies import duplicate, fresh
from reprune.torch.tracing.states.optional import Call, handed_back
from reprune.torch.tracing.states.states import Interface, flat, kept_units, recognised
from reprune.torch.tracing.structure.structure import Builder


@dataclass(frozen=True)
class NextCall:
    """The call after one on the example: on the states that it returned, or that modules kept.

    Attributes:
        given: Arguments of the model with all of its states among them.
        pairs: For the path of each state among these the path in what the model returns.
        keeps: Whether modules keep states.
    """

    given: Call | None
    pairs: dict[Path, Path]
    keeps: bool

    @classmethod
    def after(cls, calls: Calls) -> NextCall:
        """The call after those that were traced."""
        recording = calls.interface.tracer.recording
        both = [(given, back) for given, back in recording.states if given is not None and back is not None]
        # What comes back in another shape is put together by the caller in a way that nobody knows.
        pairs = {given.path: back.path for given, back in both if given.labels.shape == back.labels.shape}
        return cls(calls.given, pairs, bool(recording.kept_states))

    def __call__(self, model: nn.Module, output: Any, example: Callable[[], Any]) -> Any:
        """What a model returns next, or None when there are no states.

        Args:
            model: The model, whatever its width.
            output: What it returned last.
            example: Calls it on the example again.
        """
        if not self.pairs or self.given is None:
            return example() if self.keeps else None
        back = dict(leaves(output))

        def change(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            return back.get(self.pairs[path], tensor) if path in self.pairs else tensor

        args, kwargs = fresh(self.given)
        args, kwargs = replaced_arguments(positional_names(model), args, kwargs, change)
        return model(*args, **kwargs)


class Calls:
    """Runs the traced model as often as it takes to follow its states.

    Args:
        original: The model as the user gave it; optional states are tried on copies of it.
        interface: The interface of the traced model.
        builder: What the trace has found so far.
    """

    def __init__(self, original: nn.Module, interface: Interface, builder: Callable[[], Builder]) -> None:
        self._original = original
        self.interface = interface
        self.given: Call | None = None
        """The arguments of the model in the last call of `run`."""
        self._builder = builder

    def run(self, call: Callable[[Any], Any], example: Any) -> Any:
        """Call the model on the example, and again on its states; returns what the last call returned."""
        interface = self.interface
        output = self.traced(call, example)
        interface.states = recognised(interface, self._builder(), output)
        left_out = None if interface.states else self._with_left_out_states(output)
        if left_out is not None:
            call, example = self._plainly, left_out
            interface.tracer.recording.begin_feedback()
            output = self.traced(call, example)
            interface.states = recognised(interface, self._builder(), output)
        if interface.states or kept_units(interface):
            interface.tracer.recording.begin_feedback()
            output = self.traced(call, example)
        self.given = interface.given
        return output

    def traced(self, call: Callable[[Any], Any], example: Any) -> Any:
        """Call the model on a copy of the example, and trace it."""
        batch = fresh(example)
        with self.interface.watched():
            return run(self.interface.tracer, lambda: call(batch))

    def _plainly(self, given: Call) -> Any:
        args, kwargs = given
        return self.interface.model(*args, **kwargs)

    def _with_left_out_states(self, output: Any) -> Call | None:
        """A call in which optional arguments that the last one left out are states that it returned, or None."""
        if self.interface.given is None:
            return None
        tracer, builder = self.interface.tracer, self._builder()

        def worth(tensor: torch.Tensor) -> int:
            # Written cells are no layers before their state is fed back: anything made of units may be one's state.
            labels = tracer.units(tensor)
            return 0 if labels is None else 8 if builder.recurrent_layers_of(flat(labels)) else 1

        def on_copy(trial: Call) -> Any:
            args, kwargs = fresh(trial)
            return duplicate(self._original).eval()(*args, **kwargs)

        return handed_back(self._original, self.interface.given, output, worth, on_copy)
