"""PyTorch's answers to the verbs (`reprune.verbs.adapter`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, is_tensor, nn

from reprune.core.layers import Structure
from reprune.core.passes import Forward, Loss, stretches
from reprune.core.readings import Axis, Importance, Statistics
from reprune.torch.calibration import labelled
from reprune.torch.calibration.importance import output_importance
from reprune.torch.calibration.labelled import observe_classes
from reprune.torch.calibration.responses import observe
from reprune.torch.export import export
from reprune.torch.latency import measure_latency
from reprune.torch.surgery.apply import apply, mask, named_tensors
from reprune.torch.surgery.verify import rehearse, verify
from reprune.torch.tracing.record import Trace, record
from reprune.torch.tracing.unwrap import unwrap as checked
from reprune.torch.training.distill import student
from reprune.torch.weights import load_weights, save_weights

__all__ = [
    "apply",
    "arrays",
    "checked",
    "export",
    "is_tensor",
    "load_weights",
    "loss_gradients",
    "mask",
    "measure_latency",
    "observe",
    "observe_classes",
    "observe_readings",
    "record",
    "rehearse",
    "save_weights",
    "student",
    "verify",
]


def arrays(found: Trace, model: nn.Module, structure: Structure) -> dict[str, Tensor]:
    """The tensors that know units, in a precision that linear algebra accepts."""
    tensors = {name: tensor.detach() for name, tensor in named_tensors(model).items()}
    return {
        name: tensors[name].float() if tensors[name].dtype.itemsize < 4 else tensors[name] for name in structure.shapes
    }


def observe_readings(
    found: Trace, model: nn.Module, structure: Structure, batches: Iterable[Any], forward: Forward | None
) -> tuple[Statistics, Mapping[Axis, Tensor]]:
    """Statistics with those of what consumers read, and how much the output depends on the consumers."""
    statistics, importance = Statistics(structure), Importance()
    for stretch in stretches(batches):
        gradients = output_importance(
            model, structure.consumers, stretch.first, forward, draws=importance.draws, seed=importance.batches
        )
        observe(model, structure, stretch, forward, readings=True, into=statistics)
        importance.add(gradients, stretch.batches)
    return statistics, importance.mean()


def loss_gradients(
    found: Trace, model: nn.Module, structure: Structure, batches: Iterable[Any], loss: Loss
) -> Mapping[str, Any]:
    """Gradient of the mean loss with respect to every tensor that knows units."""
    return labelled.loss_gradients(model, structure, batches, loss)
