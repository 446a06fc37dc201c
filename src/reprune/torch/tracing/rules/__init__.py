"""What every operation does to labels. An operation without a rule pins the units it touches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from reprune.torch.tracing.labels import has_storage, storage_id
from reprune.torch.tracing.recording import Loss, tensors_in
from reprune.torch.tracing.rules.elementwise import unknown
from reprune.torch.tracing.rules.losses import follow_losses
from reprune.torch.tracing.rules.movement import check_view
from reprune.torch.tracing.rules.op import Op
from reprune.torch.tracing.rules.size_uses import given_sizes, record_sizes, sized
from reprune.torch.tracing.rules.summaries import follow_summaries, pin_summaries, summaries_of
from reprune.torch.tracing.rules.table import class_of, is_view, rule_of
from reprune.torch.tracing.tracer import Tracer

__all__ = ["apply_rule", "given_sizes", "pin_summaries", "record_sizes", "sized", "summaries_of"]

# A result of these depends on what they are given element by element, along dimensions, or by where it stands.
_SPREADS = {"moves", "accumulates", "pointwise", "along dimensions"}


def apply_rule(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Label the outputs of an operation that just ran."""
    name = func._schema.name.split("::")[-1]
    name = name if name.startswith("__") else name.rstrip("_")
    inputs, outputs = list(tensors_in((args, kwargs))), list(tensors_in(out))
    _follow_states(tracer, name, inputs, out)
    tracer.follow(inputs, outputs)
    held = summaries_of(tracer, inputs)
    pins = len(tracer.recording.pins)
    sources = {storage_id(tensor) for tensor in inputs}
    moved = not func._schema.is_mutable and bool(outputs) and all(storage_id(tensor) in sources for tensor in outputs)
    kind = class_of(name)
    op = Op(tracer, name, func, args, kwargs, out, view=kind is None and (moved or is_view(name)))
    if op.view and all(map(has_storage, outputs)):
        check_view(op, inputs[0], outputs)
    else:
        _label(op, outputs)
    if held and kind not in ("like", "nothing"):
        follow_summaries(op, held, op.view or kind in _SPREADS)
    follow_losses(op, inputs, outputs, [Loss(site, reason) for _, site, reason in tracer.recording.pins[pins:]])


def _label(op: Op, outputs: Sequence[torch.Tensor]) -> None:
    rule = rule_of(op.name) or unknown
    if not all(map(has_storage, outputs)):
        op.pin("made a sparse or nested tensor, which reprune cannot follow")
        return
    labels = rule(op)
    if not isinstance(labels, (list, tuple)):
        labels = [_or_origins(op, labels, outputs)] + [None] * len(outputs)
    for tensor, found in zip(outputs, labels, strict=False):
        op.tracer.memory.set(tensor, found)


def _or_origins(op: Op, labels: torch.Tensor | None, outputs: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """What came from outside keeps that name through whatever keeps its shape: a normalisation, say."""
    if labels is not None or not outputs or op.func._schema.is_mutable:
        return labels
    found = [found for found in map(op.tracer.origin, tensors_in(op.args)) if found is not None]
    return found[0] if len(found) == 1 and found[0].shape == outputs[0].shape else None


def _follow_states(tracer: Tracer, name: str, inputs: Sequence[torch.Tensor], out: Any) -> None:
    """Note when a stacked final state is used; the recurrent modules' own handling of it does not count."""
    for tensor in inputs:
        if not tracer.is_stacked_state(tensor) or tracer.inside_piece or name in ("detach", "alias"):
            continue
        if tracer.inside_module:
            for result in tensors_in(out):
                tracer.states.setdefault(storage_id(result), tracer.states[storage_id(tensor)])
        else:
            tracer.touch(tensor)
