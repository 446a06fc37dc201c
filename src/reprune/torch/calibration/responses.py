"""Response statistics from forward passes: mean and covariance of every layer's hidden state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.layers import Structure
from reprune.core.passes import Forward
from reprune.core.readings import Statistics
from reprune.torch.calibration.products import ProductWatcher
from reprune.torch.calibration.readings import hooked, responses, rows, unrolled, watch_readings
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.calling import call
from reprune.torch.tracing.cells import declared
from reprune.torch.tracing.record import eval_mode
from reprune.torch.tracing.recording import tensors_in

See = Callable[[str, torch.Tensor], None]


def observe(
    model: nn.Module,
    structure: Structure,
    batches: Iterable[Any],
    forward: Forward | None = None,
    *,
    readings: bool = False,
    into: Statistics | None = None,
) -> Statistics:
    """Run the model over calibration batches in eval mode and gather response statistics.

    Args:
        model: The model; it is left as it was.
        structure: What `trace` found in it.
        batches: Inputs as the model takes them (see `trace.call`), one at a time.
        forward: Replaces `model(batch)`.
        readings: Gather what consumers read, too.
        into: Statistics of earlier batches with `readings`, to go on with.

    Returns:
        Moments by layer, on the model's own device. Padding inside a `PackedSequence` never counts.
    """
    with eval_mode(model), torch.no_grad():
        if not readings:
            with gather(model, structure) as statistics:
                for batch in batches:
                    call(model, batch, forward)
            return statistics
        statistics = Statistics(structure) if into is None else into
        with (
            watch_readings(model, structure, statistics.readings, statistics.fed) as watcher,
            watch_written_responses(model, structure, lambda name, found: statistics[name].update(found)),
        ):
            for batch in batches:
                call(model, batch, forward)
                watcher.end_pass()
    statistics.update(responses(structure, statistics.readings))
    return statistics


@contextmanager
def gather(model: nn.Module, structure: Structure) -> Iterator[Statistics]:
    """Gather response statistics from whatever forward passes the model runs inside, training ones included.

    Example:
        >>> with gather(model, structure) as statistics:       # doctest: +SKIP
        ...     loss = criterion(model(x), y)
        >>> statistics["lstm:l0"].covariance                    # doctest: +SKIP
    """
    statistics = Statistics(structure)
    with watch_responses(model, structure, lambda name, found: statistics[name].update(found)):
        yield statistics


@contextmanager
def watch_responses(model: nn.Module, structure: Structure, see: See) -> Iterator[None]:
    """Within this context, forward passes report every layer's responses: `see(layer, responses)`, rows × units."""
    see = _by_parts(structure, see)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if any(name.split(":")[0] == path for name in structure.layers):
                if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN, RaggedBase)):
                    stack.enter_context(_watch_module(module, path, see))
                elif isinstance(module, nn.RNNCellBase):
                    stack.enter_context(_watch_cell(module, f"{path}:l0", see))
        stack.enter_context(watch_written_responses(model, structure, see))
        yield


def _by_parts(structure: Structure, see: See) -> See:
    """Hands on the responses of layers that are known in parts, part by part."""
    parts: dict[str, list[tuple[str, slice]]] = {name: [(name, slice(None))] for name in structure.layers}
    for name, layer in structure.layers.items():
        if layer.part is not None:
            whole, start = layer.part
            parts.setdefault(whole, []).append((name, slice(start, start + layer.units)))

    def see_parts(name: str, found: torch.Tensor) -> None:
        for part, units in parts[name]:
            see(part, found[..., units])

    return see_parts


def watch_written_responses(model: nn.Module, structure: Structure, see: See) -> AbstractContextManager[None]:
    """The part of `watch_responses` that is about cells written by hand."""
    return watch_written_cells(model, structure, lambda name, found: see(name, rows(found)))


@contextmanager
def _watch_module(module: nn.LSTM | nn.GRU | nn.RNN | RaggedBase, path: str, see: See) -> Iterator[None]:
    if not isinstance(module, RaggedBase) and module.num_layers == 1 and not module.proj_size:
        # One layer shows all of its responses in its output.
        def watch(_: nn.Module, args: Any, output: Any) -> None:
            found = rows(output[0])
            see(f"{path}:l0", found[:, : module.hidden_size])
            if module.bidirectional:
                see(f"{path}:l0_reverse", found[:, module.hidden_size :])

        with hooked(module, watch):
            yield
        return

    def report(suffix: str, read: torch.Tensor, response: torch.Tensor, *ends: torch.Tensor) -> None:
        see(f"{path}:{suffix}", rows(response))

    with unrolled(module, report):
        yield


@contextmanager
def _watch_cell(module: nn.RNNCellBase, name: str, see: See) -> Iterator[None]:
    def watch(_: nn.Module, args: Any, output: Any) -> None:
        see(name, rows(output[0] if isinstance(output, tuple) else output))

    with hooked(module, watch):
        yield


@contextmanager
def watch_written_cells(model: nn.Module, structure: Structure, see: See) -> Iterator[None]:
    """Cells written by hand show their state where the weight that feeds it back reads it: `see(layer, … × units)`.

    Cells that are declared show it in what they return.
    """
    products, tensors = ProductWatcher(), named_tensors(model)
    with ExitStack() as stack:
        for name, layer in structure.layers.items():
            if layer.cell != "custom":
                continue
            module = model.get_submodule(name.split(":")[0])
            if declared(module) is not None:
                stack.enter_context(hooked(module, _watch_returned(name, see, layer.units)))
                continue
            own = {slot.tensor for slot in structure.slots_of(name, "own")}
            slot = next((slot for slot in structure.slots_of(name, "reads") if slot.tensor in own), None)
            if slot is None:
                continue
            see_units = _see_units(name, see, torch.from_numpy(slot.positions({name: range(layer.units)})))
            products.add(tensors[slot.tensor], slot.axis, see_units)
            path, _, parameter = slot.tensor.rpartition(".")
            module = model.get_submodule(path)
            if isinstance(module, nn.Linear) and parameter == "weight":
                stack.enter_context(_watch_linear(module, see_units, products))
        if products.wanted:
            stack.enter_context(products)
        yield


def _see_units(name: str, see: See, positions: torch.Tensor) -> Callable[[torch.Tensor], None]:
    return lambda read: see(name, read[..., positions.to(read.device)])


@contextmanager
def _watch_linear(module: nn.Linear, see: Callable[[torch.Tensor], None], products: ProductWatcher) -> Iterator[None]:
    """In mixed precision a module multiplies with a copy of its weight: what it is given is looked at instead."""

    def before(_: nn.Module, args: Any) -> None:
        products.paused = True

    def after(_: nn.Module, args: Any, output: Any) -> None:
        products.paused = False
        see(args[0].detach())

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_returned(name: str, see: See, units: int) -> Callable[..., None]:
    def watch(_: nn.Module, args: Any, output: Any) -> None:
        found = next((t for t in tensors_in(output) if t.ndim > 1 and t.shape[-1] == units), None)
        if found is not None:
            see(name, found.detach())

    return watch
