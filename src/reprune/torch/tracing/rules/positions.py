"""Matrices that are no parameters, such as a graph's adjacency: they contract and make positions, not units."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reprune.torch.tracing.labels import NONE, TAG, Ids, compact, lines, varies
from reprune.torch.tracing.recording import Axis
from reprune.torch.tracing.tracer import Tracer


def reads_buffers(tracer: Tracer) -> bool:
    """Whether a buffer has been used as a weight."""
    return any(not _trained(tracer, axis) for axis in tracer.recording.axes)


def _trained(tracer: Tracer, axis: Axis) -> bool:
    """Whether an axis is that of a parameter, or of a weight that is computed from parameters along it."""
    return any(isinstance(tracer.tensors[name], nn.Parameter) for name, _ in tracer.real_axes(axis))


def rows_of_buffers(tracer: Tracer, labels: Ids) -> NDArray[np.bool_]:
    """Which of these are labels of buffers' axes, and of no parameter's."""
    couplings = tracer.recording.couplings
    trained: dict[bool, set[int]] = {True: set(), False: set()}
    for axis, line in tracer.recording.axes.items():
        trained[_trained(tracer, axis)].update(couplings.space(line).tolist())
    units = np.where((labels > NONE) & (labels < TAG), labels, NONE)
    return np.isin(couplings.space(units), list(trained[False] - trained[True])) & (units > NONE)


def without_rows(tracer: Tracer, units: torch.Tensor, contracted: int, free: int, weight: torch.Tensor) -> torch.Tensor:
    """Units without rows of constant matrices that stand beside them, along an axis that a weight does not contract."""
    if not reads_buffers(tracer) or not isinstance(_owned(tracer, weight), nn.Parameter):
        return units
    small = compact(units)
    values = small.cpu().numpy()
    rows = torch.from_numpy(rows_of_buffers(tracer, values.reshape(-1)).reshape(values.shape)).to(units.device)
    positions = small.where(rows, NONE).expand(units.shape)
    if not varies(positions, free) or varies(positions, contracted):
        return units
    tracer.recording.positions.append(np.unique(values[rows.cpu().numpy()]))
    return small.where(~rows, NONE).expand(units.shape)


def mixed(tracer: Tracer, units: torch.Tensor, dim: int, matrix: torch.Tensor) -> torch.Tensor:
    """Units that a constant matrix over positions mixes go together: on every line along the axis some occur again.

    So it is where a graph's gates are cut across nodes: at every second node stands the other gate's unit.
    """
    if _owned(tracer, matrix) is None or isinstance(_owned(tracer, matrix), nn.Parameter):
        return units
    held = [line[line > NONE] for line in lines(units, dim)]
    if not all(len(line) > 1 and len(np.unique(line)) < len(line) for line in held):
        return units
    for line in held:
        tracer.couple_lines(np.full_like(line, line[0]), line)
    return tracer.representatives(units)


def several_of_one(tracer: Tracer, units: torch.Tensor, dim: int) -> bool:
    """Whether several units of one recurrent kernel's layer lie along an axis, coupled with each other or not."""
    kernels = tracer.recording.layers
    return any(
        name in kernels and len(held) > 1
        for line in lines(units, dim)
        for name, held in tracer.units_by_layer(torch.from_numpy(line)).items()
    )


def _owned(tracer: Tracer, tensor: torch.Tensor) -> torch.Tensor | None:
    """The parameter or buffer that a tensor is a view of, or None."""
    name = tracer.owner(tensor)
    return None if name is None else tracer.tensors[name]
