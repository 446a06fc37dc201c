"""One trace and one pass over the calibration batches, any number of plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from reprune.core.budget import Budget
from reprune.core.cost import Measure
from reprune.core.decide import decide, left_out
from reprune.core.errors import StatisticsError
from reprune.core.evidence import Evidence
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.core.readings import Reading, readings
from reprune.keras.apply import apply
from reprune.keras.cloning import named_cells
from reprune.keras.graph import ModelGraph, array, check_keras, flat_inputs
from reprune.keras.importance import output_importance
from reprune.keras.observe import observe
from reprune.keras.result import Result
from reprune.keras.trace import Forward, Trace, captured, record
from reprune.keras.verify import held, rehearse, verify

GATHERED = ("statistics", "readings")
# What some methods look at and this adapter does not gather.
ABSENT = ("labels", "loss")


class Calibration:
    """What planning needs to know of a model; made by `calibrate`.

    The model must not change in between: plans are made from the weights and responses at the time of calibration.

    Attributes:
        structure: What can be pruned, what is pinned and why.
        gathered: Which kinds of evidence there are: `statistics`, `readings`.
    """

    def __init__(self, model: Any, found: Trace, evidence: Evidence, gathered: Iterable[str], check: bool) -> None:
        self.structure: Structure = evidence.structure
        self.gathered = frozenset(gathered)
        self._model, self._found, self._evidence, self._check = model, found, evidence, check

    def plan(
        self,
        ratio: float | None = 0.5,
        of: Measure = "units",
        method: str | Method = "reconstruct",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        counts: Mapping[str, float] | None = None,
        min_units: int = 1,
        round_to: int = 1,
        seed: int = 0,
    ) -> Plan:
        """Decide which units go. See `reprune.keras.plan` for the arguments.

        Raises:
            StatisticsError: When the method needs what was not gathered.
            BudgetError: When the budget cannot be met.
        """
        if needs(method) - self.gathered:
            raise StatisticsError(f"method={method!r} needs what this calibration lacks: name it in methods=[…].")
        return decide(
            self._evidence,
            Budget(ratio, of, min_units, round_to),
            method,
            exclude=left_out(self.structure, include, exclude),
            counts=counts,
            seed=seed,
        )

    def prune(self, ratio: float | None = 0.5, **options: Any) -> Result:
        """Decide which units go and return a smaller model. See `plan` for the options.

        Raises:
            VerificationError: When the smaller model does not compute what the masked one does.
        """
        decided = self.plan(ratio, **options)
        small = apply(self._model, decided)
        if self._check:
            verify(decided, self._found, self._model, small)
        return Result(small, decided)


def needs(method: str | Method) -> set[str]:
    """Kinds of evidence that a method looks at.

    Raises:
        StatisticsError: When it looks at what cannot be gathered from Keras models.
    """
    resolved = get_method(method)
    absent = [kind for kind in ABSENT if getattr(resolved, f"needs_{kind}")]
    if absent:
        raise StatisticsError(
            f"method={method!r} looks at {' and '.join(absent)}, which reprune.keras does not gather: use another "
            "method, such as 'reconstruct' or 'iss-gm'."
        )
    return {kind for kind in GATHERED if getattr(resolved, f"needs_{kind}")}


def calibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    methods: Sequence[str | Method] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    uniform: bool = False,
    forward: Forward | None = None,
    verify: bool = True,
) -> Calibration:
    """Trace the model and observe it on calibration batches once, for a whole grid of ratios and methods.

    Args:
        model: The model; it is left as it was.
        batches: Calibration inputs as the model takes them, iterated once.
        methods: Gather only what these look at; everything by default.
        include: Globs of layers; all others are left alone.
        exclude: Globs of layers to leave alone.
        uniform: Keep equal sizes in both directions of every `Bidirectional`, so that it stays plain.
        forward: Replaces `model(batch)`: a function of model and batch.
        verify: Check the trace on the first batch, and every pruned model.

    Example:
        >>> calibration = calibrate(model, batches)                                # doctest: +SKIP
        >>> plans = [calibration.plan(ratio) for ratio in (0.25, 0.5, 0.75)]       # doctest: +SKIP

    Raises:
        UnsupportedModelError: When there is no recurrent layer.
        VerificationError: When something reads units in a way that the trace did not see.
    """
    check_keras(model)
    wanted = set(GATHERED) if methods is None else {kind for method in methods for kind in needs(method)}
    example, batches = first_batch(batches)
    found = record(model, example, forward, uniform=uniform)
    exclude = left_out(found.structure(), include, exclude)
    structure = rehearse(found, model, exclude) if verify else found.structure(held(found.structure(), exclude))
    arrays = weight_arrays(found.graph)
    statistics, read = None, list[Reading]()
    if "statistics" in wanted:
        statistics = observe(model, structure, batches, forward, readings="readings" in wanted)
    if statistics is not None and "readings" in wanted:
        inputs = flat_inputs(found.graph.root, captured(model, example, forward))
        weights = output_importance(found.graph, structure.consumers, inputs)
        read = readings(structure, arrays, statistics, statistics.readings, weights)
    return Calibration(model, found, Evidence(structure, arrays, statistics, read), wanted, verify)


def weight_arrays(graph: ModelGraph) -> dict[str, Any]:
    """The weights, in a precision that linear algebra accepts.

    Biases are no part of what criteria compare. Those of a GRU that resets after the product are a matrix of two, which
    would be taken for weights: they are zeros here.
    """
    arrays = {name: array(weight) for name, weight in graph.weights().items()}
    for cell, _ in named_cells(graph):
        if len(getattr(getattr(cell, "bias", None), "shape", ())) == 2:
            arrays.update({name: 0 * arrays[name] for name, weight in graph.weights().items() if weight is cell.bias})
    return {name: value.astype("float32") if value.dtype.itemsize < 4 else value for name, value in arrays.items()}


def first_batch(batches: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and an iterator over all of them that holds no more than it.

    Raises:
        StatisticsError: When it is a tensor rather than an iterable of inputs, or empty.
    """
    if isinstance(batches, (Mapping, np.ndarray)) or keras.ops.is_tensor(batches):
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
