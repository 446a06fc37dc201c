"""The calls of one trace: the example, and again with the states that it takes, leaves out or keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from reprune.core.evidence.passes import Forward
from reprune.torch.tracing.leaves import Path, leaves
from reprune.torch.tracing.modes import run
from reprune.torch.tracing.running.calling import call, invoke
from reprune.torch.tracing.running.copies import duplicate, fresh
from reprune.torch.tracing.running.entries import Entry, entered
from reprune.torch.tracing.states.optional import Call, handed_back
from reprune.torch.tracing.states.states import Interface, flat, kept_units, recognised
from reprune.torch.tracing.structure.structure import Builder


@dataclass(frozen=True)
class NextCall:
    """The call after one on the example: on the states that it returned, or that modules kept.

    Attributes:
        instead: What methods are given in the place of what the example gives them: states that it leaves out.
        pairs: For the path of each state among the arguments the path in what the model returns.
        keeps: Whether modules keep states.
        everywhere: Whether the model may be entered by other methods than its `forward`.
    """

    instead: dict[Entry, Call]
    pairs: dict[Path, Path]
    keeps: bool
    everywhere: bool

    @classmethod
    def after(cls, interface: Interface) -> NextCall:
        """The call after those that were traced."""
        recording = interface.tracer.recording
        both = [(given, back) for given, back in recording.states if given is not None and back is not None]
        # What comes back in another shape is put together by the caller in a way that nobody knows.
        pairs = {given.path: back.path for given, back in both if given.labels.shape == back.labels.shape}
        return cls(interface.instead, pairs, bool(recording.kept_states), interface.everywhere)

    def __call__(self, model: nn.Module, output: Any, example: Callable[[], Any]) -> Any:
        """What a model returns next, or None when there are no states.

        Args:
            model: The model, whatever its width.
            output: What it returned last.
            example: Calls it on the example again.
        """
        if not self.pairs:
            return example() if self.keeps else None
        back = dict(leaves(output))

        def change(path: Path, tensor: torch.Tensor) -> torch.Tensor:
            return back.get(self.pairs[path], tensor) if path in self.pairs else tensor

        def handed(entry: Entry, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            args, kwargs = fresh(self.instead[entry]) if entry in self.instead else (args, kwargs)
            return entry.replaced(method, args, kwargs, change)

        with entered(model, handed, everywhere=self.everywhere):
            return example()


class Calls:
    """Runs the traced model as often as it takes to follow its states.

    Args:
        original: The model as the user gave it; optional states are tried on copies of it.
        interface: The interface of the traced model.
        builder: What the trace has found so far.
        example: One batch.
        forward: How the user has it given to the model, None for as it is.
    """

    def __init__(
        self,
        original: nn.Module,
        interface: Interface,
        builder: Callable[[], Builder],
        example: Any,
        forward: Forward | None,
    ) -> None:
        self._original = original
        self._interface = interface
        self._builder = builder
        self._example, self._forward = example, forward

    def run(self) -> Any:
        """Call the model on the example, and again on its states; returns what the last call returned."""
        interface = self._interface
        output = self.traced()
        interface.states = recognised(interface, self._builder(), output)
        if not interface.states:
            interface.instead = self._with_left_out_states(output)
        if interface.instead:
            interface.tracer.recording.begin_feedback()
            output = self.traced()
            interface.states = recognised(interface, self._builder(), output)
        if interface.states or kept_units(interface):
            interface.tracer.recording.begin_feedback()
            output = self.traced()
        return output

    def traced(self) -> Any:
        """Call the model on a copy of the example, and trace it."""
        batch = fresh(self._example)
        with self._interface.watched():
            return run(self._interface.tracer, lambda: invoke(self._interface.model, batch, self._forward))

    def _with_left_out_states(self, output: Any) -> dict[Entry, Call]:
        """A method and arguments of it in which those that the example left out are states that the model returned."""
        tracer, builder = self._interface.tracer, self._builder()

        def worth(tensor: torch.Tensor) -> int:
            # Written cells are no layers before their state is fed back: anything made of units may be one's state.
            labels = tracer.units(tensor)
            return 0 if labels is None else 8 if builder.recurrent_layers_of(flat(labels)) else 1

        for entry, given in self._interface.given.items():

            def on_copy(trial: Call, entry: Entry = entry) -> Any:
                twin = duplicate(self._original).eval()

                def handed(entered_by: Entry, method: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                    return fresh(trial) if entered_by == entry else (args, kwargs)

                with entered(twin, handed, everywhere=self._interface.everywhere):
                    return call(twin, self._example, self._forward)

            method = getattr(self._original.get_submodule(entry.owner), entry.method)
            found = handed_back(method, given, output, worth, on_copy)
            if found is not None:
                return {entry: found}
        return {}
