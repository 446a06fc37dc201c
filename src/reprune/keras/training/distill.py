"""The pruned model is trained, without labels, to answer what the dense one answers; see `core.distillation`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from math import isfinite
from typing import Any

import keras
from keras import ops

from reprune.core.distillation import (
    RULED_OUT,
    Progress,
    check_steps,
    diverged,
    nothing_may_change,
    nothing_to_compare,
    step_size,
)
from reprune.core.passes import endless, first_batch
from reprune.keras.calibration.calibrate import is_tensor
from reprune.keras.tracing.graph import ModelGraph, array, flat_inputs, graph_of
from reprune.keras.tracing.record import Forward, captured, states_kept

Divergence = Callable[[list[Any], list[Any]], Any]
"""From the output tensors of the small and the dense model to a scalar, in operations of the backend."""


def distill(
    small: Any,
    dense: Any,
    batches: Iterable[Any],
    steps: int = 400,
    *,
    learning_rate: float = 1e-3,
    divergence: Divergence | None = None,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> Any:
    """Train a pruned model in place to answer what the dense one does: no labels, no loss of one's own.

    Adam, on the trainable weights of the small model, with a step size that falls to zero. Both models infer: no
    dropout, no change of running statistics or carried states. How the small model is compiled stays as it was.

    Args:
        small: The pruned model.
        dense: The model it was pruned from; it is left as it was.
        batches: Inputs as the models take them, gone through again and again: a list or a dataset.
        steps: Batches to learn from.
        learning_rate: Largest step size.
        divergence: How far apart two outputs are: a function of the lists of output tensors of the small and the dense
            model. By default `apart`, summed over all of them.
        forward: Replaces `model(batch)`: a function of model and batch.
        progress: Called after every step with its number and the divergence.

    Returns:
        The small model.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.75)            # doctest: +SKIP
        >>> reprune.distill(result.model, model, batches, steps=400)      # doctest: +SKIP

    Raises:
        StatisticsError: When the batches cannot be gone through again, nothing of the outputs can be compared, no
            weight may change, or the divergence stops being a finite number. The weights are then those from before.
    """
    check_steps(steps)
    rounds = endless(batches, is_tensor, steps)
    weights = list(small.trainable_weights)
    if not weights:
        raise nothing_may_change(small)
    example = captured(dense, first_batch(batches, is_tensor)[0], forward)
    teacher, before = graph_of(dense, example), [array(weight) for weight in weights]
    learner = graph_of(small, example)
    student = _Student(learner, teacher, divergence or _total)
    # PyTorch's epsilon.
    student.compile(optimizer=keras.optimizers.Adam(learning_rate, epsilon=1e-8), jit_compile=False)
    for step, batch in enumerate(rounds, start=1):
        inputs = flat_inputs(teacher.root, captured(dense, batch, forward))
        student.optimizer.learning_rate = step_size(step, steps, learning_rate)
        with states_kept(teacher), states_kept(learner):
            far = float(student.train_on_batch(inputs))
        if not isfinite(far):
            for weight, value in zip(weights, before, strict=True):
                weight.assign(value)
            raise diverged(far, step, learning_rate)
        if progress is not None:
            progress(step, far)
    return small


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
