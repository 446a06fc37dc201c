"""A full-size model that computes what a pruned one does."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from reprune.core.plan import Plan
from reprune.torch.surgery.apply import check, named_tensors
from reprune.torch.tracing.running.copies import duplicate


def expand(dense: nn.Module, small: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the dense model with the weights of the pruned one, and zeros where units were removed.

    Args:
        dense: The model for which the plan was made; its weights do not matter.
        small: The pruned model.
        plan: Which units of the dense model it kept.

    Raises:
        PlanError: When the plan does not belong to the dense model.
    """
    check(dense, plan)
    whole = duplicate(dense)
    removed, source = plan.removed(), named_tensors(small)
    cuts: dict[str, dict[int, torch.Tensor]] = {}
    for slot in plan.structure.slots:
        stay = np.setdiff1d(np.arange(slot.size), slot.positions(removed))
        cuts.setdefault(slot.tensor, {})[slot.axis] = torch.from_numpy(stay)
    with torch.no_grad():
        for name, tensor in named_tensors(whole).items():
            held = cuts.get(name, {})
            index = [held.get(axis, torch.arange(size)) for axis, size in enumerate(tensor.shape)]
            place = torch.zeros_like(tensor)
            place[torch.meshgrid(*index, indexing="ij") if index else ()] = source[name].to(tensor)
            tensor.copy_(place)
    return whole
