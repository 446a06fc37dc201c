"""How a pruned model of Keras learns what the dense one answers (`reprune.distill`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from reprune.core.answers.distillation import nothing_may_change, nothing_to_compare
from reprune.core.answers.divergence import NAMESPACES, aligned, divergence_of
from reprune.core.answers.divergence import Divergence as Kind
from reprune.keras.calibration.pupil import answering, made_by_sigmoid
from reprune.keras.tracing.compiled import Runner
from reprune.keras.tracing.graph import ModelGraph, array, flat_inputs, graph_of
from reprune.keras.tracing.record import Forward, captured

Divergence = Callable[[list[Any], list[Any]], Any]
"""From the output tensors of the small and the dense model to a scalar, in operations of the backend."""


@contextmanager
def student(
    small: Any, dense: Any, example: Any, divergence: Divergence | str | None, forward: Forward | None
) -> Iterator[_Learner]:
    """The small model, ready to learn; how it is compiled stays as it was.

    Raises:
        StatisticsError: When no weight may change.
    """
    yield _Learner(small, dense, example, divergence, forward)


class _Learner:
    """Learns with Adam, on the trainable weights of the small model."""

    def __init__(
        self, small: Any, dense: Any, example: Any, compare: Divergence | str | None, forward: Forward | None
    ) -> None:
        self._weights = list(small.trainable_weights)
        if not self._weights:
            raise nothing_may_change(small)
        self._before = [array(weight) for weight in self._weights]
        inputs = captured(dense, example, forward)
        self._dense, self._forward = dense, forward
        self._teacher, self._small = graph_of(dense, inputs), graph_of(small, inputs)
        if compare is None or isinstance(compare, str):
            found, wanted = answering(small, forward)(example), answering(dense, forward)(example)
            compare = Comparison(found, wanted, compare, made_by_sigmoid(self._teacher))
        self._student = _Student(self._small, self._teacher, compare)
        # PyTorch's epsilon.
        self._student.compile(optimizer=keras.optimizers.Adam(epsilon=1e-8), jit_compile=False)

    def learn(self, batch: Any, step_size: float) -> float:
        """Take one step; returns the divergence before it."""
        inputs = flat_inputs(self._teacher.root, captured(self._dense, batch, self._forward))
        self._student.optimizer.learning_rate = step_size
        return float(self._student.train_on_batch(inputs))

    def restore(self) -> None:
        """Put the weights back as they were at the start."""
        for weight, value in zip(self._weights, self._before, strict=True):
            weight.assign(value)


class _Student(keras.Model):  # type: ignore[misc]
    """Gives the small model the compiled `train_on_batch` of whichever backend runs; what it is taught is its loss."""

    def __init__(self, learner: ModelGraph, teacher: ModelGraph, compare: Divergence) -> None:
        super().__init__(name="student", autocast=False)
        self._root = learner.root  # A layer of this model, whose weights learn. The teacher is none: it only answers.
        self._answers, self._taught = _outputs(learner), _outputs(teacher)
        self._compare = compare

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The small model's output tensors."""
        return self._answers(inputs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The divergence."""
        return self._compare(list(y_pred), [ops.stop_gradient(value) for value in self._taught(x)])


def _outputs(graph: ModelGraph) -> Callable[[Any], list[Any]]:
    """A model's output tensors; states and seeds, which a pass would write, stay."""
    runner = Runner(graph)
    return lambda inputs: runner.within(runner.values(), list(inputs))


class Comparison:
    """How far outputs are from the dense model's: the mean divergence over rows, added up over output tensors.

    What each tensor is compared by is decided on a first batch (`core.answers.divergence.divergence_of`).

    Args:
        found: The small model's output tensors to that batch.
        wanted: Those of the dense model.
        name: A divergence's name, or None.
        chances: Which of the output tensors hold numbers that a sigmoid made.
    """

    def __init__(
        self, found: Sequence[Any], wanted: Sequence[Any], name: str | None, chances: Collection[int] = ()
    ) -> None:
        self._kinds: dict[int, Kind] = {}
        for place, (own, dense) in enumerate(zip(found, wanted, strict=True)):
            # States that the caller carries have fewer units than those of the dense model.
            if own.dtype.kind == "f" and own.shape == dense.shape and own.size:
                self._kinds[place] = divergence_of(_rows(dense), name, chances=place in chances)
        if not self._kinds:
            raise nothing_to_compare()

    def __call__(self, found: list[Any], wanted: list[Any]) -> Any:
        """The divergence of the small model's output tensors from the dense one's."""
        total = 0.0
        for place, kind in self._kinds.items():
            own = _rows(found[place])
            total += ops.mean(kind.values(*aligned(own, ops.cast(_rows(wanted[place]), own.dtype))))
        return total


def _rows(value: Any) -> Any:
    return ops.reshape(value, (-1, value.shape[-1] if len(value.shape) > 1 else 1))


NAMESPACES.append(lambda value: ops if keras.ops.is_tensor(value) else None)
