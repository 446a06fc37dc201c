"""Pruning while `fit` trains a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import keras

from reprune.core.budget import Budget
from reprune.core.cost import CostModel, Measure
from reprune.core.decide import as_globs, decide
from reprune.core.errors import RecipeError, StatisticsError
from reprune.core.evidence import Evidence
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.core.readings import readings
from reprune.core.schedule import After, Schedule, Soft, parse_schedule
from reprune.keras.calibration.responses import Probe, gather
from reprune.keras.surgery.apply import apply
from reprune.keras.surgery.cloning import weight_arrays
from reprune.keras.surgery.verify import rehearse
from reprune.keras.tracing.graph import array, graph_of, is_tensor
from reprune.keras.tracing.record import Forward, captured, record
from reprune.verbs.result import Result


class PruningCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Prunes a model while `fit` trains it, or when it has.

    With the schedule `soft:S`, every S optimiser steps units are selected and silenced, and may grow back in between;
    with `after`, units are selected once, at the end. Silencing sets a unit's incoming weights and biases to zero; the
    weights that read it stay, because through them the gradient reaches it again. The optimizer is not touched. The
    trained model keeps its size: the smaller one is in `result` when `fit` returns. The progress bar and the history
    show the share that is selected as `pruned`.

    Args:
        batches: The training data, as given to `fit`: a dataset, or any iterable that can be gone through again. Of
            tuples, the first entry is the input.
        ratio: Fraction to remove.
        of: What the fraction is of.
        method: How units are chosen.
        schedule: `soft:S` or `after`.
        calibration: Number of batches that each selection looks at; they go on where the last one ended.
        exclude: Globs of layers to leave alone.
        min_units: Units that every layer keeps at least.
        round_to: Units kept are a multiple of this.
        uniform: Keep equal sizes in both directions of every `Bidirectional`.
        forward: Replaces `model(batch)`.
        verify: Check the trace on the first batch.
        seed: Seed of the method's randomness.

    Attributes:
        result: The smaller model and its plan; None until training has ended.
        plan: The latest selection, or None.

    Example:
        >>> pruning = reprune.keras.PruningCallback(train, ratio=0.5, schedule="soft:200")   # doctest: +SKIP
        >>> model.fit(train, epochs=20, callbacks=[pruning])                                 # doctest: +SKIP
        >>> small = pruning.result.model                                                     # doctest: +SKIP
    """

    def __init__(
        self,
        batches: Iterable[Any],
        ratio: float = 0.5,
        of: Measure = "units",
        method: str | Method = "iss-gm",
        *,
        schedule: str | Schedule = "soft:200",
        calibration: int = 8,
        exclude: Sequence[str] = (),
        min_units: int = 1,
        round_to: int = 1,
        uniform: bool = False,
        forward: Forward | None = None,
        verify: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if is_tensor(batches):
            raise RecipeError("batches is a single tensor: give a list of batches or a dataset, as to prune().")
        if iter(batches) is batches:
            raise RecipeError("batches can be gone through only once: give a dataset or a list, not a generator.")
        if calibration < 1:
            raise RecipeError(f"calibration={calibration}: each selection needs at least one batch.")
        self.schedule = parse_schedule(schedule)
        if not isinstance(self.schedule, (After, Soft)):
            raise RecipeError(f"schedule={str(schedule)!r} is for PyTorch so far: give 'after' or 'soft:S'.")
        if get_method(method).needs_labels or get_method(method).needs_loss:
            raise RecipeError(
                f"method={method!r} looks at labels or at a loss: give one that looks at responses, such as "
                "'iss-gm', or call reprune.keras.prune() when training is over."
            )
        self.steps = 0
        self.plan: Plan | None = None
        self.result: Result[Any] | None = None
        self._budget = Budget(ratio, of, min_units, round_to)
        self._method = method
        self._calibration = calibration
        self._exclude = as_globs(exclude)
        self._uniform = uniform
        self._forward = forward
        self._verify = verify
        self._seed = seed
        self._stream = _Stream(batches)
        self._drawn = 0
        self._structure: Structure | None = None
        self._probe: Probe | None = None
        self._last_batch = -1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Trace the model."""
        example = next(self._stream)
        while self._stream.count < self._drawn:
            next(self._stream)
        if not self.model.built:
            # A Sequential model without an Input is not, even now.
            self.model(captured(self.model, example, self._forward))
        found = record(self.model, example, self._forward, uniform=self._uniform)
        self._structure = rehearse(found, self.model, self._exclude) if self._verify else found.structure()
        consumers = self._structure.consumers if get_method(self._method).needs_readings else ()
        self._probe = Probe(graph_of(self.model, example), consumers)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Batches are counted anew in every epoch."""
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Count the steps; when the schedule says so, select units and silence them."""
        before, self.steps = self.steps, self.steps + batch - self._last_batch
        self._last_batch = batch
        # Several steps may have run in one call (steps_per_execution).
        if any(self.schedule.due(step) for step in range(before + 1, self.steps + 1)):
            self.plan = self._decide()
            silence(self.model, self.plan)
        self._show(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note the share in the history."""
        self._show(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Select for the last time and make the smaller model."""
        self.plan = self._decide()
        self.result = Result(apply(self.model, self.plan), self.plan)

    def state_dict(self) -> dict[str, int]:
        """What the callback has counted, as JSON-clean data; the selection itself lies in the model's weights."""
        return {"steps": self.steps, "batches": self._stream.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the training that begins next go on where `state_dict` was taken."""
        self.steps, self._drawn = state["steps"], state["batches"]

    def _show(self, logs: dict[str, Any] | None) -> None:
        if logs is not None:
            logs["pruned"] = 0.0 if self.plan is None else removed_share(self.plan)

    def _decide(self) -> Plan:
        structure, probe = self._structure, self._probe
        if structure is None or probe is None:
            raise RecipeError("The callback has not seen training begin: give it to model.fit(callbacks=[…]).")
        method = get_method(self._method)
        arrays = weight_arrays(graph_of(self.model))
        evidence = Evidence(structure, arrays)
        if method.needs_statistics:
            batches = islice(self._stream, self._calibration)
            statistics = gather(probe, structure, (captured(self.model, batch, self._forward) for batch in batches))
            read = readings(structure, arrays, statistics, statistics.readings) if method.needs_readings else ()
            evidence = Evidence(structure, arrays, statistics, read)
        return decide(evidence, self._budget, self._method, exclude=self._exclude, seed=self._seed)


def silence(model: Any, plan: Plan) -> None:
    """Set the incoming weights and biases of the units that a plan removes to zero, in place."""
    weights = graph_of(model).weights()
    removed = plan.removed()
    for slot in plan.structure.slots:
        gone = slot.positions(removed)
        if slot.role == "own" and len(gone):
            value = array(weights[slot.tensor])
            value.swapaxes(0, slot.axis)[gone] = 0
            weights[slot.tensor].assign(value)


def removed_share(plan: Plan) -> float:
    """What a plan removes, of what it was asked for."""
    cost = CostModel(plan.structure)
    before = cost(plan.of, plan.structure.counts())
    return 1 - cost(plan.of, plan.counts()) / before


class _Stream:
    """The inputs of training batches, over and over.

    Attributes:
        count: How many came out so far.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.count = 0
        self._inputs = _endless(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.count += 1
        return next(self._inputs)


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            # As Keras takes the batches of a dataset: input, labels, weights.
            yield batch[0] if isinstance(batch, tuple) else batch
        if empty:
            raise StatisticsError("batches is empty: give the training data, as to fit().")
