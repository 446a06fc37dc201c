"""Selection while training: any method that scores units, from statistics of batches of the training data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from reprune.core.budget.budget import Budget
from reprune.core.decide import decide
from reprune.core.evidence.evidence import Evidence
from reprune.core.evidence.passes import Forward, Labels
from reprune.core.evidence.readings import readings
from reprune.core.layers import Structure
from reprune.core.methods import Method, get_method
from reprune.core.plan import Plan
from reprune.keras.calibration.labelled import observe_classes
from reprune.keras.calibration.responses import Probe, gather
from reprune.keras.surgery.cloning import weight_arrays
from reprune.keras.tracing.graph import graph_of
from reprune.keras.tracing.record import captured
from reprune.keras.training.stream import Stream, input_of
from reprune.keras.training.technique import Technique


class Selection(Technique):
    """Scores units as `reprune.plan` does, on batches of the training data that go on where the last ones ended."""

    def __init__(self, model: Any, structure: Structure, method: str | Method, budget: Budget, seed: int) -> None:
        super().__init__(model, structure, method, budget, seed)
        self._method = get_method(method)
        self._probe: Probe | None = None

    def look_at(self, stream: Stream, count: int, forward: Forward | None, labels: Labels | None) -> None:
        """Say where the statistics of each selection come from.

        Args:
            stream: The training data.
            count: Batches of it.
            forward: Replaces `model(batch)`; without it, batches that are tuples are inputs, labels and so on.
            labels: Classes of a batch's sequences.
        """
        self._stream, self._count, self._labels = stream, count, labels
        self._forward: Forward = forward or (lambda model, batch: model(input_of(batch)))

    def decide(self, budget: Budget) -> Plan:
        """See `Technique.decide`."""
        method, graph = self._method, graph_of(self.model)
        arrays = weight_arrays(graph)
        evidence = Evidence(self.structure, arrays)
        if method.needs_labels and self._labels is not None:
            batches = islice(self._stream, self._count)
            classes = observe_classes(self.model, self.structure, batches, self._labels, self._forward)
            evidence = Evidence(self.structure, arrays, classes=classes)
        elif method.needs_statistics:
            probe = self._probe or Probe(graph, self.structure, readings=method.needs_readings)
            self._probe = probe
            inputs = (captured(self.model, batch, self._forward) for batch in islice(self._stream, self._count))
            found = gather(probe, self.structure, inputs)
            read = readings(self.structure, arrays, found, found.readings) if method.needs_readings else ()
            evidence = Evidence(self.structure, arrays, found, read)
        return decide(evidence, budget, self.method, seed=self.seed)

    def shrunk(self, structure: Structure, kept: Mapping[str, Sequence[int]]) -> None:
        """See `Technique.shrunk`."""
        super().shrunk(structure, kept)
        self._probe = None
