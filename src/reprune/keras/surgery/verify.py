"""Never a wrong model: the trace is checked on the user's own example, whatever it missed.

Two checks, both on a plan of random units. *Leak*: with the removed units' columns zero in every consumer found, noise
in the units' own incoming weights must not move the output; if it does, something still reads them. *Rehearsal*: the
pruned model must compute what the masked one does; a size written into the model shows here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from reprune.core.errors import VerificationError
from reprune.core.layers import Pin, Site, Slot, Structure
from reprune.core.plan import Plan
from reprune.core.rehearsal import Blocks, blocks_of, held_back, inexact, random_plan
from reprune.keras.surgery.apply import apply, masked_weights
from reprune.keras.tracing.compiled import Compiled, Runner, loosely, shortened
from reprune.keras.tracing.graph import array, flat_inputs, graph_of
from reprune.keras.tracing.positional import ManyArguments
from reprune.keras.tracing.record import Forward, Trace, captured

Array = Any
STEPS = 32
"""Time steps of the example that are enough to see what a model computes, if it runs on so few."""
_TOLERANCE = {"float64": 1e-8, "float32": 1e-3}


def rehearse(found: Trace, model: Any, exclude: Sequence[str] = ()) -> Structure:
    """The structure, with layers pinned without which the model cannot be rebuilt.

    Raises:
        VerificationError: When something reads units that the trace did not see.
    """
    structure = found.structure()
    pins = held_back(structure, exclude)
    structure = found.structure(pins)
    trial = _Trial(found, model)
    trial.check_rebuilt(structure)
    blocks = blocks_of(structure)
    trial.check_leaks(structure, blocks)
    if trial.problem(structure, blocks) is None:
        return structure
    for block in blocks:
        pin = trial.problem(structure, [block])
        if pin is not None:
            pins.update(dict.fromkeys(block, pin))
    structure = found.structure(pins)
    joint = trial.problem(structure, blocks_of(structure))
    if joint is not None:
        pins.update({name: joint for block in blocks_of(structure) for name in block})
    return found.structure(pins)


def verify(plan: Plan, found: Trace, model: Any, small: Any) -> None:
    """Check a pruned model against the masked one on the traced example.

    Raises:
        VerificationError: When they differ by more than rounding.
    """
    trial = _Trial(found, model)
    if trial.comparable and not inexact(plan) and trial.differs(trial.masked(plan), trial.outputs(small, plan)):
        raise VerificationError(
            f"The pruned model does not compute what the masked one does on the first batch: the layers are "
            f"{', '.join(name for name, gone in plan.removed().items() if gone)}. It is not returned. Exclude layers "
            "(exclude=[…]) to find the one, and report it with the model's code."
        )


class _Trial:
    def __init__(self, found: Trace, model: Any) -> None:
        # A model of Keras's own classes computes what its graph does; any other one is called, as its class allows.
        self._is_graph = type(model).__module__.split(".")[0] == "keras"
        open_time = self._is_graph or all(None in spec.shape[1:2] for spec in found.graph.root.inputs)
        self._taken, self._returned = found.states
        self._model = model
        self._graph, self._run = found.graph, Runner(found.graph, loosely(found.graph))
        self._inputs, outputs = shortened(self._run, found.inputs, 2, STEPS, time_is_open=open_time)
        self._outputs = list(map(array, outputs))
        # A model that is random even when it infers cannot be compared, only rebuilt.
        self.comparable = not self.differs(self._outputs, self._run.arrays(self._inputs, draw=1))

    def outputs(self, model: Any, plan: Plan | None = None) -> list[Array]:
        """Output tensors on the example, from the model's own present state.

        Args:
            model: A copy of the model.
            plan: What it was pruned by: states that it is handed have fewer units.
        """
        inputs = self._inputs if plan is None else cut(self._inputs, self._taken, plan)
        graph = graph_of(model)
        return Runner(graph, loosely(graph)).arrays(inputs)

    def masked(self, plan: Plan, noise: bool = False) -> list[Array]:
        """Output tensors of the masked model, without the removed units in states that it returns.

        Args:
            plan: Which units are removed.
            noise: Whether the removed units' own weights are noise.
        """
        weights = masked_weights(self._graph, plan)
        if noise:
            _add_noise(weights, plan)
        return cut(self._run.arrays(self._inputs, weights), self._returned, plan)

    def _called(self) -> list[Array]:
        """What the model itself answers when it is called."""
        if self._is_graph:
            return self._outputs
        root, given = self._graph.root, [value is not None for value in self._inputs]

        def call(inputs: list[Any]) -> list[Any]:
            parts = iter(inputs)
            packed = keras.tree.pack_sequence_as(root.input, [next(parts) if there else None for there in given])
            found = self._model(*packed) if isinstance(root, ManyArguments) else self._model(packed)
            return list(keras.tree.flatten(found))

        return [array(value) for value in Compiled(call)([value for value in self._inputs if value is not None])]

    def differs(self, first: Sequence[Array], second: Sequence[Array]) -> bool:
        """Whether two lists of outputs differ by more than rounding."""
        return len(first) != len(second) or any(_differs(a, b) for a, b in zip(first, second, strict=True))

    def check_rebuilt(self, structure: Structure) -> None:
        """Raise if the model computes something else than itself when it is rebuilt with all its units."""
        whole = Plan(structure, {name: list(range(layer.units)) for name, layer in structure.layers.items()})
        try:
            rebuilt = self.outputs(apply(self._model, whole))
        except Exception:
            # What cannot be rebuilt pins its layers, with the reason, when it is tried with fewer units.
            return
        if self.comparable and self.differs(self._called(), rebuilt):
            raise VerificationError(
                f"{self._model.name!r} computes something else when it is rebuilt from its layers, with all of its "
                "units: a `call` looks at values, at the types of tensors or at something random, or the get_config() "
                "of a layer leaves out what it was made with. Mend that first."
            )

    def check_leaks(self, structure: Structure, blocks: Blocks) -> None:
        """Raise if units are read by something that the trace did not find."""
        if not blocks or not self.comparable or not self._leaks(structure, blocks):
            return
        guilty = [name for block in blocks if self._leaks(structure, [block]) for name in block]
        raise VerificationError(
            f"Something in {self._model.name!r} reads the units of {', '.join(guilty) or 'its layers'} in a way that "
            "was not seen: with every weight that is known to read them set to zero, the output still depends on them. "
            f"Leave them alone with exclude={guilty!r}, or rewrite that part with layers and operations of Keras."
        )

    def _leaks(self, structure: Structure, blocks: Blocks) -> bool:
        exact = [
            block
            for block in blocks
            if not any(structure.layers[name].direct or structure.layers[name].approximate for name in block)
        ]
        if not exact:
            return False
        plan = random_plan(structure, exact)
        return self.differs(self.masked(plan), self.masked(plan, noise=True))

    def problem(self, structure: Structure, blocks: Blocks) -> Pin | None:
        """Why these layers cannot lose units, or None."""
        if not blocks:
            return None
        plan = random_plan(structure, blocks)
        try:
            outputs = self.outputs(apply(self._model, plan), plan)
        except Exception as error:
            # Rebuilding calls the user's layers, which may raise anything when a size does not fit.
            text = str(error).strip().split("\n")[0]
            return Pin(Site(type(error).__name__, ""), f"the model cannot be rebuilt with fewer units: {text}")
        if not self.comparable or inexact(plan):
            return None
        if not self.differs(self.masked(plan), outputs):
            return None
        return Pin(Site("rebuild", ""), "with fewer units the model computes something else: a size is written into it")


def cut(values: Sequence[Any], axes: Sequence[Slot | None], plan: Plan) -> list[Any]:
    """Tensors without the removed units, along the axis of each that knows them."""
    removed = plan.removed()
    return [
        value if slot is None else np.delete(array(value), slot.positions(removed), axis=slot.axis)
        for value, slot in zip(values, axes, strict=True)
    ]


def narrowed(found: Trace, model: Any, plan: Plan, forward: Forward | None) -> Forward:
    """How the plan's model is called: with the entries of the kept units of the states that the dense one takes."""

    def call(small: Any, batch: Any) -> Any:
        given = cut(flat_inputs(found.graph.root, captured(model, batch, forward)), taken, plan)
        return small(keras.tree.pack_sequence_as(found.graph.root.input, given))

    taken, _ = found.states
    return call


def _add_noise(weights: dict[str, Array], plan: Plan) -> None:
    removed = plan.removed()
    rng = np.random.default_rng(1)
    for slot in plan.structure.slots:
        gone = slot.positions(removed)
        if slot.role == "own" and len(gone):
            part = np.moveaxis(weights[slot.tensor], slot.axis, 0)
            part[gone] += rng.standard_normal(part[gone].shape).astype(part.dtype)
    # Units that read each other through noise would grow without bound, from step to step.
    for slot in plan.structure.slots:
        if slot.role == "reads":
            np.moveaxis(weights[slot.tensor], slot.axis, 0)[slot.positions(removed)] = 0


def _differs(a: Array, b: Array) -> bool:
    if a.shape != b.shape:
        return True
    if not np.issubdtype(a.dtype, np.floating):
        return not np.array_equal(a, b)
    if a.size == 0:
        return False
    limit = _TOLERANCE.get(str(a.dtype), 5e-2)
    a, b = np.nan_to_num(a).astype("float64"), np.nan_to_num(b).astype("float64")
    return bool(np.abs(a - b).max() > limit * (1e-3 + np.abs(a).max()))
