"""The oracle: a pruned model must compute what the masked one does, gradients of the kept weights included."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import reprune.torch
from reprune.core.decide import free_blocks
from reprune.core.layers import Structure
from reprune.core.plan import Plan
from reprune.core.rehearsal import random_plan
from reprune.torch import apply, mask
from reprune.torch.surgery.apply import named_tensors
from reprune.torch.tracing.recording import tensors_in
from reprune.torch.tracing.running.calling import call

DEVICE = os.environ.get("REPRUNE_DEVICE", "cpu")
"""Where the zoo runs."""
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def converted(batch: Any, dtype: torch.dtype) -> Any:
    """The batch on the device under test, with its floating point tensors in another type; lengths stay on the CPU."""
    if isinstance(batch, torch.Tensor):
        if batch.is_floating_point():
            return batch.to(DEVICE, dtype)
        return batch.to(DEVICE) if batch.dim() > 1 else batch
    if isinstance(batch, dict):
        return {key: converted(value, dtype) for key, value in batch.items()}
    if hasattr(batch, "_fields"):
        return batch.to(DEVICE, dtype)  # A PackedSequence.
    return type(batch)(converted(value, dtype) for value in batch) if isinstance(batch, (list, tuple)) else batch


def prepared(model: nn.Module, *, train: bool) -> nn.Module:
    """In train or eval mode; without dropout, which draws other numbers for other sizes."""
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.to(DEVICE).train(train)


def random_plans(structure: Any, count: int) -> list[Plan]:
    """Plans of random units, different numbers in every layer that is free."""
    blocks = [[name for group in entry for name in group] for entry in free_blocks(structure)]
    return [random_plan(structure, blocks, seed) for seed in range(count)]


def assert_close(small: torch.Tensor, masked: torch.Tensor, what: str) -> None:
    small, masked = small.detach(), masked.detach()
    assert small.dtype == masked.dtype, what
    assert small.shape == masked.shape, f"{what}: {tuple(small.shape)} is not {tuple(masked.shape)}"
    if not small.is_floating_point():
        assert torch.equal(small, masked), what
        return
    if small.numel():
        finite = torch.isfinite(masked)
        assert torch.equal(finite, torch.isfinite(small)), what
        error = float((small - masked)[finite].abs().max()) if finite.any() else 0.0
        scale = max(float(masked[finite].abs().max()) if finite.any() else 0.0, 1e-2)
        assert error <= TOLERANCE[small.dtype] * scale, f"{what}: off by {error / scale:.2e}"


def outputs(model: nn.Module, batch: Any) -> list[torch.Tensor | tuple[torch.Tensor, ...]]:
    """The output's tensors, after seeding."""
    torch.manual_seed(3)
    return list(tensors_in(call(model, batch)))


def kept_state(state: torch.Tensor, names: tuple[str, ...], plan: Plan) -> list[torch.Tensor]:
    """The kept entries of a full-size state, piece by piece."""
    pieces = state.unbind(0) if state.ndim > 2 else [state]
    return [piece[..., plan.kept[name]] for piece, name in zip(pieces, names, strict=True)]


def check_oracle(model: nn.Module, plan: Plan, batch: Any, states: tuple[tuple[str, ...], ...] = ()) -> None:
    """Outputs, final states and gradients of pruned and masked model agree on this batch."""
    before = copy.deepcopy(model.state_dict())
    small, masked = apply(model, plan), mask(model, plan)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the original changed"
    found, expected = outputs(small, copy.deepcopy(batch)), outputs(masked, copy.deepcopy(batch))
    plain = len(expected) - len(states)
    for index in range(plain):
        assert_close(found[index], expected[index], f"output {index}")
    _check_states(found[plain:], expected[plain:], states, plan)
    _check_gradients(small, masked, found[:plain], expected[:plain], plan)


def _check_states(found: list[Any], expected: list[Any], states: tuple[tuple[str, ...], ...], plan: Plan) -> None:
    pieces = [piece for state in found for piece in (state.unbind(0) if state.ndim > 2 else [state])]
    wanted = [piece for state, names in zip(expected, states, strict=True) for piece in kept_state(state, names, plan)]
    assert len(pieces) == len(wanted)
    for piece, want in zip(pieces, wanted, strict=True):
        assert_close(piece, want, "final state")


def _check_gradients(small: nn.Module, masked: nn.Module, found: Any, expected: Any, plan: Plan) -> None:
    generator = torch.Generator().manual_seed(5)
    losses = []
    for tensors in (found, expected):
        generator.manual_seed(5)
        terms = [
            (torch.where(torch.isfinite(t), t, 0) * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum()
            for t in tensors
            if t.requires_grad
        ]
        losses.append(torch.stack(terms).sum() if terms else None)
    if losses[0] is None:
        return
    for loss in losses:
        loss.backward()
    wide = named_tensors(masked)
    slots: dict[str, list[Any]] = {}
    for slot in plan.structure.slots:
        slots.setdefault(slot.tensor, []).append(slot)
    removed = plan.removed()
    for name, parameter in small.named_parameters():
        gradient = wide[name].grad
        if parameter.grad is None or gradient is None:
            # A direction that nothing reads has no gradient in the ragged form, and zeros in a fused kernel.
            found = gradient if parameter.grad is None else parameter.grad
            assert found is None or not found.any(), name
            continue
        for slot in slots.get(name, ()):
            stay = np.setdiff1d(np.arange(slot.size), slot.positions(removed))
            gradient = gradient.index_select(slot.axis, torch.from_numpy(stay))
        assert_close(parameter.grad, gradient, f"gradient of {name}")


def check_all_lose(
    model: nn.Module, layers: dict[str, int], frames: Callable[..., torch.Tensor], longer: int
) -> Structure:
    """All of these layers, and no others, lose units, as many of each as it likes, and the smaller model is exact."""
    torch.manual_seed(0)
    model = model.double()
    structure = reprune.torch.inspect(model, [frames()]).structure
    assert {name: layer.units for name, layer in structure.layers.items()} == layers
    assert structure.prunable == tuple(layers), {name: str(layer.pin) for name, layer in structure.layers.items()}
    for plan in random_plans(structure, 3):
        assert all(len(kept) < layers[name] for name, kept in plan.kept.items())
        check_oracle(model, plan, frames(longer))
    return structure
