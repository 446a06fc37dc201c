"""The verbs for Keras models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from reprune.core.budget import Budget
from reprune.core.cost import Measure
from reprune.core.decide import decide
from reprune.core.errors import StatisticsError, UnsupportedModelError
from reprune.core.evidence import Evidence
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.core.readings import readings
from reprune.keras.apply import apply, mask
from reprune.keras.graph import ModelGraph, array, check_keras
from reprune.keras.observe import observe
from reprune.keras.ragged import RaggedBidirectional
from reprune.keras.result import Result, load
from reprune.keras.trace import Forward, Trace, record, trace
from reprune.keras.training import PruningCallback
from reprune.keras.verify import rehearse, verify
from reprune.report import render_structure

__all__ = [
    "Inspection",
    "PruningCallback",
    "RaggedBidirectional",
    "Result",
    "apply",
    "inspect",
    "load",
    "mask",
    "observe",
    "plan",
    "prune",
    "trace",
]


class Inspection:
    """What can be pruned in a model, and what is left alone and why; `print` it.

    Attributes:
        structure: Layers, groups, consumers and pins.
    """

    def __init__(self, structure: Structure) -> None:
        self.structure = structure

    @property
    def layers(self) -> dict[str, Any]:
        """The layers found, by name; a layer's `pin` says why it must stay, or is None."""
        return dict(self.structure.layers)

    @property
    def prunable(self) -> tuple[str, ...]:
        """Names of the layers that can be pruned."""
        return self.structure.prunable

    @property
    def pinned(self) -> dict[str, Any]:
        """Names of the layers that must stay, with the reason."""
        return {name: layer.pin for name, layer in self.structure.layers.items() if layer.pin is not None}

    def __str__(self) -> str:
        return render_structure(self.structure)


def inspect(
    model: Any, batches: Iterable[Any], *, forward: Forward | None = None, strict: bool = False, verify: bool = True
) -> Inspection:
    """What can be pruned, what is pinned and why.

    Args:
        model: The model; it is left as it was.
        batches: Inputs as the model takes them; only the first is used.
        forward: Replaces `model(batch)`: a function of model and batch.
        strict: Raise instead of pinning.
        verify: Rehearse the removal of units on the example.

    Raises:
        UnsupportedModelError: When there is no recurrent layer, or, if `strict`, when a layer is pinned.
        VerificationError: When something reads units that the trace did not see.
    """
    check_keras(model)
    example, _ = _first(batches)
    found = record(model, example, forward)
    info = Inspection(rehearse(found, model) if verify else found.structure())
    if strict and info.pinned:
        pins = "".join(f"\n  {name}: {pin}" for name, pin in info.pinned.items())
        raise UnsupportedModelError(f"Some layers cannot be pruned (strict=True):{pins}")
    return info


def plan(
    model: Any,
    batches: Iterable[Any],
    ratio: float = 0.5,
    of: Measure = "units",
    method: str | Method = "iss-gm",
    *,
    exclude: Sequence[str] = (),
    min_units: int = 1,
    round_to: int = 1,
    uniform: bool = False,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Plan:
    """Decide which units go.

    Args:
        model: The model; it is left as it was.
        batches: Calibration inputs: each what the model takes as its one argument, a list or dict for several inputs.
            Iterated once, one batch at a time. Leave labels out, or drop them with `forward`.
        ratio: Fraction to remove.
        of: What the fraction is of: `units`, `parameters` or `macs`.
        method: A preset's name (`core.methods.METHODS`) or a `Method`.
        exclude: Globs of layers to leave alone.
        min_units: Units that every layer keeps at least.
        round_to: Make the units kept a multiple of this.
        uniform: Keep equal sizes in both directions of every `Bidirectional`, so that it stays plain.
        forward: Replaces `model(batch)`: a function of model and batch, such as `lambda model, batch: model(batch[0])`.
        verify: Check the trace on the first batch.
        seed: Seed of methods that are random.

    Raises:
        UnsupportedModelError: When nothing can be pruned; the message says why.
        BudgetError: When the budget cannot be met.
        VerificationError: When something reads units in a way that the trace did not see.
    """
    budget = Budget(ratio, of, min_units, round_to)
    return _plan(model, batches, budget, method, exclude, uniform, forward, verify, seed)[0]


def prune(
    model: Any,
    batches: Iterable[Any],
    ratio: float = 0.5,
    of: Measure = "units",
    method: str | Method = "iss-gm",
    *,
    exclude: Sequence[str] = (),
    min_units: int = 1,
    round_to: int = 1,
    uniform: bool = False,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Result:
    """Decide which units go and return a smaller model: `plan` and `apply` in one. See `plan` for the arguments.

    Example:
        >>> result = prune(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> result.model(x)                                # doctest: +SKIP
    """
    budget = Budget(ratio, of, min_units, round_to)
    decided, found = _plan(model, batches, budget, method, exclude, uniform, forward, verify, seed)
    small = apply(model, decided)
    if verify:
        _verify(decided, found, model, small)
    return Result(small, decided)


_verify = verify


def _plan(
    model: Any,
    batches: Iterable[Any],
    budget: Budget,
    method: str | Method,
    exclude: Sequence[str],
    uniform: bool,
    forward: Forward | None,
    verify: bool,
    seed: int,
) -> tuple[Plan, Trace]:
    check_keras(model)
    method_ = get_method(method)
    example, batches = _first(batches)
    found = record(model, example, forward, uniform=uniform)
    structure = rehearse(found, model, exclude) if verify else found.structure()
    arrays = _arrays(found.graph)
    evidence = Evidence(structure, arrays)
    if method_.needs_statistics:
        statistics = observe(model, structure, batches, forward, readings=method_.needs_readings)
        read = readings(structure, arrays, statistics, statistics.readings) if method_.needs_readings else ()
        evidence = Evidence(structure, arrays, statistics, read)
    return decide(evidence, budget, method, exclude=exclude, seed=seed), found


def _arrays(graph: ModelGraph) -> dict[str, Any]:
    """The weights, in a precision that linear algebra accepts."""
    arrays = {name: array(weight) for name, weight in graph.weights().items()}
    return {name: a.astype("float32") if a.dtype.itemsize < 4 else a for name, a in arrays.items()}


def _first(batches: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and an iterator over all of them that holds no more than it."""
    if isinstance(batches, Mapping) or keras.ops.is_tensor(batches) or isinstance(batches, np.ndarray):
        raise StatisticsError(f"batches is a single {type(batches).__name__}: give an iterable of inputs, such as [x].")
    iterator = iter(batches)
    try:
        example = next(iterator)
    except StopIteration:
        raise StatisticsError("batches is empty: give at least one input, such as [x] or a tf.data.Dataset.") from None

    def all_batches() -> Iterator[Any]:
        yield example
        yield from iterator

    return example, all_batches()
