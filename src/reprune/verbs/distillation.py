"""The pruned model learns, without labels, to answer what the dense one answers; see `core.answers.distillation`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any, TypeVar

from reprune.core.answers.distillation import Progress, check_steps, diverged, step_size
from reprune.core.evidence.passes import Forward, endless, first_batch
from reprune.core.progress import told
from reprune.verbs.adapter import adapter_of
from reprune.verbs.progress import shown

Model = TypeVar("Model")
Divergence = Callable[[Any, Any], Any]
"""From what the small and the dense model return to a scalar that gradients flow from."""


def distill(
    small: Model,
    dense: Any,
    batches: Iterable[Any],
    steps: int = 400,
    *,
    learning_rate: float = 1e-3,
    divergence: Divergence | str | None = None,
    forward: Forward | None = None,
    progress: Progress | None = None,
) -> Model:
    """Train a pruned model in place to answer what the dense one does: no labels, no loss of one's own.

    Adam, on the weights of the small model that may change, with a step size that falls to zero. Both models run as
    they do in use: no dropout, no change of running statistics or of states that are carried. Modes, and how a Keras
    model is compiled, are as before at the end.

    Args:
        small: The pruned model.
        dense: The model it was pruned from; nothing is written to it, modes included.
        batches: Inputs as the models take them, gone through again and again: a list, a data loader or a dataset.
        steps: Batches to learn from.
        learning_rate: Largest step size.
        divergence: How far apart two outputs are: `kl`, `bce`, `mse`, `cosine` (`core.answers.divergence`), or a
            function of what the small and the dense model return (in Keras: of their lists of output tensors). By
            default it follows from the dense model's outputs to the first batch: probabilities that add up to 1,
            numbers that a sigmoid made, other numbers from 0 to 1, or anything else, which may be logits.
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
    adapter = adapter_of(dense)
    rounds = endless(batches, adapter.is_tensor, steps)
    example, _ = first_batch(batches, adapter.is_tensor)
    forward = adapter.accepted(adapter.private(dense), example, forward)
    with shown(), adapter.student(small, dense, example, divergence, forward) as student:
        for step, batch in enumerate(told("distilling", rounds, steps), start=1):
            far = student.learn(batch, step_size(step, steps, learning_rate))
            if not isfinite(far):
                student.restore()
                raise diverged(far, step, learning_rate)
            if progress is not None:
                progress(step, far)
    return small
