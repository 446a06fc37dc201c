"""Several processes train one model: statistics are of all of them, and all prune alike."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any, TypeVar

import torch
from torch import distributed

from reprune.core.errors import RecipeError
from reprune.core.evidence.moments import Moments
from reprune.core.plan import Plan

T = TypeVar("T")


def processes() -> int:
    """Number of processes that train together; 1 without `torch.distributed`."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Number of this process among those that train together."""
    return distributed.get_rank() if processes() > 1 else 0


def summed(number: int) -> int:
    """The sum of a number over all processes."""
    if processes() == 1:
        return number
    total = torch.tensor(number, device="cuda" if distributed.get_backend() == "nccl" else "cpu")
    distributed.all_reduce(total)
    return int(total)


def all_reduced(moments: Moments, device: torch.device) -> dict[str, Any]:
    """State of the moments of what all processes have seen.

    With n_i rows of mean m_i in process i: n = Σ n_i, m = Σ n_i m_i / n, S = Σ (S_i + n_i (m_i − m)(m_i − m)ᵀ).

    Args:
        moments: Those of this process; it may have seen nothing.
        device: Where the processes exchange tensors.
    """
    state = moments.state()
    if processes() == 1:
        return state
    kind = torch.float32 if device.type == "mps" else torch.float64
    total = torch.tensor(moments.count, dtype=torch.int64, device=device)
    distributed.all_reduce(total)
    if int(total) == 0:
        return state
    empty = torch.zeros(moments.size, dtype=kind, device=device)
    own = state["mean"].to(device) if moments.count else empty
    mean = own * (moments.count / int(total))
    distributed.all_reduce(mean)
    scatter = torch.outer(own - mean, own - mean) * moments.count
    if moments.count:
        scatter += state["scatter"].to(device)
    distributed.all_reduce(scatter)
    return {"count": int(total), "mean": mean, "scatter": scatter}


def average_gradients(parameters: list[torch.nn.Parameter]) -> None:
    """Mean over all processes of the gradients of parameters that belong to no wrapped model."""
    count = processes()
    if count == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)
        parameter.grad /= count


def agreed(plan: Plan) -> Plan:
    """The first process's plan, in every process.

    Raises:
        RecipeError: What the processes decided differs: their models do.
    """
    if processes() == 1:
        return plan
    digest = hashlib.sha256(json.dumps(dict(plan.kept), sort_keys=True).encode()).hexdigest()
    digests = gathered(digest)
    if len(set(digests)) > 1:
        ranks = [rank for rank, found in enumerate(digests) if found != digests[0]]
        raise RecipeError(
            f"Processes {ranks} would remove other units than process 0: their weights differ. Start all with the same "
            "weights, and wrap the model in DistributedDataParallel, before a Pruner steps."
        )
    return shared(plan)


def gathered(value: T) -> list[T]:
    """Every process's value, in every process."""
    found: list[Any] = [value] * processes()
    if processes() > 1:
        distributed.all_gather_object(found, value)
    return found


def shared(value: T) -> T:
    """The first process's value, in every process."""
    held: list[Any] = [value]
    if processes() > 1:
        distributed.broadcast_object_list(held, src=0)
    found: T = held[0]
    return found


def everyone(value: T) -> list[T]:
    """The values of all processes, in every process, with their tensors on the CPU; only what `torch.save` may hold."""
    if processes() == 1:
        return [value]
    buffer = io.BytesIO()
    torch.save(value, buffer)
    held: list[Any] = [None] * processes()
    distributed.all_gather_object(held, buffer.getvalue())
    return [torch.load(io.BytesIO(part), map_location="cpu", weights_only=True) for part in held]
