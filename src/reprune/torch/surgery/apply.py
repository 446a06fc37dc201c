"""Surgery: from a plan to a smaller model, or to the masked one that it must equal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from reprune.core.errors import PlanError
from reprune.core.folding.fold import Fold
from reprune.core.layers import Slot
from reprune.core.plan import Plan
from reprune.torch.ragged.base import RaggedBase
from reprune.torch.ragged.modules import RaggedGRU, RaggedLSTM, RaggedRNN, unroll
from reprune.torch.surgery.attention import NarrowAttention
from reprune.torch.surgery.states import accept_states
from reprune.torch.tracing.running.copies import duplicate
from reprune.torch.tracing.sizes.sizes import set_size

ROWS = 1024
"""Rows of a weight that are corrected at a time."""
RAGGED = (RaggedLSTM, RaggedGRU, RaggedRNN)


def mask(model: nn.Module, plan: Plan) -> nn.Module:
    """A full-size copy in which nothing reads the units that `plan` removes: their columns are zero.

    This is the oracle: `apply(model, plan)` computes the same.

    Args:
        model: The model that was planned; it is left as it was.
        plan: Which units stay.

    Raises:
        PlanError: When the plan does not belong to the model.
    """
    check(model, plan)
    masked = duplicate(model)
    tensors = named_tensors(masked)
    _fold(tensors, plan)
    removed = plan.removed()
    # Units that are also read without a weight are silenced at their source.
    direct = {name: units for name, units in removed.items() if plan.structure.layers[name].direct}
    for slot in plan.structure.slots:
        silence(tensors, slot, removed if slot.role == "reads" else direct)
    return masked


def silence(tensors: Mapping[str, torch.Tensor], slot: Slot, units: Mapping[str, Sequence[int]]) -> None:
    """Set what a slot holds of these units to zero."""
    gone = slot.positions(units)
    if len(gone) and tensors[slot.tensor].is_floating_point():
        index = torch.from_numpy(gone).to(tensors[slot.tensor].device)
        tensors[slot.tensor].data.index_fill_(slot.axis, index, 0)


def apply(model: nn.Module, plan: Plan) -> nn.Module:
    """A new, smaller model without the units that `plan` removes.

    Device, dtype, training mode and `requires_grad` carry over. A recurrent module whose layers end with different
    sizes becomes a `RaggedLSTM`, `RaggedGRU` or `RaggedRNN` of the same signature; all others keep their types.

    Args:
        model: The model that was planned; it is left as it was.
        plan: Which units stay.

    Raises:
        PlanError: When the plan does not belong to the model.

    Example:
        >>> plan = reprune.plan(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> small = reprune.apply(model, plan)                  # doctest: +SKIP
    """
    check(model, plan)
    return cut(duplicate(model, _borrowed(model, plan)), plan)


def cut(small: nn.Module, plan: Plan) -> nn.Module:
    """Remove units from a model of the caller's own, in place; only the plan's corrections look at values.

    Tensors that lose positions are replaced, never written to.
    """
    changed = _slice(small, named_tensors(small), plan)
    _resize_modules(small, changed)
    counts = plan.counts()
    for size in plan.structure.sizes:
        owner = small.get_submodule(size.owner)
        if not isinstance(owner, (nn.RNNBase, nn.RNNCellBase, *RAGGED)):
            set_size(owner, size.path, size.extent(counts) * size.times // size.divisor)
    accept_states(small, plan)
    return small


def _fold(tensors: dict[str, torch.Tensor], plan: Plan) -> None:
    """Put the plan's corrections into tensors of the dense sizes."""
    for fold in plan.folds:
        gain = _correct(tensors[fold.tensor].detach(), fold, plan)
        if fold.bias is not None:
            tensors[fold.bias].detach().add_(gain)
    for refit in plan.refits:
        weight = tensors[refit.tensor].detach()
        axes = [torch.from_numpy(axis).to(weight.device) for axis in plan.stays(refit.tensor, weight.shape)]
        weight[torch.meshgrid(*axes, indexing="ij")] = torch.tensor(refit.array()).to(weight)


def _correct(weight: torch.Tensor, fold: Fold, plan: Plan) -> torch.Tensor:
    """Add what a consumer's columns take over, in place: `W_K += W_P A`. Returns what its bias does, `W_P b`."""
    slot = next(slot for slot in plan.structure.slots if (slot.tensor, slot.axis) == (fold.tensor, fold.axis))
    gone = slot.positions(plan.removed())
    stay = np.setdiff1d(np.arange(slot.size), gone)
    coefficients, offsets = (torch.tensor(part).to(weight.device) for part in fold.arrays(len(gone), len(stay)))
    lost_at, kept_at = (torch.from_numpy(places).to(weight.device) for places in (gone, stay))
    # A vector is one row.
    columns, gains = (weight[None] if weight.ndim == 1 else weight.movedim(fold.axis, -1)), []
    # Some rows at a time: in double precision, all of them would take several times the memory of the weight.
    for start in range(0, len(columns), ROWS):
        rows = columns[start : start + ROWS]
        lost = rows[..., lost_at].double()
        rows[..., kept_at] += (lost @ coefficients).to(weight.dtype)
        taps = lost.flatten(1, -2).sum(1) if lost.ndim > 2 else lost
        gains.append((taps @ offsets).to(weight.dtype))
    gain = torch.cat(gains)
    return gain[0] if weight.ndim == 1 else gain


def check(model: nn.Module, plan: Plan) -> None:
    """Raise a `PlanError` unless every tensor that the plan names is in the model, with the shape it had."""
    tensors = named_tensors(model)
    for name, shape in plan.structure.shapes.items():
        if name not in tensors:
            raise PlanError(f"The plan belongs to another model: {type(model).__name__} has no tensor {name!r}.")
        if tuple(tensors[name].shape) != tuple(shape):
            raise PlanError(
                f"The plan belongs to another model: {name!r} has shape {tuple(tensors[name].shape)}, "
                f"the plan was made for {tuple(shape)}. Apply it to the dense model it was made from."
            )
    corrected = [*(fold.bias for fold in plan.folds if fold.bias), *(refit.tensor for refit in plan.refits)]
    for missing in (name for name in corrected if name not in tensors):
        raise PlanError(f"The plan belongs to another model: {type(model).__name__} has no tensor {missing!r}.")
    for refit in plan.refits:
        stay = tuple(map(len, plan.stays(refit.tensor, tensors[refit.tensor].shape)))
        if refit.shape != stay:
            raise PlanError(
                f"The plan belongs to another model: {refit.tensor!r} would keep {stay}, the plan holds {refit.shape}."
            )
    for size in plan.structure.sizes:
        try:
            model.get_submodule(size.owner)
        except AttributeError:
            raise PlanError(f"The plan belongs to another model: there is no module {size.owner!r}.") from None


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name; a tensor that several modules share has its first name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _slice(model: nn.Module, tensors: dict[str, torch.Tensor], plan: Plan) -> set[int]:
    """Replace every tensor that loses positions, corrected; returns the ids of the modules that hold one."""
    cuts = _cuts(plan)
    folds: dict[str, list[Fold]] = {}
    for fold in plan.folds:
        folds.setdefault(fold.tensor, []).append(fold)
    small, gains = {}, []
    for name, axes in cuts.items():
        weight = tensors[name].detach()
        if name in folds:
            # Rows that go are cut before: correcting them would be for nothing.
            corrected = {fold.axis for fold in folds[name]}
            others = [cut for cut in axes if cut[0] not in corrected]
            weight = _kept(weight, others) if others else weight.clone()
            axes = [cut for cut in axes if cut[0] in corrected]
            gains += [(fold.bias, _correct(weight, fold, plan)) for fold in folds[name]]
        weight, like = _kept(weight, axes).contiguous(), tensors[name]
        small[name] = nn.Parameter(weight, like.requires_grad) if isinstance(like, nn.Parameter) else weight
    for bias, gain in gains:
        if bias is not None:
            held = small.get(bias, tensors[bias]).detach()
            held.add_(gain if gain.numel() == held.numel() else _kept(gain, cuts[bias]))
    for refit in plan.refits:
        weight = small.get(refit.tensor, tensors[refit.tensor]).detach()
        weight.copy_(torch.tensor(refit.array()))
    return put(model, {id(tensors[name]): tensor for name, tensor in small.items()})


def _cuts(plan: Plan) -> dict[str, list[tuple[int, NDArray[np.int64]]]]:
    """For every tensor that loses positions: axes, and the positions that stay."""
    removed = {name: np.array(units, dtype=np.int64) for name, units in plan.removed().items()}
    cuts: dict[str, list[tuple[int, NDArray[np.int64]]]] = {}
    for slot in plan.structure.slots:
        gone = slot.positions(removed)
        if len(gone):
            cuts.setdefault(slot.tensor, []).append((slot.axis, np.delete(np.arange(slot.size), gone)))
    return cuts


def _borrowed(model: nn.Module, plan: Plan) -> dict[int, torch.Tensor]:
    """By their ids, tensors that `cut` replaces, in the same memory: a copy of them would be made for nothing."""
    tensors = named_tensors(model)
    found: dict[int, torch.Tensor] = {}
    for tensor in (tensors[name] for name in _cuts(plan)):
        if type(tensor) is nn.Parameter and not tensor.is_inference():
            found[id(tensor)] = nn.Parameter(tensor.detach(), tensor.requires_grad)
    return found


def put(model: nn.Module, replaced: Mapping[int, torch.Tensor]) -> set[int]:
    """Put other tensors in the places of parameters and buffers, by id; returns the ids of modules that had any."""
    changed = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if id(parameter) in replaced:
                # setattr, not the dictionary: recurrent modules keep a list of their weights beside it.
                setattr(module, name, replaced[id(parameter)])
                changed.add(id(module))
        for name, buffer in list(module._buffers.items()):
            if id(buffer) in replaced:
                module._buffers[name] = replaced[id(buffer)]
                changed.add(id(module))
    return changed


def _kept(values: torch.Tensor, axes: Iterable[tuple[int, NDArray[np.int64]]]) -> torch.Tensor:
    """The values at these positions of these axes."""
    for axis, stay in axes:
        # On "meta" there are sizes only, and choosing among values that are not there is slow.
        chosen = None if values.is_meta else torch.from_numpy(stay).to(values.device)
        values = values.narrow(axis, 0, len(stay)) if chosen is None else values.index_select(axis, chosen)
    return values


# -- modules that know their sizes -----------------------------------------------------------------------------------


def _resize_modules(model: nn.Module, changed: set[int]) -> None:
    for module in list(model.modules()):
        if id(module) in changed or parametrize.is_parametrized(module):
            fitting = _fit(module)
            if fitting is not module:
                replace_module(model, module, fitting)


def _fit(module: nn.Module) -> nn.Module:
    """The module with its sizes set to those of its sliced weights, or one of another type that fits them."""
    for kind, resize in _RESIZE.items():
        if isinstance(module, kind):
            return resize(module) or module
    return module


def _linear(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


def _convolution(module: nn.modules.conv._ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.groups > 1:
        # Whole groups go: what a group reads and makes stays as it was.
        reads, makes = module.in_channels // module.groups, module.out_channels // module.groups
        module.groups = first // (reads if module.transposed else makes)
        module.in_channels, module.out_channels = module.groups * reads, module.groups * makes
    elif module.transposed:
        module.in_channels, module.out_channels = first, second
    else:
        module.out_channels, module.in_channels = first, second
    module.kernel_size = tuple(module.weight.shape[2:])


def _batch_norm(module: nn.modules.batchnorm._NormBase) -> None:
    held = next(t for t in (module.weight, module.running_mean) if t is not None)
    module.num_features = held.shape[0]


def _layer_norm(module: nn.LayerNorm | nn.RMSNorm) -> None:
    module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: nn.GroupNorm) -> None:
    if module.num_groups > 1:
        module.num_groups = module.num_groups * module.weight.shape[0] // module.num_channels
    module.num_channels = module.weight.shape[0]


def _bilinear(module: nn.Bilinear) -> None:
    module.out_features, module.in1_features, module.in2_features = module.weight.shape


def _embedding(module: nn.Embedding) -> None:
    module.embedding_dim = module.weight.shape[1]


def _prelu(module: nn.PReLU) -> None:
    module.num_parameters = module.weight.shape[0]


def _cell(module: nn.RNNCellBase) -> None:
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _attention(module: nn.MultiheadAttention) -> nn.Module | None:
    return NarrowAttention(module) if type(module).forward is nn.MultiheadAttention.forward else None


def _recurrent(module: nn.RNNBase) -> nn.Module | None:
    # Not weight_hh: it may be computed from another parameter before each call, and be of the old size until then.
    weights = {
        name: weight
        for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
        if weight.ndim == (1 if name.startswith("bias") else 2)  # Subclasses may have more, by whatever name.
    }
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    hidden = {weight.shape[0] // gates for name, weight in weights.items() if name.startswith("weight_ih")}
    hidden = hidden or {weight.shape[0] // gates for name, weight in weights.items() if name.startswith("bias")}
    projected = {weight.shape[0] for name, weight in weights.items() if name.startswith("weight_hr")}
    # PyTorch has no projection to as many components as there are units.
    if len(hidden) > 1 or len(projected) > 1 or (projected and min(projected) >= max(hidden)):
        return cast(nn.Module, unroll(cast(nn.LSTM, module)))
    if "weight_ih_l0" in weights:
        module.input_size = weights["weight_ih_l0"].shape[1]
    module.hidden_size = hidden.pop() if hidden else module.hidden_size
    module.proj_size = projected.pop() if projected else 0
    module.flatten_parameters()
    return None


def _ragged(module: RaggedBase) -> None:
    module.refit()


_RESIZE: dict[type[nn.Module], Callable[..., nn.Module | None]] = {
    nn.Linear: _linear,
    nn.modules.conv._ConvNd: _convolution,
    nn.modules.batchnorm._NormBase: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.Bilinear: _bilinear,
    nn.Embedding: _embedding,
    nn.PReLU: _prelu,
    nn.RNNCellBase: _cell,
    nn.MultiheadAttention: _attention,
    nn.RNNBase: _recurrent,
    RaggedBase: _ragged,
}


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the place of another everywhere, plain lists and dictionaries of a module included."""
    for parent in list(model.modules()):
        holders = [parent._modules, *(value for value in vars(parent).values() if isinstance(value, (list, dict)))]
        for holder in holders:
            for key, child in list(holder.items() if isinstance(holder, dict) else enumerate(holder)):
                if child is old:
                    holder[key] = new
