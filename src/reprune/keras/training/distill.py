"""How a pruned model of Keras learns what the dense one answers (`reprune.distill`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
from keras import ops

from reprune.core.distillation import RULED_OUT, nothing_may_change, nothing_to_compare
from reprune.keras.tracing.graph import ModelGraph, array, flat_inputs, graph_of
from reprune.keras.tracing.record import Forward, captured, states_kept

Divergence = Callable[[list[Any], list[Any]], Any]
"""From the output tensors of the small and the dense model to a scalar, in operations of the backend."""


@contextmanager
def student(
    small: Any, dense: Any, example: Any, divergence: Divergence | None, forward: Forward | None
) -> Iterator[_Learner]:
    """The small model, ready to learn; how it is compiled stays as it was.

    Raises:
        StatisticsError: When no weight may change.
    """
    yield _Learner(small, dense, example, divergence or _total, forward)


class _Learner:
    """Learns with Adam, on the trainable weights of the small model."""

    def __init__(self, small: Any, dense: Any, example: Any, compare: Divergence, forward: Forward | None) -> None:
        self._weights = list(small.trainable_weights)
        if not self._weights:
            raise nothing_may_change(small)
        self._before = [array(weight) for weight in self._weights]
        inputs = captured(dense, example, forward)
        self._dense, self._forward = dense, forward
        self._teacher, self._small = graph_of(dense, inputs), graph_of(small, inputs)
        self._student = _Student(self._small, self._teacher, compare)
        # PyTorch's epsilon.
        self._student.compile(optimizer=keras.optimizers.Adam(epsilon=1e-8), jit_compile=False)

    def learn(self, batch: Any, step_size: float) -> float:
        """Take one step; returns the divergence before it."""
        inputs = flat_inputs(self._teacher.root, captured(self._dense, batch, self._forward))
        self._student.optimizer.learning_rate = step_size
        with states_kept(self._teacher), states_kept(self._small):
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
        self._answers = partial(_outputs, learner)
        self._taught = partial(_outputs, teacher)
        self._compare = compare

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The small model's output tensors."""
        return self._answers(inputs)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """The divergence."""
        return self._compare(list(y_pred), [ops.stop_gradient(value) for value in self._taught(x)])


def _outputs(graph: ModelGraph, inputs: Any) -> list[Any]:
    given = keras.tree.pack_sequence_as(graph.root.input, list(inputs))
    return list(keras.tree.flatten(graph.root(given, training=False)))


def _total(found: list[Any], wanted: list[Any]) -> Any:
    # States that the caller carries have fewer units than those of the dense model.
    pairs = [
        (f, ops.cast(w, f.dtype))
        for f, w in zip(found, wanted, strict=True)
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(f.dtype)) and _sizes(f) == _sizes(w) != ()
    ]
    if not pairs:
        raise nothing_to_compare()
    return sum(apart(f, w) for f, w in pairs)


def _sizes(value: Any) -> tuple[int | None, ...]:
    """The shape without the batch, of which a compiled function may know no size."""
    return tuple(value.shape[1:])


def apart(found: Any, wanted: Any) -> Any:
    """How far an output is from the dense model's, as in `reprune.torch.training.distill.apart`.

    Args:
        found: Output of the small model (… × features).
        wanted: That of the dense model, of the same shape.
    """
    found, wanted = (ops.reshape(part, (-1, part.shape[-1])) for part in (found, wanted))
    inside = ops.logical_and(ops.all(wanted >= 0), ops.all(wanted <= 1))
    ones = ops.all(ops.abs(ops.sum(wanted, axis=1) - 1) <= 1e-3)
    distribution = ops.logical_and(inside, ones) if wanted.shape[1] > 1 else False
    return ops.where(
        distribution,
        _relative_entropy(wanted, found),
        ops.where(
            inside,
            _relative_entropy(wanted, found) + _relative_entropy(1 - wanted, 1 - found),
            _numbers(found, wanted),
        ),
    )


def _relative_entropy(wanted: Any, found: Any) -> Any:
    """Σ w log(w / f) of probabilities, mean over rows; of other numbers some finite number that nobody looks at."""
    tiny = 1e-30
    ratio = ops.log(ops.clip(wanted, tiny, 1.0)) - ops.log(ops.clip(found, tiny, 1.0))
    return ops.mean(ops.sum(ops.clip(wanted, 0.0, 1.0) * ratio, axis=1))


def _numbers(found: Any, wanted: Any) -> Any:
    # Classes that are ruled out have logits of −∞, from which not even a gradient of zero may be computed.
    counts = ops.isfinite(wanted)
    zero = ops.zeros_like(wanted)
    number = ops.sum(ops.cast(counts, found.dtype))
    plain, held = (ops.where(counts, part, zero) for part in (found, wanted))
    scale = ops.sum(ops.where(counts, ops.square(held - ops.sum(held) / number), zero)) / number
    square = ops.sum(ops.square(plain - held)) / number
    logs = [ops.log_softmax(ops.where(counts, part, RULED_OUT), axis=1) for part in (plain, held)]
    divergence = ops.mean(ops.sum(ops.exp(logs[1]) * (logs[1] - logs[0]), axis=1))
    return square / ops.maximum(scale, keras.config.epsilon()) + divergence
