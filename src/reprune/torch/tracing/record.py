"""Trace a model: find its recurrent layers, everything that knows their units, and what must stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from reprune.core.errors import UnsupportedModelError
from reprune.core.evidence.passes import Forward
from reprune.core.layers import Pin, Scope, Site, SizeAttribute, Structure
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.tracing.cells import traced_cells
from reprune.torch.tracing.labels import Ids
from reprune.torch.tracing.leaves import leaves, out_of_sight
from reprune.torch.tracing.location import of_function
from reprune.torch.tracing.recording import Recording
from reprune.torch.tracing.rules import pin_summaries, summaries_of
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.randomness import own_randomness
from reprune.torch.tracing.running.shortening import Cut
from reprune.torch.tracing.running.training_pass import trace_training, training_mode, trains_otherwise
from reprune.torch.tracing.sizes.sizes import AxisSize, tagged_sizes
from reprune.torch.tracing.states.feedback import Calls, NextCall
from reprune.torch.tracing.states.states import Interface, pair
from reprune.torch.tracing.structure.structure import Builder
from reprune.torch.tracing.structure.widths import ALL
from reprune.torch.tracing.tracer import Tracer


def trace(model: nn.Module, example: Any, forward: Forward | None = None) -> Structure:
    """Run the model once on an example and find where its hidden units live.

    Args:
        model: The model; it is left as it was.
        example: One batch, as the model takes it: `model(x)`, `model(*xs)` or `model(**named)`.
        forward: Replaces `model(example)`.

    Raises:
        UnsupportedModelError: When no recurrent layer ran.
    """
    return record(model, example, forward).structure()


class Trace:
    """One traced pass: what it recorded, as a structure, and where to look when a rehearsal fails.

    Attributes:
        example: The batch that was traced.
        cut: How it, and others like it, are cut down.
        state_outputs: Positions, among the tensors that the model returns, of final states that the caller carries.
        next_call: The call after one on the example, on its states.
    """

    def __init__(
        self,
        builder: Builder,
        example: Any,
        state_outputs: frozenset[int],
        modules: Sequence[str],
        next_call: NextCall,
    ) -> None:
        self.example, self.cut = example, Cut()
        self._builder = builder
        self._modules = list(modules)
        self.state_outputs = state_outputs
        self.next_call = next_call
        self.structure = builder.structure

    def tighten(self) -> bool:
        """Keep the layers within each recurrent module equal from now on; returns whether that changes anything.

        Unequal states are tuples, and code that asks a state for its size or type wants a tensor.
        """
        modules, self._modules = self._modules, []
        held = self._builder.recording.count_coupled
        before = len(held)
        _bind_modules(modules, self._builder.recording)
        return len(held) > before

    def assume(self, sizes: Sequence[SizeAttribute]) -> None:
        """Take these attributes as sizes from now on, beside those that the trace saw."""
        self._builder.assumed += sizes

    def withdraw(self, sizes: Sequence[SizeAttribute]) -> None:
        """Assume these no longer."""
        for size in sizes:
            self._builder.assumed.remove(size)

    def split(self, layers: Sequence[str]) -> Pin | None:
        """Where units of these layers, not yet known as such, were put on several lines: only whole lines could go."""
        for found, site in self._builder.recording.views:
            for line in found:
                for name in set(self._builder.layers_of(line)) & set(layers):
                    units = self._builder.part_of(name, line)
                    if units > 1:
                        return Pin(site, f"its units are split into parts of {units}")
                    if units == 1 and self._is_one_axis(line):
                        spread = f"spread over an axis of its own, of length {len(line)}, beside that of the units"
                        return Pin(site, f"what belongs to one of its units is {spread}")
        return None

    def _is_one_axis(self, line: Ids) -> bool:
        """Whether several positions of one axis of a weight lie on a line."""
        spaces = self._builder.recording.couplings.space(line)
        return len(np.unique(line)) == len(line) > 1 == len(np.unique(spaces))

    def lost(self, layers: Sequence[str], location: str) -> Pin | None:
        """Where units of these layers met, at this line, what was made of units before and carries no labels."""
        for labels, site, loss in self._builder.recording.losses:
            if site.location == location and set(self._builder.layers_of(labels)) & set(layers):
                return Pin(loss.site, f"{loss.reason}, and what comes of it meets these units at {location}")
        return None

    def counted(self, layers: Sequence[str], sizes: Sequence[SizeAttribute]) -> Site | None:
        """Where the number of units of these layers was used as a number in a computation.

        Args:
            layers: The layers.
            sizes: Attributes that are sizes.
        """
        named = {(size.owner, size.path): {name for name, _ in size.extent.layers} for size in sizes}
        for expression, site in self._builder.recording.values:
            for term in expression.terms:
                if isinstance(term, AxisSize):
                    found = set(self._builder.layers_of(term.labels))
                else:
                    found = named.get((term.owner, term.path), set())
                if found & set(layers):
                    return site
        return None

    def suspect(self, layers: Sequence[str]) -> Site | None:
        """The last place at which units of these layers met a size that the trace could not see."""
        for labels, site in reversed(self._builder.recording.suspects):
            if set(self._builder.layers_of(labels)) & set(layers):
                return site
        return None


def record(
    model: nn.Module,
    example: Any,
    forward: Forward | None = None,
    *,
    uniform: bool = False,
    scope: Scope = "recurrent",
    inputs: bool = False,
    share: bool = False,
) -> Trace:
    """The trace itself; `trace` turns it into a structure.

    Args:
        model: As for `trace`.
        example: As for `trace`.
        forward: As for `trace`.
        uniform: Keep the layers of one module at equal sizes.
        scope: `all` takes every width as units (see `widths.py`), but for those that are tied to units of a recurrent
            layer and go with them anyway.
        inputs: Take the columns of every `nn.Embedding` likewise.
        share: Use the same memory for weights; only for a model that is private itself.
    """
    # The copy takes what a pass leaves behind in a model that keeps its state, and it is what surgery starts from, too.
    original, model = model, duplicate(model, share=share)
    tracer = Tracer(model, ALL if scope == "all" else {"embedding"} if inputs else ())
    buffers = {name: (buffer, buffer._version) for name, buffer in model.named_buffers()}
    equal = _uniform_modules(model, uniform)  # Before the pass, which may put a computed weight in a parameter's place.
    parameters = sum(p.numel() for p in model.parameters())

    def builder() -> Builder:
        return Builder(tracer.recording, tracer.widths, tracer.parameters, parameters)

    with ExitStack() as stack:
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        used = stack.enter_context(tagged_sizes(model))
        stack.enter_context(_module_hooks(model, tracer))
        stack.enter_context(traced_cells(model, tracer))
        stack.enter_context(own_randomness())
        interface = Interface(tracer, model, everywhere=forward is not None)
        calls = Calls(original, interface, builder, example, forward)
        output = calls.run()
        tracer.recording.written = _written(model, buffers)
        if trains_otherwise(model):
            trace_training(model, tracer.recording, calls.traced)
    tracer.compare_sizes(used.compared)
    tracer.recording.values = used.values
    states = pair(tracer, builder(), interface, output)
    _outputs(tracer, output, states, forward or type(model).forward)
    _bind_modules(equal, tracer.recording)
    found = builder()
    if not found.has_layers:
        raise UnsupportedModelError(
            f"No recurrent layer ran in {type(model).__name__} on the example. reprune looks for nn.LSTM, nn.GRU, "
            "nn.RNN, their cells, and weights that are applied again and again to what they produced; with scope='all' "
            "for convolutions, linear maps and embeddings, too. A recurrence from element to element, without a matrix "
            f"(h = f * h + (1 - f) * x), feeds no units back: what makes h has a width, one of {_widths(model)}."
            + _lost(tracer.recording)
        )
    return Trace(found, example, frozenset(states), _uniform_modules(model, uniform=True), NextCall.after(interface))


def _written(model: nn.Module, before: Mapping[str, tuple[torch.Tensor, int]]) -> tuple[str, ...]:
    """Names of the buffers that were written to, replaced or made since they were these, at these versions."""
    now = {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()}
    then = {name: (id(buffer), version) for name, (buffer, version) in before.items()}
    return tuple(name for name in now if now[name] != then.get(name))


def _lost(recording: Recording) -> str:
    """Where values were lost sight of that may be units of a layer, for a message."""
    found = dict.fromkeys(f"{reason} ({site})" for _, site, reason in recording.pins if site.operation != "output")
    return f" What may be units was lost sight of: {'; '.join(list(found)[:3])}." if found else ""


def _widths(model: nn.Module) -> str:
    """The widths of a model's linear maps and convolutions, for a message."""
    held = [
        f"{name or type(module).__name__} ({module.weight.shape[0]})"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    ]
    return ", ".join(held[:8]) + (", …" if len(held) > 8 else "") or "none that are known"


def _bind_modules(paths: Sequence[str], recording: Recording) -> None:
    """Keep the layers of these modules at equal sizes."""
    for path in paths:
        for kind in (False, True):
            names = [
                layer.name
                for layer in recording.layers.values()
                if layer.module == path and (layer.cell == "projection") == kind
            ]
            if len(names) > 1:
                recording.count_coupled.append(names)


def _uniform_modules(model: nn.Module, uniform: bool) -> list[str]:
    """Recurrent modules with code of their own, which no ragged one can replace; or all of them if `uniform`."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.RNNBase) and (uniform or not _replaceable(module))
    ]


def _replaceable(module: nn.RNNBase) -> bool:
    """Whether the module computes what its class does, from parameters of its own."""
    plain = type(module).forward in (nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward)
    return plain and all(name in module._parameters for names in module._all_weights for name in names)


def _outputs(tracer: Tracer, output: Any, states: Sequence[int], forward: Callable[..., Any]) -> None:
    """Units that reach the model's output stay, but for states that the caller hands back: at these positions."""
    site = Site("output", of_function(forward))
    answers = [tensor for index, (_, tensor) in enumerate(leaves(output)) if index not in states]
    for tensor in [*answers, *out_of_sight(output)]:
        tracer.pin(tracer.units(tensor), "output", "its units are part of what the model returns", site)
        pin_summaries(tracer, summaries_of(tracer, [tensor]))


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Put every module in eval mode, and back as each of them was."""
    return training_mode(model, False)


@contextmanager
def _module_hooks(model: nn.Module, tracer: Tracer) -> Iterator[None]:
    """Tell what a recurrent module does with its states from what the user's code does."""
    handles = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        tracer.inside_module += 1

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        tracer.inside_module -= 1

    for module in model.modules():
        if isinstance(module, (nn.RNNBase, nn.RNNCellBase, RaggedBase)):
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
