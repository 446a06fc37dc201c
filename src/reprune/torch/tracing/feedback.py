"""The calls of one trace: the example, and again with the states that it takes, leaves out or keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reprune.torch.tracing.copies import duplicate, fresh
from reprune.torch.tracing.modes import run
from reprune.torch.tracing.optional import Call, handed_back
from reprune.torch.tracing.states import Interface, flat, kept_units, recognised
from reprune.torch.tracing.structure import Builder


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

        def holds_units(tensor: torch.Tensor) -> bool:
            return tracer.units(tensor) is not None

        def of_a_layer(tensor: torch.Tensor) -> bool:
            labels = tracer.units(tensor)
            return labels is not None and bool(builder.recurrent_layers_of(flat(labels)))

        def on_copy(trial: Call) -> Any:
            args, kwargs = fresh(trial)
            return duplicate(self._original).eval()(*args, **kwargs)

        # Written cells are no layers before their state is fed back: anything made of units may be one's state.
        for is_state in (of_a_layer, holds_units):
            found = handed_back(self._original, self.interface.given, output, is_state, on_copy)
            if found is not None:
                return found
        return None
