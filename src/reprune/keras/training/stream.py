"""The inputs of training batches, over and over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from reprune.core.errors import RecipeError, StatisticsError
from reprune.keras.tracing.graph import is_tensor


class Stream:
    """Batches of training data, over and over.

    Args:
        batches: A data set, or any iterable that can be gone through again.

    Attributes:
        count: How many came out so far.

    Raises:
        RecipeError: It is a tensor, or can be gone through only once.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if is_tensor(batches):
            raise RecipeError("batches is a single tensor: give a list of batches or a dataset, as to prune().")
        if isinstance(batches, Iterator):
            raise RecipeError("batches can be gone through only once: give a dataset or a list, not a generator.")
        self.count = 0
        self._batches = _endless(batches)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        self.count += 1
        return next(self._batches)

    def skip_to(self, count: int) -> None:
        """Leave batches out until so many have come out."""
        while self.count < count:
            next(self)


def input_of(batch: Any) -> Any:
    """As Keras takes the batches of a data set: input, labels, weights."""
    return batch[0] if isinstance(batch, tuple) else batch


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise StatisticsError("batches is empty: give the training data, as to fit().")
