"""What every operation does to labels. An operation without a rule pins the units it touches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from reprune.torch.labels import NONE, TAG, Ids, lines, squeeze_constant, storage_id, varies
from reprune.torch.sizes import SizeInt
from reprune.torch.tracer import Product, Tracer, tensors_in

Labels = torch.Tensor | None


@dataclass
class Op:
    """One operation that ran: what it was given and what it returned."""

    tracer: Tracer
    name: str
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any

    def arg(self, index: int, name: str = "", default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)

    def pin(self, reason: str) -> None:
        """Pin all units among the inputs."""
        for tensor in tensors_in((self.args, self.kwargs)):
            self.tracer.pin(self.tracer.units(tensor), self.name, reason)


Rule = Callable[[Op], Any]


def apply_rule(tracer: Tracer, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Label the outputs of an operation that just ran."""
    name = func._schema.name.split("::")[-1]
    name = name if name.startswith("__") else name.rstrip("_")
    inputs = list(tensors_in((args, kwargs)))
    _follow_states(tracer, name, inputs, out)
    op = Op(tracer, name, func, args, kwargs, out)
    outputs = [*tensors_in(out)]
    if not func._schema.is_mutable and outputs and name not in RULES:
        sources = {storage_id(tensor) for tensor in inputs}
        if all(storage_id(tensor) in sources for tensor in outputs):
            _check_view(op, inputs[0], outputs)
            return
    rule = RULES.get(name)
    if rule is None and (torch.Tag.pointwise in func.tags or name in POINTWISE):
        rule = pointwise
    if rule is None:
        rule = unknown
    labels = rule(op)
    if not isinstance(labels, (list, tuple)):
        labels = [labels] + [None] * (len(outputs) - 1)
    if name in KEEP:
        return
    for tensor, found in zip(outputs, labels, strict=False):
        tracer.memory.set(tensor, found)


def _follow_states(tracer: Tracer, name: str, inputs: Sequence[torch.Tensor], out: Any) -> None:
    """Note when a stacked final state is used; the recurrent modules' own handling of it does not count."""
    for tensor in inputs:
        key = storage_id(tensor)
        if key not in tracer.states or name in ("detach", "alias"):
            continue
        if tracer.inside_module:
            for result in tensors_in(out):
                tracer.states.setdefault(storage_id(result), tracer.states[key])
        else:
            tracer.touch(tensor)


# -- movement --------------------------------------------------------------------------------------------------------


def move(*data: int) -> Rule:
    """Rule of an operation that only moves elements: run it on the labels of the arguments at these positions."""

    def rule(op: Op) -> Any:
        tracer = op.tracer
        if not any(_has_labels(tracer, tensor) for index in data for tensor in tensors_in(op.arg(index))):
            return None
        args = [_as_labels(tracer, value) if index in data else value for index, value in enumerate(op.args)]
        if op.name == "constant_pad_nd":
            args = args[:2]
        found = op.func(*args, **op.kwargs)
        found = [tensor.round().long() if tensor.dtype == torch.float64 else None for tensor in tensors_in(found)]
        for result in found[:1]:
            _check_rectangular(op, result)
        return found

    return rule


def _has_labels(tracer: Tracer, tensor: torch.Tensor) -> bool:
    return tracer.is_parameter(tensor) or tracer.labels(tensor) is not None


def _as_labels(tracer: Tracer, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        found = tracer.labels(value)
        # Doubles hold every label exactly, and more operations run on them than on integers.
        return torch.zeros(value.shape, dtype=torch.float64, device=value.device) if found is None else found.double()
    return [_as_labels(tracer, item) for item in value] if isinstance(value, (list, tuple)) else value


def fold(op: Op) -> Labels:
    """Overlapping windows are added back: every element keeps the label that all of its contributions share."""
    found = op.tracer.units(op.args[0])
    if found is None:
        return None
    summed = op.func(found.double(), *op.args[1:], **op.kwargs)
    squares = op.func(found.double() ** 2, *op.args[1:], **op.kwargs)
    count = op.func((found != NONE).double(), *op.args[1:], **op.kwargs).clamp(min=1)
    if not torch.allclose(squares * count, summed**2):
        op.pin("windows over different units are added")
        return None
    return (summed / count).round().long()


# -- views -----------------------------------------------------------------------------------------------------------

_RESHAPES = {"view", "_unsafe_view", "_reshape_alias", "unfold", "as_strided"}
_CUTS = {"slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "diagonal"}


def _check_view(op: Op, source: torch.Tensor, outputs: Sequence[torch.Tensor]) -> None:
    """Views need no labels, but they may cut a layer into parts, or need layers to have equal numbers of units."""
    if op.name in _RESHAPES:
        for tensor in outputs:
            found = op.tracer.units(tensor)
            if found is not None:
                _check_parts(op, found)
                _check_rectangular(op, found)
    elif op.name in _CUTS:
        whole = op.tracer.units(source)
        if whole is None:
            return
        before = op.tracer.units_by_layer(whole)
        for tensor in outputs:
            part = op.tracer.units(tensor)
            _check_cut(op, whole, before, {} if part is None else op.tracer.units_by_layer(part))


def _check_cut(op: Op, whole: torch.Tensor, before: dict[str, Ids], after: dict[str, Ids]) -> None:
    layers = op.tracer.recording.layers
    for name, units in after.items():
        if len(units) < len(before[name]) and len(before[name]) > 1:
            ids = torch.from_numpy(layers[name].labels)
            op.tracer.pin(ids, op.name, "some of its units are taken by their position")
    if after and len(after) < len(before):
        op.tracer.recording.count_coupled.append(list(before))
        op.tracer.suspect(whole, op.name)


def _check_parts(op: Op, labels: torch.Tensor) -> None:
    small = squeeze_constant(labels)
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        for line in lines(small.clamp(min=0), dim):
            for name, units in op.tracer.units_by_layer(torch.from_numpy(line)).items():
                layer = op.tracer.recording.layers[name]
                if 1 < len(units) < len(layer.labels):
                    ids = torch.from_numpy(layer.labels)
                    op.tracer.pin(ids, op.name, f"its units are split into parts of {len(units)}")


def _check_rectangular(op: Op, labels: torch.Tensor) -> None:
    """Lines of different layers side by side need equal lengths."""
    small = squeeze_constant(labels.clamp(min=0))
    for dim in range(small.ndim):
        if small.size(dim) < 2:
            continue
        held = [frozenset(op.tracer.units_by_layer(torch.from_numpy(line))) for line in lines(small, dim)]
        if len({names for names in held if names}) > 1:
            op.tracer.recording.count_coupled.append(sorted(frozenset().union(*held)))


# -- elementwise -----------------------------------------------------------------------------------------------------


def pointwise(op: Op) -> Labels:
    """Operands that share a position are coupled; parameters follow the units they are combined with."""
    tracer = op.tracer
    shape = op.out.shape if isinstance(op.out, torch.Tensor) else next(iter(tensors_in(op.out))).shape
    operands = [tensor for tensor in tensors_in((op.args, op.kwargs)) if tensor.ndim <= len(shape)]
    base: Labels = None
    weights, plain = [], []
    for tensor in operands:
        units = tracer.units(tensor)
        if units is not None:
            base = units.clamp(min=0).expand(shape) if base is None else tracer.couple(base, units)
        elif tracer.is_weight(tensor):
            weights.append(tensor)
        elif tensor.numel() > 1:
            plain.append(tensor)
    if base is None:
        return None if plain or not weights else _combine_weights(op, weights, shape)
    for weight in weights:
        follow(op, base, weight)
    for tensor in plain:
        offset = base.ndim - tensor.ndim
        if any(tensor.size(d - offset) > 1 and varies(base, d) for d in range(offset, base.ndim)):
            tracer.suspect(base, op.name)
    return base


def follow(op: Op, base: torch.Tensor, weight: torch.Tensor) -> None:
    """Couple a parameter's axes with the units that vary along them."""
    offset = base.ndim - weight.ndim
    for dim in range(max(offset, 0), base.ndim):
        if weight.size(dim - offset) < 2 or not (varies(base, dim)):
            continue
        found = op.tracer.weight_lines(weight, dim - offset, "follows")
        if not found:
            op.tracer.pin(base, op.name, "combined with a weight that is computed in a way that was not understood")
        for _, line in found:
            for units in lines(base, dim):
                op.tracer.couple_lines(line, units)


def _combine_weights(op: Op, weights: Sequence[torch.Tensor], shape: torch.Size) -> Labels:
    """A weight computed from parameters keeps the identity of the largest; the others' axes follow its axes."""
    main, *others = sorted(weights, key=lambda weight: -weight.numel())
    if main.numel() < 2:
        return None
    for other in others:
        offset = main.ndim - other.ndim
        for dim in range(max(offset, 0), main.ndim):
            if other.size(dim - offset) > 1:
                for _, line in op.tracer.weight_lines(main, dim, "follows"):
                    for _, other_line in op.tracer.weight_lines(other, dim - offset, "follows"):
                        op.tracer.couple_lines(line, other_line)
    found = op.tracer.labels(main)
    return None if found is None else found.expand(shape)


def copy(op: Op) -> Labels:
    """`copy_(target, source)`: the labels of the source."""
    found = op.tracer.labels(op.args[1])
    return None if found is None else found.expand(op.out.shape)


def like(op: Op) -> Labels:
    """`zeros_like(x)`: filled anew, with a place for every unit of x."""
    return op.tracer.units(op.args[0])


def nothing(op: Op) -> None:
    """A result without units."""


def unknown(op: Op) -> None:
    """No rule: the units are left alone."""
    op.pin(f"'{op.name}' is not an operation that reprune can follow")


# -- reductions ------------------------------------------------------------------------------------------------------


def over_dims(dims_at: int = 1, *, sums: bool = False, reduces: bool = True) -> Rule:
    """Rule of an operation along dimensions (`sum`, `softmax`, `max`, `cumsum`, `sort`…)."""

    def rule(op: Op) -> Labels:
        found = op.tracer.units(op.args[0])
        if found is None:
            return None
        found = found.clamp(min=0)
        dims = _dims(op, dims_at, found.ndim)
        for dim in dims:
            if not varies(found, dim):
                continue
            if _couple_along(op, found, dim):
                continue
            if not sums:
                op.pin(f"'{op.name}' runs over its units")
            else:
                op.tracer.recording.direct.append(_ids(found))
            return None
        kept = found.amax(dims, keepdim=True) if dims else found
        out = op.out if isinstance(op.out, torch.Tensor) else op.out[0]
        if not reduces or out.ndim == found.ndim:
            return kept.expand(out.shape)
        return found.amax(dims) if dims else found

    return rule


def _dims(op: Op, at: int, ndim: int) -> list[int]:
    value = op.arg(at, "dim")
    if isinstance(value, bool) or value is None or value == []:
        return list(range(ndim))
    if isinstance(value, torch.Tensor):
        return list(range(ndim))
    return sorted({dim % ndim for dim in ([value] if isinstance(value, int) else value)}) if ndim else []


def _couple_along(op: Op, found: torch.Tensor, dim: int) -> bool:
    """Couple the labels of each line if they belong to different layers (directions that are added, say)."""
    couplings = op.tracer.recording.couplings
    held = lines(found, dim)
    for line in held:
        names = line[(line != NONE) & (line < TAG)]
        if len(np.unique(couplings.space(np.unique(names)))) < len(np.unique(names)):
            return False
    for line in held:
        names = line[line != NONE]
        couplings.union(np.full(len(names), names[0]), names)
    return True


def _ids(labels: torch.Tensor) -> Ids:
    found = squeeze_constant(labels).unique().cpu().numpy()
    return np.asarray(found[(found > NONE) & (found < TAG)])


# -- products --------------------------------------------------------------------------------------------------------


@dataclass
class _Side:
    """One operand of a matrix product: its lines along the contracted axis, and its free axis."""

    tensor: torch.Tensor
    weight: bool
    contracted: list[Ids]
    axes: list[tuple[str, int]]
    free: Labels


def _side(tracer: Tracer, tensor: torch.Tensor, contracted: int, free: int) -> _Side:
    units = tracer.units(tensor)
    if units is not None:
        units = units.clamp(min=0)
        over_units = varies(units, contracted) or (tensor.size(contracted) == 1 and not varies(units, free))
        if over_units:
            return _Side(tensor, False, list(lines(units, contracted)), [], None)
        along = units.amax(contracted, keepdim=True).transpose(contracted, free).amax(free, keepdim=True)
        return _Side(
            tensor, False, [], [], units.amax(contracted) if varies(units, free) or bool(along.any()) else None
        )
    if tracer.is_weight(tensor):
        found = tracer.weight_lines(tensor, contracted, "reads")
        return _Side(tensor, True, [line for _, line in found], [axis for axis, _ in found], None)
    return _Side(tensor, False, [], [], None)


def contract(op: Op, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> Labels:
    """out[…, i, j] = Σ_k a[…, i, k] · b[…, k, j]: whoever lies along k is coupled, a weight there is a consumer."""
    tracer = op.tracer
    left, right = _side(tracer, a, -1, -2), _side(tracer, b, -2, -1)
    for one in left.contracted:
        for two in right.contracted:
            tracer.couple_lines(one, two)
    _record_reading(op, left, right)
    _record_reading(op, right, left)
    own = _record_consumer(op, right, -1, bias) if right.weight else _record_consumer(op, left, -2, bias)
    shape = op.out.shape
    result: Labels = None
    if left.free is not None and right.free is not None and not left.weight and not right.weight:
        op.pin("an outer product of two sets of units")
    elif right.free is not None:
        result = right.free.unsqueeze(-2).expand(shape)
    elif left.free is not None:
        result = left.free.unsqueeze(-1).expand(shape)
    elif own is not None:
        line = torch.from_numpy(own).to(op.out.device)
        result = (line if right.weight else line.unsqueeze(-1)).expand(shape)
    _record_product(op, left, right, result)
    return result


def _record_reading(op: Op, side: _Side, other: _Side) -> None:
    """Units that are contracted with something that is no weight of the model."""
    if side.weight or not side.contracted or (other.weight and other.contracted):
        return
    ids = np.unique(np.concatenate(side.contracted))
    if other.weight:
        op.tracer.pin(torch.from_numpy(ids), op.name, "multiplied by a weight that was computed in an unknown way")
    op.tracer.recording.direct.append(ids[(ids > NONE) & (ids < TAG)])
    if not other.contracted:
        op.tracer.suspect(torch.from_numpy(ids), op.name)


def _record_consumer(op: Op, side: _Side, free: int, bias: torch.Tensor | None) -> Ids | None:
    """Note a weight as consumer; returns the labels of what it produces."""
    if not side.weight:
        return None
    tracer = op.tracer
    produced = tracer.weight_lines(side.tensor, free, "own")
    name = tracer.owner(bias) if bias is not None else None
    for axis in side.axes:
        tracer.recording.biases.setdefault(axis, name)
        tracer.recording.uses[axis[0]] = tracer.recording.uses.get(axis[0], 0) + 1
    if not produced:
        return None
    own = produced[0][1].copy()
    for _, line in produced[1:]:
        own = np.where(own == NONE, line, own)
    if bias is not None and bias.ndim == 1:
        for _, line in tracer.weight_lines(bias, 0, "own"):
            tracer.couple_lines(line, own)
    return own


def _record_product(op: Op, left: _Side, right: _Side, result: Labels) -> None:
    rows, columns, inner = op.out.shape[-2], op.out.shape[-1], left.tensor.shape[-1]

    def line(found: list[Ids] | Ids, size: int) -> Ids:
        return found[0] if len(found) else np.zeros(size, dtype=np.int64)

    along = line([*left.contracted, *right.contracted], inner)
    out_rows = out_columns = np.zeros((0, 0), dtype=np.int64)
    if result is not None and varies(result, -1):
        out_columns = lines(result, -1)
    elif result is not None and varies(result, -2):
        out_rows = lines(result, -2)
    batch = op.out.numel() // max(rows * columns, 1)
    axes = (line(out_rows, rows), line(out_columns, columns), along)
    op.tracer.recording.products.append(Product(batch, axes))


def matmul(at: int, bias_at: int | None = None) -> Rule:
    """Rule of `mm`, `bmm` (operands at `at`) and `addmm`, `baddbmm` (with what is added at `bias_at`)."""

    def rule(op: Op) -> Labels:
        bias = op.args[bias_at] if bias_at is not None else None
        result = contract(op, op.args[at], op.args[at + 1], bias)
        units = op.tracer.units(bias) if bias is not None else None
        if units is None:
            return result
        return units.expand(op.out.shape) if result is None else op.tracer.couple(result, units)

    return rule


def matvec(op: Op) -> Labels:
    """`mv(a, v)` and `addmv`: a product with a matrix of one column."""
    a, v = op.args[-2:]
    wide = Op(op.tracer, op.name, op.func, op.args, op.kwargs, op.out.unsqueeze(-1))
    found = contract(wide, a, v.unsqueeze(-1))
    return None if found is None else found.squeeze(-1)


def dot(op: Op) -> Labels:
    """`dot(a, b)`: a product of one row with one column."""
    a, b = op.args[:2]
    wide = Op(op.tracer, op.name, op.func, op.args, op.kwargs, op.out.view(1, 1))
    contract(wide, a.unsqueeze(0), b.unsqueeze(-1))
    return None


def convolution(op: Op) -> Labels:
    """Convolutions contract channels; sliding over units mixes neighbours and pins them."""
    data, weight, bias = op.args[:3]
    transposed, groups = op.args[6], op.args[8]
    tracer = op.tracer
    units = tracer.units(data)
    channels_in, channels_out = (0, 1) if transposed else (1, 0)
    if units is not None:
        units = units.clamp(min=0)
        if any(varies(units, dim) for dim in range(data.ndim) if dim != 1 and dim != 0):
            op.pin("a convolution slides over its units")
            return None
    depthwise = groups == data.shape[1] == weight.shape[0] and groups > 1
    if groups > 1 and not depthwise:
        op.pin("a convolution in groups")
        return None
    reading = tracer.weight_lines(weight, 0 if depthwise else channels_in, "follows" if depthwise else "reads")
    along = lines(units, 1) if units is not None else np.zeros((0, 0), dtype=np.int64)
    for axis, line in reading:
        for one in along:
            tracer.couple_lines(line, one)
        if not depthwise:
            tracer.recording.biases.setdefault(axis, tracer.owner(bias) if bias is not None else None)
    produced = reading if depthwise else tracer.weight_lines(weight, channels_out, "own")
    if not produced:
        return None
    own = produced[0][1]
    if bias is not None:
        for _, line in tracer.weight_lines(bias, 0, "own"):
            tracer.couple_lines(line, own)
    taps = weight[0, 0].numel() * op.out.numel() // max(op.out.shape[1], 1)
    inner = reading[0][1] if reading and not depthwise else np.zeros(1, dtype=np.int64)
    tracer.recording.products.append(Product(taps, (own, inner)))
    wide = torch.from_numpy(own).to(op.out.device)
    return wide.view(1, -1, *[1] * (op.out.ndim - 2)).expand(op.out.shape)


def embedding(op: Op) -> Labels:
    """A table's columns are the features that come out."""
    weight, indices = op.args[:2]
    found = op.tracer.weight_lines(weight, 1, "own")
    return torch.from_numpy(found[0][1]).to(indices.device).expand(op.out.shape) if found else None


# -- normalisation ---------------------------------------------------------------------------------------------------


def layer_norm(op: Op) -> Labels:
    """Statistics over the units themselves: sliceable, but not exactly."""
    from reprune.torch.location import here

    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    units = units.clamp(min=0)
    dims = len(op.args[1])
    if any(varies(units, units.ndim - 1 - d) for d in range(dims)):
        op.tracer.recording.approximate.append((_ids(units), here("layer_norm")))
    for weight in (value for value in op.args[2:4] if value is not None):
        follow(op, units, weight)
    return units


def batch_norm(op: Op) -> Labels:
    """Per-channel statistics follow the channel's unit (exact in eval mode)."""
    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    units = units.clamp(min=0)
    channels_last = units.movedim(1, -1)
    for weight in (value for value in op.args[1:5] if isinstance(value, torch.Tensor)):
        follow(op, channels_last, weight)
    return units


def group_norm(op: Op) -> Labels:
    """One group is a layer norm over channels, one group per channel is exact; other groupings cut layers apart."""
    from reprune.torch.location import here

    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    units = units.clamp(min=0)
    channels, groups = op.args[4], op.args[6]
    if groups not in (1, channels):
        op.pin(f"group_norm cuts its units into {groups} groups")
        return None
    if groups == 1 and varies(units, 1):
        op.tracer.recording.approximate.append((_ids(units), here("group_norm")))
    for weight in (value for value in op.args[1:3] if value is not None):
        follow(op, units.movedim(1, -1), weight)
    return units


def pooling(spatial: int) -> Rule:
    """Rule of pooling over the last dimensions, which must not hold units."""

    def rule(op: Op) -> Labels:
        units = op.tracer.units(op.args[0])
        if units is None:
            return None
        units = units.clamp(min=0)
        dims = list(range(units.ndim - spatial, units.ndim))
        if any(varies(units, dim) for dim in dims):
            op.pin(f"'{op.name}' runs over its units")
            return None
        out = op.out if isinstance(op.out, torch.Tensor) else op.out[0]
        return units.amax(dims, keepdim=True).expand(out.shape)

    return rule


def real_and_complex(op: Op) -> Labels:
    """Pairs of real numbers seen as complex ones, and back."""
    units = op.tracer.units(op.args[0])
    if units is None:
        return None
    return units.unsqueeze(-1).expand(op.out.shape) if op.name == "view_as_real" else units.amax(-1)


KEEP = {"fill", "zero", "bernoulli_", "normal_", "uniform", "normal", "bernoulli", "exponential"}
POINTWISE = {
    "clone", "contiguous", "_to_copy", "native_dropout", "masked_fill", "where", "lerp", "addcmul", "addcdiv", "nan_to_num",
    "_conj", "hardtanh", "prelu", "threshold", "rrelu_with_noise", "dropout", "_fused_dropout", "lift_fresh_copy", "complex",
    "polar", "angle", "abs", "native_alpha_dropout", "feature_dropout", "resolve_conj", "positive",
}  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "stack", "index", "index_select", "gather", "flip", "roll", "repeat", "constant_pad_nd",
                     "masked_select", "tril", "triu", "im2col", "_pack_padded_sequence", "take", "reflection_pad1d",
                     "reflection_pad2d", "replication_pad1d", "replication_pad2d", "unfold_copy", "expand_copy",
                     "repeat_interleave", "view_copy", "permute_copy", "take_along_dim", "pixel_shuffle"), move(0)),
    **dict.fromkeys(("slice_scatter", "select_scatter", "diagonal_scatter"), move(0, 1)),
    **dict.fromkeys(("index_put", "_index_put_impl"), move(0, 2)),
    **dict.fromkeys(("scatter", "index_copy", "masked_scatter"), move(0, 3)),
    "col2im": fold,
    "copy": copy,
    **dict.fromkeys(("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like",
                     "bernoulli"), like),
    **dict.fromkeys(("zeros", "ones", "empty", "full", "new_zeros", "new_ones", "new_empty", "new_full", "arange",
                     "new_empty_strided", "empty_strided", "rand", "randn", "randint", "randperm", "scalar_tensor",
                     "empty_permuted", "argmax", "argmin", "sym_size", "_assert_async", "_assert_tensor_metadata",
                     "nonzero", "eye", "linspace", "one_hot", "resize", "set"), nothing),
    **dict.fromkeys(("sum", "linalg_vector_norm", "norm"), over_dims(1, sums=True)),
    **dict.fromkeys(("mean", "amax", "amin", "prod", "logsumexp", "max", "min", "median", "mode", "any", "all", "std",
                     "var", "argmax", "argmin", "std_mean", "var_mean", "nanmedian"), over_dims(1)),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "argsort", "logcumsumexp", "cummax",
                     "cummin", "_safe_softmax"), over_dims(1, reduces=False)),
    **dict.fromkeys(("topk", "kthvalue"), over_dims(2, reduces=False)),
    "mm": matmul(0), "bmm": matmul(0), "addmm": matmul(1, 0), "baddbmm": matmul(1, 0),
    "mv": matvec, "addmv": matvec, "dot": dot, "vdot": dot,
    "convolution": convolution, "convolution_overrideable": convolution,
    "embedding": embedding,
    "native_layer_norm": layer_norm,
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
                     "cudnn_batch_norm", "_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    "native_group_norm": group_norm,
    **dict.fromkeys(("max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d",
                     "upsample_nearest2d", "upsample_bilinear2d", "max_pool2d"), pooling(2)),
    **dict.fromkeys(("avg_pool1d", "upsample_nearest1d", "upsample_linear1d", "adaptive_avg_pool1d"), pooling(1)),
    **dict.fromkeys(("view_as_real", "view_as_complex", "_view_as_complex"), real_and_complex),
}  # fmt: skip


# -- sizes from attributes -------------------------------------------------------------------------------------------

_FACTORIES = {"zeros": 0, "ones": 0, "empty": 0, "full": 0, "rand": 0, "randn": 0,
              "new_zeros": 1, "new_ones": 1, "new_empty": 1, "new_full": 1, "new": 1}  # fmt: skip
_SIZED_VIEWS = {"view", "reshape", "expand", "unflatten"}


def record_sizes(tracer: Tracer, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
    """Note attributes that were given to an operation as a size, a boundary or a position."""
    if not any(
        isinstance(value, SizeInt) for value in _integers((args[1:] if name == "__getitem__" else args, kwargs))
    ):
        return
    if name in _FACTORIES and isinstance(out, torch.Tensor):
        for axis, size in enumerate(_sizes(args[_FACTORIES[name] :], kwargs)):
            if isinstance(size, SizeInt) and size.expression is not None and out.ndim:
                # A factory may be given several such sizes; the last one, the feature axis, counts.
                tracer.memory.set(out, torch.full((), tracer.tag(size.expression)).expand(out.shape))
                del axis
    elif name in _SIZED_VIEWS:
        found = tracer.units(out)
        sizes = _sizes(args[1:], kwargs)
        if found is not None and len(sizes) == out.ndim:
            for axis, size in enumerate(sizes):
                _constrain(tracer, size, lines(found.clamp(min=0), axis) if varies(found, axis) else ())
    elif name == "__getitem__":
        _record_slices(tracer, args[0], args[1])
    elif name in ("split", "narrow", "chunk"):
        pieces = [out] if isinstance(out, torch.Tensor) else list(out)
        found = tracer.units(pieces[0])
        dim = kwargs.get("dim", args[2] if name == "split" and len(args) > 2 else args[1] if name == "narrow" else 0)
        for size in _integers((args[1:], kwargs)):
            if found is not None and varies(found, int(dim)):
                _constrain(tracer, size, lines(found.clamp(min=0), int(dim)))


def _record_slices(tracer: Tracer, source: torch.Tensor, index: Any) -> None:
    found = tracer.units(source)
    if found is None:
        return
    index = index if isinstance(index, tuple) else (index,)
    used = sum(1 for item in index if item is not None and item is not Ellipsis)
    dim = 0
    for item in index:
        if item is Ellipsis:
            dim += source.ndim - used
        elif item is not None:
            if isinstance(item, slice) and varies(found, dim):
                for bound in (item.start, item.stop):
                    if isinstance(bound, SizeInt):
                        held = lines(found.clamp(min=0), dim)
                        _constrain(tracer, bound, held[:, :bound] if bound > 0 else held[:, bound:])
            dim += 1


def _constrain(tracer: Tracer, size: Any, held: Iterable[Ids]) -> None:
    if isinstance(size, SizeInt) and size.expression is not None:
        for line in held:
            tracer.constrain(size.expression, line)


def _sizes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    value = kwargs.get("size", kwargs.get("shape", args[0] if args and isinstance(args[0], (list, tuple)) else args))
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _integers(value: Any) -> Iterable[Any]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, slice):
        yield from _integers((value.start, value.stop))
    elif isinstance(value, (list, tuple)) and not isinstance(value, torch.Tensor):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, Mapping):
        yield from _integers(tuple(value.values()))
