"""Calibration batches: the first one looked at, all of them gone through once or several times, none of them held."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, count, islice
from typing import Any

from reprune.core.errors import StatisticsError

Forward = Callable[[Any, Any], Any]
"""Runs a model on a batch: a function of both, in place of `model(batch)`."""
Labels = Callable[[Any], Any]
"""Classes of a batch's sequences: numbers (sequences), or ones and zeros (sequences × classes)."""
Loss = Callable[[Any, Any], Any]
"""Mean loss of a model on a batch: a scalar, from which gradients flow."""


class Again(Iterable[Any]):
    """Batches that are made anew for every pass.

    Args:
        make: Starts a pass.
    """

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        return iter(self._make())


def first_batch(batches: Iterable[Any], is_tensor: Callable[[Any], bool]) -> tuple[Any, Iterator[Any]]:
    """The first batch, and an iterator over all of them that holds no more than it.

    Args:
        batches: The batches.
        is_tensor: Tells what is one input rather than an iterable of inputs.

    Raises:
        StatisticsError: When it is a single input, or empty.
    """
    if isinstance(batches, Mapping) or is_tensor(batches):
        raise StatisticsError(f"batches is a single {type(batches).__name__}: give an iterable of inputs, such as [x].")
    iterator = iter(batches)
    try:
        example = next(iterator)
    except StopIteration:
        raise StatisticsError("batches is empty: give at least one input, such as [x], or a data loader.") from None

    def all_batches() -> Iterator[Any]:
        yield example
        yield from iterator

    return example, all_batches()


def several_passes(
    batches: Iterable[Any], is_tensor: Callable[[Any], bool], count: int
) -> tuple[Any, Iterator[Iterable[Any]]]:
    """The first batch, and the batches as often as they are asked for, none of them held but the first.

    Raises:
        StatisticsError: As for `first_batch`; or when they can be iterated only once and are needed more often.
    """
    example, first = first_batch(batches, is_tensor)
    if count > 1 and isinstance(batches, Iterator):  # A data loader that is asked for one starts its workers.
        raise StatisticsError(
            f"These methods need {count} passes over batches, and a {type(batches).__name__} gives only one: give a "
            "list or a data loader."
        )

    def passes() -> Iterator[Iterable[Any]]:
        yield first
        while True:
            yield batches

    return example, passes()


class Stretch:
    """Some batches in a row, the first of which can be looked at before all are gone through.

    Attributes:
        first: The first batch.
        batches: How many have been gone through.
    """

    def __init__(self, first: Any, others: Iterator[Any]) -> None:
        self.first = first
        self.batches = 0
        self._others = others

    def __iter__(self) -> Iterator[Any]:
        for batch in chain([self.first], self._others):
            self.batches += 1
            yield batch


def stretches(batches: Iterable[Any]) -> Iterator[Stretch]:
    """One pass in stretches of 1, 3, 5, … batches, each to be gone through before the next one comes.

    Something that is too dear to do with every batch is done with the first of each, numbers 0, 1, 4, 9, …: spread
    over a pass of any length, which need not be known, and less and less often.

    Example:
        >>> [list(stretch) for stretch in stretches(range(6))]
        [[0], [1, 2, 3], [4, 5]]
    """
    iterator = iter(batches)
    for size in count(1, 2):
        try:
            first = next(iterator)
        except StopIteration:
            return
        yield Stretch(first, islice(iterator, size - 1))


def endless(batches: Iterable[Any], is_tensor: Callable[[Any], bool], count: int) -> Iterator[Any]:
    """So many batches, starting anew whenever they end.

    Raises:
        StatisticsError: As for `first_batch`; or when they can be iterated only once.
    """
    if isinstance(batches, Iterator):
        raise StatisticsError(
            f"batches are gone through again and again, and a {type(batches).__name__} gives only one pass: give a "
            "list or a data loader."
        )

    def rounds() -> Iterator[Any]:
        while True:
            yield from first_batch(batches, is_tensor)[1]

    return islice(rounds(), count)
