"""Convolutions contract channels; a window as long as an axis contracts that, too."""

from __future__ import annotations

import numpy as np
import torch

from reprune.torch.tracing.labels import NONE, TAG, Ids, lines, varies
from reprune.torch.tracing.recording import Product
from reprune.torch.tracing.rules.op import Labels, Op


def convolution(op: Op) -> Labels:
    """Convolutions contract channels; sliding over units mixes neighbours and pins them."""
    data, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    tracer = op.tracer
    units = tracer.units(data)
    channels_in, channels_out = (0, 1) if transposed else (1, 0)
    units, read = _whole_windows(op, units)
    units, slides = _joined_places(op, units)
    if slides:
        op.pin("a convolution slides over its units")
        return None
    depthwise = groups == data.shape[1] == weight.shape[0] and groups > 1
    if groups > 1 and not depthwise:
        return _grouped_convolution(op, units)
    if (name := tracer.owner(weight)) is not None:
        tracer.recording.uses[name] = tracer.recording.uses.get(name, 0) + 1
    reading = tracer.weight_lines(weight, 0 if depthwise else channels_in, "follows" if depthwise else "reads")
    if units is not None and not reading and data.shape[1] > 1:
        op.pin("a convolution with a kernel that is no weight, or is computed in a way that was not understood")
        return None
    along = lines(units, 1) if units is not None else np.zeros((0, 0), dtype=np.int64)
    for axis, line in reading:
        tracer.origins.meet("read", tracer.origin(data), line.reshape(-1, *[1] * (data.ndim - 2)), axis[0])
        for one in along:
            tracer.couple_lines(line, one)
        if not depthwise:
            # With a stride, the outputs of a transposed convolution have different taps: no bias fits all of them.
            takes = bias is not None and not (transposed and any(step > 1 for step in op.args[3]))
            tracer.recording.takes_bias(axis, tracer.owner(bias) if takes else None)
    produced = reading if depthwise else tracer.weight_lines(weight, channels_out, "own")
    if not produced:
        return None
    own = produced[0][1]
    tracer.recording.maps += [(axis, made) for axis, _ in reading for made, _ in produced]
    if bias is not None:
        for _, line in tracer.weight_lines(bias, 0, "own"):
            tracer.couple_lines(line, own)
    # A transposed convolution multiplies once for every place that it reads, the others for every one that they make.
    places = data if transposed else op.out
    taps = weight[0, 0].numel() * places.numel() // max(places.shape[1], 1)
    inner = reading[0][1] if reading and not depthwise else np.zeros(1, dtype=np.int64)
    taps //= max(len(read), 1)
    tracer.recording.products.append(Product(taps, (own, inner, read) if len(read) else (own, inner)))
    if not depthwise:
        tracer.begin("convolution", weight, channels_out)
    return _along_channels(own, op.out)


def _joined_places(op: Op, units: Labels) -> tuple[Labels, bool]:
    """Units, those along places that a window slides over joined, and whether these cannot be."""
    if units is None:
        return None, False
    sliding = [d for d in range(2, units.ndim) if varies(units.where(units < TAG, NONE), d)]
    if not sliding:
        return units, False
    if not op.tracer.join(units, sliding):
        return units, True
    return op.tracer.representatives(units).amax(sliding, keepdim=True).expand(units.shape), False


def _whole_windows(op: Op, units: Labels) -> tuple[Labels, Ids]:
    """An axis of units that the window covers whole, once, is read like features: `nn.Conv2d(1, 3, (1, units))`.

    Returns:
        What is left of the units, and the labels of the weight's axis that has read them, none elsewhere.
    """
    data, weight, bias, tracer = *op.args[:3], op.tracer
    none = np.zeros(0, dtype=np.int64)
    if units is None:
        return None, none
    held = [d for d in range(1, data.ndim) if varies(units.where(units < TAG, NONE), d)]
    if len(held) != 1 or held[0] == 1 or op.args[6] or op.args[8] > 1:
        return units, none
    dim = held[0]
    if not (weight.size(dim) == data.size(dim) > op.out.size(dim) == 1) or op.args[4][dim - 2]:
        return units, none
    line = none
    for axis, line in tracer.weight_lines(weight, dim, "reads"):
        tracer.recording.takes_bias(axis, tracer.owner(bias) if bias is not None else None)
        for found in lines(units, dim):
            tracer.couple_lines(line, found)
    return None, line


def _along_channels(labels: Ids, out: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(labels).to(out.device).view(1, -1, *[1] * (out.ndim - 2)).expand(out.shape)


def _grouped_convolution(op: Op, units: Labels) -> Labels:
    """A convolution in groups keeps whole groups: the channels that a group reads and those that it makes join."""
    weight, bias = op.args[1:3]
    tracer, groups, transposed = op.tracer, op.args[8], op.args[6]
    read = lines(units, 1) if units is not None else np.zeros((0, 0), dtype=np.int64)
    if not all(tracer.join(torch.from_numpy(line.reshape(groups, -1)), [1]) for line in read):
        op.pin("a convolution in groups")
        return None
    if len(read) != 1 or bool((read == NONE).any()):
        op.pin("a convolution in groups, some of which read no units")
        return None
    made = np.repeat(read[0].reshape(groups, -1)[:, 0], op.out.shape[1] // groups)
    for _, line in tracer.weight_lines(weight, 0, "follows"):
        tracer.couple_lines(line, read[0] if transposed else made)
    for _, line in tracer.weight_lines(bias, 0, "follows") if bias is not None else ():
        tracer.couple_lines(line, made)
    places = op.args[0] if transposed else op.out
    rows = weight[0].numel() * places.numel() // max(places.shape[1], 1)
    tracer.recording.products.append(Product(rows, (read[0] if transposed else made,)))
    return _along_channels(made, op.out)
