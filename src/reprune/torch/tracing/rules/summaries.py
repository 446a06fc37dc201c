"""Summaries: values computed over all units of a layer, which depend on how many there are.

What becomes of a summary decides. A mean that is subtracted from the units it was taken of, or a deviation that they
are divided by, is a normalisation: units can be removed, though not exactly. A summary that only answers a question of
the code (`assert not h.isnan().any()`) leaves no trace in what the model computes. Everything else would be another
number with fewer units, and pins them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from reprune.torch.tracing.labels import storage_id, unit_ids
from reprune.torch.tracing.location import here
from reprune.torch.tracing.recording import Summary, tensors_in
from reprune.torch.tracing.rules.op import Op
from reprune.torch.tracing.tracer import Tracer

_MOMENTS = {"mean", "var", "std", "var_mean", "std_mean"}
# What normalisations are written in: on the way from a moment to the units, and where the two meet.
_STEPS = {"add", "sub", "rsub", "mul", "div", "neg", "sqrt", "rsqrt", "pow", "square", "reciprocal", "clamp",
          "clamp_min", "maximum", "addcmul", "addcdiv", "lerp", "_to_copy", "clone", "copy", "mean", "sum", "cumsum",
          "repeat", "cat", "stack", "index", "constant_pad_nd"}  # fmt: skip
_SCALES = {"sqrt", "rsqrt", "pow", "reciprocal", "std", "std_mean"}
_MEETINGS = {"add", "sub", "rsub", "div", "addcmul", "addcdiv"}


def summarise(op: Op, units: torch.Tensor) -> None:
    """Note that an operation's results summarise these units."""
    found = Summary(unit_ids(units), op.name, here(op.name), op.name in _MOMENTS, op.name in _SCALES)
    _mark(op.tracer, tensors_in(op.out), [found])


def summaries_of(tracer: Tracer, tensors: Iterable[torch.Tensor]) -> list[Summary]:
    """The summaries that these tensors hold."""
    found: dict[int, Summary] = {}
    for tensor in tensors if tracer.summaries else ():
        found.update({id(one): one for one in tracer.summaries.get(storage_id(tensor), ())})
    return list(found.values())


def follow_summaries(op: Op, held: Sequence[Summary], spread: bool) -> None:
    """What an operation does to the summaries among its inputs.

    Args:
        op: The operation.
        held: The summaries among its inputs.
        spread: Whether each of its results depends on the inputs alone, element by element, along dimensions or moved.
    """
    outputs = list(tensors_in(op.out))
    if not outputs:
        _leave(op, held)
        return
    units = [found for tensor in outputs for found in [op.tracer.units(tensor)] if found is not None]
    if not spread:
        pin_summaries(op.tracer, held)
    elif not units:
        step = op.name in _STEPS or op.view
        _mark(op.tracer, outputs, [_next(one, step, op.name) for one in held])
    else:
        layers = set(np.concatenate([op.tracer.recording.couplings.roots(unit_ids(found)) for found in units]).tolist())
        for one in held:
            _meet(op, one, layers)


def pin_summaries(tracer: Tracer, held: Iterable[Summary]) -> None:
    """Summaries that are used as values: their units stay."""
    for one in held:
        tracer.pin(torch.from_numpy(one.units), one.operation, one.reason, one.site)


def _next(one: Summary, step: bool, name: str) -> Summary:
    """The summary one operation further."""
    return one._replace(moment=one.moment and step, scale=one.scale or name in _SCALES)


def _meet(op: Op, one: Summary, layers: set[int]) -> None:
    """A summary is combined with units; with those it was taken of, as normalisations do, or not."""
    normalises = one.moment and (op.name in _MEETINGS or (op.name == "mul" and one.scale))
    if normalises and layers >= set(op.tracer.recording.couplings.roots(one.units).tolist()):
        op.tracer.recording.approximate.append((one.units, one.site))
    else:
        pin_summaries(op.tracer, [one])


def _leave(op: Op, held: Sequence[Summary]) -> None:
    """A summary leaves PyTorch: as the answer to a question of the code, or as a number."""
    asked = all(tensor.dtype == torch.bool for tensor in tensors_in((op.args, op.kwargs)))
    if asked or op.name in ("equal", "allclose"):
        op.tracer.recording.direct.extend(one.units for one in held)
    else:
        pin_summaries(op.tracer, held)


def _mark(tracer: Tracer, tensors: Iterable[torch.Tensor], found: Sequence[Summary]) -> None:
    for tensor in tensors:
        tracer.hold(tensor)
        tracer.summaries.setdefault(storage_id(tensor), []).extend(found)
