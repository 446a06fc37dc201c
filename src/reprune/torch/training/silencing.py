"""Units that are selected but not yet cut out: their own weights fade."""

from __future__ import annotations

import torch
from torch import nn

from reprune.core.plan import Plan
from reprune.torch.surgery.apply import named_tensors


def silence(model: nn.Module, plan: Plan, factor: float = 0.0) -> None:
    """Multiply, in place, the incoming weights and biases of units that a plan removes; by 0, they respond with 0."""
    removed = plan.removed()
    own = {slot for layer in removed for slot in plan.structure.slots_of(layer, "own")}
    tensors = named_tensors(model)
    with torch.no_grad():
        for slot in own:
            tensor = tensors[slot.tensor]
            positions = torch.from_numpy(slot.positions(removed)).to(tensor.device)
            tensor.index_copy_(slot.axis, positions, tensor.index_select(slot.axis, positions) * factor)
