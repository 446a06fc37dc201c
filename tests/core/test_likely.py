"""What is kept of answers among many classes."""

from __future__ import annotations

import numpy as np
import pytest

from reprune.core.answers.likely import CLASSES, DRAWN, FEW, KEPT, LOGS, kept_of, packed, starts


def test_of_few_classes_all_are_kept() -> None:
    assert [kept_of(classes) for classes in (2, FEW, FEW + 1)] == [(2, 0), (FEW, 0), (KEPT, DRAWN)]


def test_draws_are_equal_steps_from_a_random_start() -> None:
    places = starts(np.random.default_rng(0), 4000)
    assert (places.shape, places.dtype) == ((4000, DRAWN), np.float32)
    np.testing.assert_allclose(np.diff(places, axis=1), 1 / DRAWN, atol=1e-6)
    first = places[:, 0] * DRAWN  # Uniform from 0 to 1.
    assert 0 <= first.min() < 0.01 < 0.99 < first.max() < 1
    assert first.mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("of", "kind"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_classes_and_logarithms_are_stored_in_few_bytes(of: int, kind: type) -> None:
    found = packed(np.array([0, of - 1]), np.array([-1e9, -0.5]), of)
    assert (found[CLASSES].dtype, found[CLASSES].tolist()) == (kind, [0, of - 1])
    assert (found[LOGS].dtype, found[LOGS].tolist()) == (np.float16, [-65504, -0.5])
