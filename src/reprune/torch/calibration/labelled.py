"""Statistics that need more than responses: moments by class from labels, gradients of a loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from reprune.core.errors import StatisticsError
from reprune.core.evidence.class_moments import ClassMoments
from reprune.core.evidence.passes import Forward, Labels, Loss
from reprune.core.layers import Structure
from reprune.torch.calibration.answers import rows, watch_responses
from reprune.torch.calibration.importance import differentiable_kernels
from reprune.torch.calibration.packs import pack_orders
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.running.isolation import run_apart


def observe_classes(
    model: nn.Module, structure: Structure, batches: Iterable[Any], labels: Labels, forward: Forward | None = None
) -> dict[str, ClassMoments]:
    """Run the model over labelled batches in eval mode and gather the responses of each class.

    Raises:
        StatisticsError: When labels and sequences of a batch differ in number.
    """
    moments = {name: ClassMoments(name, layer.units) for name, layer in structure.layers.items() if layer.pin is None}
    model = duplicate(model)
    for number, batch in enumerate(batches):
        with torch.no_grad(), watch_classes(model, structure, moments, labels(batch)):
            run_apart(model, batch, forward, seed=number)
    return moments


@contextmanager
def watch_classes(
    model: nn.Module, structure: Structure, moments: Mapping[str, ClassMoments], labels: Any, most: int | None = None
) -> Iterator[None]:
    """Within this context and thread, forward passes account for the responses to sequences of these classes.

    Args:
        model: The model.
        structure: What `trace` found in it.
        moments: By layer, what is added to.
        labels: Classes of the sequences of every pass (see `Labels`).
        most: Of more responses of a layer in a pass, that many are drawn at random.
    """
    members = _members(labels)
    with pack_orders(model) as orders:

        def see(name: str, response: torch.Tensor, batch_sizes: torch.Tensor | None) -> None:
            if name not in moments:
                return
            order = None if batch_sizes is None else orders.of(batch_sizes)
            sequences = _sequences(name, response, batch_sizes, order, len(members))
            found = rows(response)
            if most is not None and len(found) > most:
                drawn = torch.randint(len(found), (most,), device=found.device)
                found, sequences = found[drawn], sequences[drawn]
            moments[name].update(found, members[sequences.to(members.device)])

        with watch_responses(model, structure, see):
            yield


def _sequences(
    name: str, response: torch.Tensor, batch_sizes: torch.Tensor | None, order: torch.Tensor | None, labelled: int
) -> torch.Tensor:
    """Index of the sequence that each row of the response belongs to."""
    if batch_sizes is not None and order is not None:
        count = len(order)
        found = torch.cat([order[:size].to(response.device) for size in batch_sizes.tolist()])
    else:
        # Sequences stand next to the features, or first, where a product takes the features of all steps.
        first = response.ndim > 2 and response.shape[0] == labelled
        if first and response.shape[-2] == labelled:
            raise StatisticsError(
                f"{name}: sequences and steps are {labelled} alike, and which is which cannot be told: give batches of "
                "another size."
            )
        count = response.shape[0 if first else -2]
        repeats = response[..., 0].numel() // count
        found = torch.arange(count, device=response.device)
        found = found.repeat_interleave(repeats) if first else found.repeat(repeats)
    if count != labelled:
        raise StatisticsError(
            f"{name}: {labelled} labels for a batch of {count} sequences: give one for each sequence. Where the "
            f"model lays sequences and steps side by side, as attention does, leave the layer out: exclude=[{name!r}]."
        )
    return found


def _members(labels: Any) -> torch.Tensor:
    found = torch.as_tensor(labels)
    return found if found.ndim == 2 else nn.functional.one_hot(found.long().reshape(-1))


def loss_gradients(
    model: nn.Module, structure: Structure, batches: Iterable[Any], loss: Loss
) -> dict[str, torch.Tensor]:
    """Gradient of the mean loss over all batches with respect to every tensor that knows units.

    The model runs in eval mode; its parameters' own `grad` stays as it was.

    Raises:
        StatisticsError: When the loss is no scalar with a gradient.
    """
    model = duplicate(model)
    tensors = {name: named_tensors(model)[name] for name in structure.shapes}
    leaves = [tensor.requires_grad_(True) for tensor in tensors.values() if isinstance(tensor, nn.Parameter)]
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    count = 0
    for number, batch in enumerate(batches):
        count += 1
        with torch.enable_grad(), differentiable_kernels():
            value = run_apart(model, batch, lambda net, given: _scalar(loss(net, given)), seed=number)
        found = torch.autograd.grad(value, leaves, allow_unused=True)
        for total, part in zip(totals, found, strict=True):
            total += 0 if part is None else part
    by_leaf = {id(leaf): total.detach() / max(count, 1) for leaf, total in zip(leaves, totals, strict=True)}
    return {name: by_leaf.get(id(tensor), torch.zeros_like(tensor)) for name, tensor in tensors.items()}


def _scalar(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
        raise StatisticsError(
            "loss= did not return a scalar tensor with a gradient: return the mean loss of the batch, computed by the "
            "model with gradients on."
        )
    return value.reshape(())
