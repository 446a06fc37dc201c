"""Statistics that need more than responses: moments by class from labels, gradients of a loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from reprune.core.class_moments import ClassMoments
from reprune.core.errors import StatisticsError
from reprune.core.layers import Structure
from reprune.core.passes import Forward, Labels, Loss
from reprune.torch.calibration.readings import hooked, rows, unrolled
from reprune.torch.calibration.responses import watch_written_cells
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.calling import call
from reprune.torch.tracing.record import eval_mode


def observe_classes(
    model: nn.Module, structure: Structure, batches: Iterable[Any], labels: Labels, forward: Forward | None = None
) -> dict[str, ClassMoments]:
    """Run the model over labelled batches in eval mode and gather the responses of each class.

    Raises:
        StatisticsError: When labels and sequences of a batch differ in number.
    """
    moments = {name: ClassMoments(name, layer.units) for name, layer in structure.layers.items()}
    with eval_mode(model), torch.no_grad():
        for batch in batches:
            with watch_classes(model, structure, moments, labels(batch)):
                call(model, batch, forward)
    return moments


class _Watcher:
    """Hands each layer's responses on, every time step with the classes of its sequence."""

    def __init__(self, moments: Mapping[str, ClassMoments], members: torch.Tensor, most: int | None) -> None:
        self._moments, self._members, self._most = moments, members, most

    def see(self, name: str, response: torch.Tensor, packed: PackedSequence | None) -> None:
        if name in self._moments:
            sequences = _sequences(name, response, packed, len(self._members))
            found = rows(response)
            if self._most is not None and len(found) > self._most:
                drawn = torch.randint(len(found), (self._most,), device=found.device)
                found, sequences = found[drawn], sequences[drawn]
            self._moments[name].update(found, self._members[sequences.to(self._members.device)])


def _sequences(name: str, response: torch.Tensor, packed: PackedSequence | None, labelled: int) -> torch.Tensor:
    """Index of the sequence that each row of the response belongs to."""
    if packed is not None:
        sizes = packed.batch_sizes.tolist()
        order = packed.sorted_indices if packed.sorted_indices is not None else torch.arange(sizes[0])
        found = torch.cat([order[:size].to(response.device) for size in sizes])
        count = sizes[0]
    else:
        count = response.shape[-2]
        found = torch.arange(count, device=response.device).repeat(response[..., 0].numel() // count)
    if count != labelled:
        raise StatisticsError(
            f"{name}: {labelled} labels for a batch of {count} sequences: give one for each sequence."
        )
    return found


def _members(labels: Any) -> torch.Tensor:
    found = torch.as_tensor(labels)
    return found if found.ndim == 2 else nn.functional.one_hot(found.long().reshape(-1))


@contextmanager
def watch_classes(
    model: nn.Module, structure: Structure, moments: Mapping[str, ClassMoments], labels: Any, most: int | None = None
) -> Iterator[None]:
    """Within this context, forward passes account for the responses to sequences of these classes.

    Args:
        model: The model.
        structure: What `trace` found in it.
        moments: By layer, what is added to.
        labels: Classes of the sequences of every pass (see `Labels`).
        most: Of more responses of a layer in a pass, that many are drawn at random.
    """
    watcher = _Watcher(moments, _members(labels), most)
    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, (nn.LSTM, nn.GRU, nn.RNN, RaggedBase)):
                stack.enter_context(_watch_module(module, path, watcher))
            elif isinstance(module, nn.RNNCellBase):

                def see(_: nn.Module, args: Any, output: Any, name: str = f"{path}:l0") -> None:
                    watcher.see(name, output[0] if isinstance(output, tuple) else output, None)

                stack.enter_context(hooked(module, see))
        stack.enter_context(watch_written_cells(model, structure, lambda name, found: watcher.see(name, found, None)))
        yield


@contextmanager
def _watch_module(module: nn.LSTM | nn.GRU | nn.RNN | RaggedBase, path: str, watcher: _Watcher) -> Iterator[None]:
    packed: list[PackedSequence | None] = [None]

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        packed[0] = args[0] if args and isinstance(args[0], PackedSequence) else None

    def report(suffix: str, read: torch.Tensor, response: torch.Tensor, *ends: torch.Tensor) -> None:
        watcher.see(f"{path}:{suffix}", response, packed[0])

    handle = module.register_forward_pre_hook(note)
    try:
        with unrolled(module, report):
            yield
    finally:
        handle.remove()


def loss_gradients(
    model: nn.Module, structure: Structure, batches: Iterable[Any], loss: Loss
) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over all batches with respect to every tensor that knows units.

    The model runs in eval mode; its parameters' own `grad` stays as it was.

    Raises:
        StatisticsError: When the loss is no scalar with a gradient.
    """
    tensors = {name: named_tensors(model)[name] for name in structure.shapes}
    leaves = [tensor for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
    frozen = [leaf for leaf in leaves if not leaf.requires_grad]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    count = 0
    # cuDNN has no backward pass in eval mode.
    with eval_mode(model), torch.backends.cudnn.flags(enabled=False):
        try:
            for leaf in frozen:
                leaf.requires_grad_(True)
            for batch in batches:
                count += 1
                found = torch.autograd.grad(_scalar(loss(model, batch)), leaves, allow_unused=True)
                for total, part in zip(totals, found, strict=True):
                    total += 0 if part is None else part
        finally:
            for leaf in frozen:
                leaf.requires_grad_(False)
    by_leaf = {id(leaf): total / max(count, 1) for leaf, total in zip(leaves, totals, strict=True)}
    return {name: by_leaf.get(id(tensor), torch.zeros_like(tensor)) for name, tensor in tensors.items()}


def _scalar(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise StatisticsError(
            "loss= did not return a scalar tensor with a gradient: return the mean loss of the batch, computed by the "
            "model with gradients on."
        )
    return value.reshape(())
