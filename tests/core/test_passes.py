"""Batches are gone through as often as they are asked for, and none is held."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from reprune.core.errors import StatisticsError
from reprune.core.evidence.passes import Again, Stretch, endless, first_batch, several_passes, stretches


def single(value: Any) -> bool:
    return isinstance(value, float)


def once(*values: int) -> Iterator[int]:
    yield from values


def test_the_first_batch_is_looked_at_and_not_lost() -> None:
    example, batches = first_batch(once(1, 2, 3), single)
    assert (example, list(batches)) == (1, [1, 2, 3])


@pytest.mark.parametrize(
    ("batches", "message"), [({"x": 1}, "a single dict"), (0.5, "a single float"), ([], "batches is empty")]
)
def test_what_is_no_pass(batches: Any, message: str) -> None:
    with pytest.raises(StatisticsError, match=message):
        first_batch(batches, single)


def test_several_passes() -> None:
    passes_started = []

    def make() -> list[int]:
        passes_started.append(True)
        return [1, 2, 3]

    for batches in ([1, 2, 3], Again(make)):
        example, passes = several_passes(batches, single, 3)
        assert (example, [list(batches) for batches in islice(passes, 3)]) == (1, [[1, 2, 3]] * 3)
    assert len(passes_started) == 3  # The first pass goes on where the example was taken.


def test_what_can_be_gone_through_once() -> None:
    example, passes = several_passes(once(1, 2), single, 1)
    assert (example, list(next(passes))) == (1, [1, 2])
    with pytest.raises(StatisticsError, match="need 2 passes over batches, and a generator gives only one"):
        several_passes(once(1, 2), single, 2)
    with pytest.raises(StatisticsError, match="a generator gives only one pass"):
        endless(once(1, 2), single, 1)


def test_endless_batches_start_anew() -> None:
    assert list(endless([1, 2, 3], single, 7)) == [1, 2, 3, 1, 2, 3, 1]


def test_a_stretch_counts_what_was_gone_through() -> None:
    stretch = Stretch(1, once(2, 3))
    assert stretch.batches == 0
    assert [(batch, stretch.batches) for batch in stretch] == [(1, 1), (2, 2), (3, 3)]


def test_stretches_are_of_odd_lengths() -> None:
    assert [list(stretch) for stretch in stretches(once(*range(11)))] == [[0], [1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]
    assert [list(stretch) for stretch in stretches([0, 1, 2, 3])] == [[0], [1, 2, 3]]
    assert list(stretches([])) == []
