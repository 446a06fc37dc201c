"""Fitting a plan to a model whose layers have other names.

Keras numbers the names that it makes up (`lstm`, `lstm_1`, …) anew in every process, so the same code builds a model of
the same weights under other names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from reprune.core.errors import PlanError
from reprune.core.layers import WIDTHS
from reprune.core.plan import Plan
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.tracing.graph import ModelGraph
from reprune.keras.tracing.rules.cells import cell_name

# Fields of a plan's JSON that hold words, not names.
_WORDS = ("format", "method", "of", "cell", "role", "operation", "location", "reason", "runtime", "kind")


def fitted(plan: Plan, graph: ModelGraph) -> Plan:
    """The plan with the names of this model; weights are matched by their order when names differ.

    Raises:
        PlanError: When the plan does not belong to the model.
    """
    found = {name: tuple(int(size) for size in weight.shape) for name, weight in graph.weights().items()}
    planned = {name: tuple(shape) for name, shape in plan.structure.shapes.items()}
    if found == planned:
        return plan
    if list(found.values()) != list(planned.values()):
        raise PlanError(f"The plan belongs to another model: {_difference(planned, found)}")
    tensors = dict(zip(planned, found, strict=True))
    names: dict[str, str] = {}
    cells = {name: cell for cell, name in named_cells(graph)}
    owners = {weight: name for name, cell in cells.items() for weight in _names(graph, cell)}
    for name, layer in plan.structure.layers.items():
        if layer.cell in WIDTHS:
            continue
        slot = next(iter(plan.structure.slots_of(name, "own")), None)
        new = None if slot is None else owners.get(tensors[slot.tensor])
        cell = cell_name(layer.whole)
        if new is None and cell not in cells:
            raise PlanError(f"The plan belongs to another model: it has no recurrent layer {name!r}.")
        names.update({old: (new or cell) + old[len(cell) :] for old in (cell, layer.whole, name)})
    for name, layer in plan.structure.layers.items():
        if layer.cell in WIDTHS:
            path, _, kind = name.rpartition(":")
            names[name] = f"{_owner(path, tensors, graph)}:{kind}"
    for size in (size for size in plan.structure.sizes if size.owner not in names):
        names[size.owner] = _owner(size.owner, tensors, graph)
    return Plan.from_json(json.dumps(_renamed(json.loads(plan.to_json()), {**tensors, **names})))


def _names(graph: ModelGraph, cell: Any) -> list[str]:
    own = {id(weight) for weight in cell.weights}
    return [name for name, weight in graph.weights().items() if id(weight) in own]


def _owner(owner: str, tensors: Mapping[str, str], graph: ModelGraph) -> str:
    """The path of a layer in this model: told by its weights, or by its name where it has none."""
    for old, new in tensors.items():
        if old.startswith(f"{owner}/"):
            return "/".join(new.split("/")[: owner.count("/") + 1])
    if owner in graph.paths.values():
        return owner
    alike = [path for path in dict.fromkeys(graph.paths.values()) if _unnumbered(path) == _unnumbered(owner)]
    if len(alike) != 1:
        raise PlanError(
            f"The plan has a layer {owner!r} without weights, which {len(alike)} layers here could be: give such "
            "layers names of their own (name=…) before planning."
        )
    return alike[0]


def _unnumbered(path: str) -> str:
    return re.sub(r"_\d+$", "", path)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): part if key in _WORDS else _renamed(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [_renamed(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def _difference(planned: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in planned.items():
        if name not in found:
            return f"it has no weight {name!r}."
        if found[name] != shape:
            return (
                f"{name!r} has shape {found[name]}, the plan was made for {shape}. Apply it to the dense model that it "
                "was made from."
            )
    return f"the plan does not know {sorted(set(found) - set(planned))}."
