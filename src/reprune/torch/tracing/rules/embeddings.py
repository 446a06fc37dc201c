"""Tables of embeddings: their columns are features."""

from __future__ import annotations

import torch

from reprune.torch.tracing.rules.op import Labels, Op


def embedding(op: Op) -> Labels:
    """A table's columns are the features that come out."""
    weight, indices = op.args[:2]
    tracer = op.tracer
    found = tracer.weight_lines(weight, 1, "own")
    if not found:
        return None
    _, line = found[0]
    tracer.begin("embedding", weight, 1)
    return torch.from_numpy(line).to(indices.device).expand(op.out_tensor.shape)


def embedding_renorm(op: Op) -> None:
    """`max_norm`: a row is shortened by its length over all columns, whether anything reads them or not."""
    name = op.tracer.owner(op.args[0])
    if name is not None and "embedding" in op.tracer.widths.kinds:
        columns = torch.from_numpy(op.tracer.axis(name, 1, "own"))
        op.tracer.pin(columns, "embedding", "max_norm shortens rows by their length over all columns")
