"""EinsumDense: a product with a weight, whose axes are named by letters."""

from __future__ import annotations

from math import prod
from string import ascii_letters
from typing import Any

from reprune.core.layers import Role
from reprune.keras.tracing.labels import NONE, Ids
from reprune.keras.tracing.rules.functions import is_elementwise, keeps_zero
from reprune.keras.tracing.tracer import Call, Traced, shadow


def letters_of(equation: str, rank: int) -> tuple[str, str, str]:
    """Letters of the axes of an input of this rank, of the weight and of the output.

    Example:
        >>> letters_of("...x,xy->...y", 3)
        ('abx', 'xy', 'aby')
    """
    inputs, _, made = equation.replace(" ", "").partition("->")
    read, _, held = inputs.partition(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    rest = "".join(free[: rank - len(read.replace("...", ""))])
    return read.replace("...", rest), held, made.replace("...", rest)


def einsum_dense(call: Call) -> Any:
    """EinsumDense: reads the axes that are summed over; what it makes is followed along the longest axis of its own."""
    layer, x = call.operation, call.x
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return call.pinned("the layer is quantised or holds a low-rank update: undo that first")
    read, held, made = letters_of(layer.equation, len(x.shape))
    letter = "" if x.shadow is None else read[x.shadow.axis]
    if letter and letter not in held + made:
        return call.pinned("the product sums over its units without a weight")
    if not is_elementwise(layer.activation):
        return call.pinned("its activation mixes the units")
    value = call.values()
    zero = keeps_zero(layer.activation)
    own = _made(call, layer, read, held, made)
    through = letter if letter not in held else ""
    rows = prod(size for size, name in zip(x.shape, read, strict=True) if name not in held + through)
    sizes = dict(zip(held, layer.kernel.shape, strict=True))
    axes = dict(own)
    for name in held:
        if name in made and name == letter:
            axes[name] = x.along(read.index(name))
            call.tracer.slot(layer.kernel, held.index(name), axes[name], "follows", call.site)
        elif name not in made:
            axes[name] = x.along(read.index(name))
            _read(call, layer, held, made, name, axes[name])
    spread = [x.along(read.index(through))] if through else []
    call.tracer.product(rows, *spread, *(axes.get(name, int(sizes[name])) for name in held))
    if letter and letter in made:
        for labels in own.values():
            call.tracer.pin_labels(labels, call.site, "units pass through on another axis, and are followed instead")
        assert x.shadow is not None
        _laid_out(call, layer, made, letter, x.shadow.labels, "follows")
        silent = x.shadow.silent and layer.bias is None and zero
        return Traced(value, shadow(made.index(letter), x.shadow.labels, silent))
    for name, labels in own.items():
        return Traced(value, shadow(made.index(name), labels, zero))
    return Traced(value)


def _made(call: Call, layer: Any, read: str, held: str, made: str) -> dict[str, Ids]:
    """Labels of what the layer makes, by the letter of their axis: the longest one that only it and its weight have."""
    names = [name for name in held if name in made and name not in read]
    if not names:
        return {}
    name = max(names, key=lambda name: int(layer.kernel.shape[held.index(name)]))
    labels = call.tracer.begin(call, "linear", layer.kernel, held.index(name))
    _laid_out(call, layer, made, name, labels, "own")
    return {name: labels}


def _laid_out(call: Call, layer: Any, made: str, name: str, labels: Ids, role: Role) -> None:
    """Record where the layer's options and its bias know units on an axis of what it makes."""
    place = made.index(name) - len(made)
    call.tracer.size(call, ("output_shape", len(layer.partial_output_shape) + place), labels)
    if layer.bias is not None and -place <= len(layer.bias.shape) and layer.bias.shape[place] == len(labels):
        call.tracer.slot(layer.bias, place, labels, role, call.site)


def _read(call: Call, layer: Any, held: str, made: str, name: str, labels: Ids) -> None:
    """Record a consumer."""
    axis = held.index(name)
    call.tracer.slot(layer.kernel, axis, labels, "reads", call.site)
    if (labels > NONE).any():
        summed = [other not in made for other in held]
        first = summed.index(False) if False in summed else len(held)
        # A bias takes up what is the same for all rows: one with a number for each output, laid out like the weight.
        one_each = layer.bias is not None and tuple(layer.bias.shape) == tuple(layer.kernel.shape[first:])
        bias = call.tracer.name(layer.bias) if one_each and not any(summed[first:]) else None
        call.tracer.records.consumers[call.tracer.name(layer.kernel), axis] = bias
