"""The numbers of a plan that every presentation shows: each layer and the whole model, before and after."""

from __future__ import annotations

from dataclasses import dataclass

from reprune.core.budget.cost import CostModel
from reprune.core.budget.latency import LatencyTable
from reprune.core.layers import Counts, Layer, Structure
from reprune.core.plan import Plan


@dataclass(frozen=True)
class Change:
    """A quantity before and after pruning."""

    before: float
    after: float

    @property
    def left(self) -> float:
        """Fraction that is left; 1 where there was nothing to begin with."""
        return self.after / self.before if self.before else 1.0

    @property
    def removed(self) -> float:
        """Fraction that was removed."""
        return 1.0 - self.left


@dataclass(frozen=True)
class Group:
    """Layers that lose units together.

    Attributes:
        label: A letter that marks its layers.
        layers: Their names.
        same_units: Whether they lose the same units, or only equally many.
    """

    label: str
    layers: tuple[str, ...]
    same_units: bool

    def __str__(self) -> str:
        what = "lose the same units" if self.same_units else "lose equally many units"
        return f"{', '.join(self.layers)} {what}"


@dataclass(frozen=True)
class LayerChange:
    """What happens to one layer; `groups` are the labels of its groups."""

    layer: Layer
    units: Change
    parameters: Change
    macs: Change
    groups: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the layer."""
        return self.layer.name


@dataclass(frozen=True)
class Overview:
    """A plan in numbers.

    Attributes:
        layers: Every layer, in the model's order.
        units: All hidden units of all layers.
        parameters: Parameters of the whole model.
        macs: Multiply-accumulates of the whole model per time step.
        groups: Layers that lose units together.
        achieved: Fraction removed of what the plan's ratio speaks of.
        latency: What the plan's measured times predict, in a sentence; empty without such times.
    """

    layers: tuple[LayerChange, ...]
    units: Change
    parameters: Change
    macs: Change
    groups: tuple[Group, ...]
    achieved: float
    latency: str


def overview(plan: Plan) -> Overview:
    """Put a plan in numbers with the cost model of its structure."""
    structure, cost = plan.structure, CostModel(plan.structure, plan.latency)
    before, after = structure.counts(), plan.counts()
    groups = coupled_groups(structure)
    layers = tuple(
        LayerChange(
            layer=layer,
            units=Change(before[name], after[name]),
            parameters=Change(cost.layer_parameters(name, before), cost.layer_parameters(name, after)),
            macs=Change(cost.layer_macs(name, before), cost.layer_macs(name, after)),
            groups=tuple(group.label for group in groups if name in group.layers),
        )
        for name, layer in structure.layers.items()
    )
    return Overview(
        layers=layers,
        units=Change(sum(before.values()), sum(after.values())),
        parameters=Change(cost("parameters", before), cost("parameters", after)),
        macs=Change(cost("macs", before), cost("macs", after)),
        groups=groups,
        achieved=Change(cost(plan.of, before), cost(plan.of, after)).removed,
        latency="" if plan.latency is None else _prediction(plan.latency, before, after),
    )


def _prediction(table: LatencyTable, before: Counts, after: Counts) -> str:
    shapes = ", ".join("×".join(map(str, shape)) for shape in table.shapes)
    return (
        f"{table(before):.3g} → {table(after):.3g} ms predicted for one call on {shapes}, from times of single layers "
        f"in {table.runtime} with {table.threads} thread(s)."
    )


def coupled_groups(structure: Structure) -> tuple[Group, ...]:
    """Groups of two or more layers, labelled A, B, …: those that lose the same units first."""
    together = [(bond, True) for bond in structure.index_coupled] + [(bond, False) for bond in structure.count_coupled]
    real = [(bond, same) for bond, same in together if len(bond) > 1]
    return tuple(Group(_letters(index), tuple(bond), same) for index, (bond, same) in enumerate(real))


def _letters(index: int) -> str:
    letter = chr(ord("A") + index % 26)
    return letter if index < 26 else _letters(index // 26 - 1) + letter
