"""One trace and one pass over the calibration batches, any number of plans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np

from reprune.core.budget import Request
from reprune.core.cost import Measure
from reprune.core.decide import decide, left_out
from reprune.core.errors import StatisticsError
from reprune.core.evidence import Evidence
from reprune.core.latency import LatencyTable
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.passes import several_passes, stretches
from reprune.core.plan import Plan
from reprune.core.readings import Importance, Reading, readings
from reprune.keras.calibration.importance import output_importance
from reprune.keras.calibration.labelled import Labels, Loss, loss_gradients, observe_classes
from reprune.keras.calibration.responses import observe
from reprune.keras.latency import measure_latency
from reprune.keras.result import Result
from reprune.keras.surgery.apply import apply
from reprune.keras.surgery.cloning import named_cells
from reprune.keras.surgery.verify import held, rehearse, verify
from reprune.keras.tracing.graph import ModelGraph, array, check_keras, flat_inputs
from reprune.keras.tracing.record import Forward, Trace, captured, record

NEEDS = {"statistics": "calibration batches", "readings": "calibration batches", "labels": "labels=", "loss": "loss="}


class Calibration:
    """What planning needs to know of a model; made by `calibrate`.

    The model must not change in between: plans are made from the weights and responses at the time of calibration.

    Attributes:
        structure: What can be pruned, what is pinned and why.
        gathered: Which kinds of evidence there are: `statistics`, `readings`, `labels`, `loss`.
    """

    def __init__(
        self,
        model: Any,
        found: Trace,
        evidence: Evidence,
        gathered: Iterable[str],
        example: Any,
        forward: Forward | None,
        check: bool,
    ) -> None:
        self.structure: Structure = evidence.structure
        self.gathered = frozenset(gathered)
        self._model, self._found, self._evidence, self._check = model, found, evidence, check
        self._example, self._forward = example, forward
        self._table: LatencyTable | None = None

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
        round_to: int | Literal["auto"] = 1,
        target_ms: float | None = None,
        latency: LatencyTable | None = None,
        seed: int = 0,
    ) -> Plan:
        """Decide which units go. See `reprune.keras.plan` for the arguments.

        Latency is measured by the first plan that needs it.

        Raises:
            StatisticsError: When the method needs what was not gathered.
            BudgetError: When the budget cannot be met.
        """
        request = Request(ratio, of, min_units, round_to, target_ms)
        missing = needs(get_method(method)) - self.gathered
        if missing:
            given = " and ".join(sorted({NEEDS[kind] for kind in missing}))
            raise StatisticsError(
                f"method={method!r} needs what this calibration lacks: name it in methods=[…], and calibrate with "
                f"{given}."
            )
        table = (latency or self._measured()) if request.needs_table else None
        return decide(
            self._evidence,
            request.budget(table),
            method,
            exclude=left_out(self.structure, include, exclude),
            counts=counts,
            seed=seed,
        )

    def _measured(self) -> LatencyTable:
        if self._table is None:
            example = captured(self._model, self._example, self._forward)
            self._table = measure_latency(self._model, example, structure=self.structure)
        return self._table

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


def needs(method: Method) -> set[str]:
    """Kinds of evidence that a method looks at."""
    return {kind for kind in NEEDS if getattr(method, f"needs_{kind}")}


def calibrate(
    model: Any,
    batches: Iterable[Any],
    *,
    methods: Sequence[str | Method] | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    uniform: bool = False,
    forward: Forward | None = None,
    verify: bool = True,
) -> Calibration:
    """Trace the model and observe it on calibration batches once, for a whole grid of ratios and methods.

    Args:
        model: The model; it is left as it was.
        batches: Calibration inputs as the model takes them. Iterated once, and once more for labels and for a loss.
        methods: Gather only what these look at; everything by default.
        labels: Classes of a batch's sequences, for methods that look at them: a function of a batch that returns class
            numbers (sequences) or ones and zeros (sequences × classes).
        loss: Mean loss, for methods that look at its gradient: a function of model and batch.
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
    wanted = set(NEEDS) if methods is None else {kind for method in methods for kind in needs(get_method(method))}
    wanted -= ({"labels"} if labels is None else set()) | ({"loss"} if loss is None else set())
    example, passes = several_passes(batches, is_tensor, len(wanted - {"readings"}))
    found = record(model, example, forward, uniform=uniform)
    exclude = left_out(found.structure(), include, exclude)
    structure = rehearse(found, model, exclude) if verify else found.structure(held(found.structure(), exclude))
    arrays = weight_arrays(found.graph)
    statistics, read = None, list[Reading]()
    if "readings" in wanted:
        importance = Importance()
        watched = _look(model, found.graph, structure, next(passes), forward, importance)
        statistics = observe(model, structure, watched, forward, readings=True)
        read = readings(structure, arrays, statistics, statistics.readings, importance.mean(), statistics.fed)
    elif "statistics" in wanted:
        statistics = observe(model, structure, next(passes), forward)
    classes = None
    if "labels" in wanted and labels is not None:
        classes = observe_classes(model, structure, next(passes), labels, forward)
    gradients = None
    if "loss" in wanted and loss is not None:
        gradients = loss_gradients(found.graph, model, next(passes), loss)
    evidence = Evidence(structure, arrays, statistics, read, classes=classes, gradients=gradients)
    return Calibration(model, found, evidence, wanted, example, forward, verify)


def _look(
    model: Any,
    graph: ModelGraph,
    structure: Structure,
    batches: Iterable[Any],
    forward: Forward | None,
    importance: Importance,
) -> Iterator[Any]:
    """All batches; on the way, how much the output depends on the consumers."""
    for stretch in stretches(batches):
        inputs = flat_inputs(graph.root, captured(model, stretch.first, forward))
        found = output_importance(graph, structure.consumers, inputs, draws=importance.draws, seed=importance.batches)
        yield from stretch
        importance.add(found, stretch.batches)


def is_tensor(value: Any) -> bool:
    """Whether a value is an array of NumPy or of the backend."""
    return isinstance(value, np.ndarray) or bool(keras.ops.is_tensor(value))


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
