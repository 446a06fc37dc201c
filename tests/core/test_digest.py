"""Digests: the same for the same values, whatever holds them; another one for anything else."""

from __future__ import annotations

import google_crc32c
import numpy as np
import pytest

from reprune.core.saving.digest import digest_of_arrays, digest_of_bytes, digest_of_file

RNG = np.random.default_rng(0)
WEIGHTS = [RNG.standard_normal((4, 3)).astype("f4"), RNG.standard_normal(5).astype("f4")]
PLAIN = digest_of_arrays(WEIGHTS)


def changed(place, value):
    arrays = [array.copy() for array in WEIGHTS]
    arrays[0].flat[place] = value
    return arrays


@pytest.mark.parametrize(
    "same",
    [
        [array.astype("f8") for array in WEIGHTS],
        [array.astype(">f4") for array in WEIGHTS],
        [np.asfortranarray(array) for array in WEIGHTS],
        [np.repeat(array, 2, axis=0)[::2] for array in WEIGHTS],
    ],
    ids=["wider", "other byte order", "other strides", "a view"],
)
def test_what_keeps_values_keeps_the_digest(same):
    assert digest_of_arrays(same) == PLAIN


@pytest.mark.parametrize(
    "other",
    [
        [array.astype("f2") for array in WEIGHTS],
        [array.astype("f8") + 1e-12 for array in WEIGHTS],
        changed(0, np.nextafter(WEIGHTS[0].flat[0], np.float32(9))),
        changed(11, 0),
        [WEIGHTS[0].T, WEIGHTS[1]],
        [WEIGHTS[0].reshape(3, 4), WEIGHTS[1]],
        [WEIGHTS[0].reshape(-1)[:7], np.concatenate([WEIGHTS[0].reshape(-1)[7:], WEIGHTS[1]])],
        WEIGHTS[::-1],
        WEIGHTS[:1],
        [*WEIGHTS, np.zeros(0, "f4")],
    ],
    ids=["rounded", "a trifle more", "the next number", "the last one", "turned", "reshaped", "cut elsewhere",
         "other order", "one less", "one more, empty"],
)  # fmt: skip
def test_anything_else_changes_it(other):
    assert digest_of_arrays(other) != PLAIN


def test_short_types_count_as_the_numbers_they_hold():
    short = [array.astype("f2") for array in WEIGHTS]
    assert digest_of_arrays(short) == digest_of_arrays([array.astype("f8") for array in short])


@pytest.mark.parametrize(
    ("array", "held"),
    [
        (np.array([1.5, 1e-300]), "<f8"),  # Too fine for float32: as they are.
        (np.array([1.5, np.nan]), "<f8"),
        (np.array([1.5, 2j], "c8"), "<f4"),
        (np.array([1.5, 2j], "c16"), "<f4"),
        (np.array([1e300, 2j], "c16"), "<f8"),
        (np.array([0.1], "g"), "<f8"),
        (np.array([True, False]), "<i8"),
        (np.array([200], "u1"), "<i8"),
        (np.zeros((0, 3)), "<f4"),
    ],
    ids=str,
)
def test_one_type_stands_for_all_that_hold_the_values(array, held):
    values = array.view(array.real.dtype) if array.dtype.kind == "c" else array
    content = repr(array.shape).encode() + values.astype(held).tobytes()
    assert digest_of_arrays([array]) == f"crc32c:{google_crc32c.value(content):08x}"


def test_numbers_that_float32_cannot_hold():
    large = [np.array([1e300, 1.0]), np.array([1e200 + 1e190j])]
    assert digest_of_arrays(large) == digest_of_arrays([array.copy() for array in large])
    assert digest_of_arrays([np.array([1e300])]) != digest_of_arrays([np.array([1e301])])
    assert digest_of_arrays([np.array([2**40])]) != digest_of_arrays([np.array([2**41])])


def test_plans_of_other_versions_compare():
    """The digest is what it always was: CRC-32C over shape and little-endian values, array by array."""
    content = b"(2, 1)" + np.array([1.5, -2], "<f4").tobytes() + b"(1,)" + np.array([7], "<i8").tobytes()
    expected = f"crc32c:{google_crc32c.value(content):08x}"
    assert digest_of_arrays([np.array([[1.5], [-2]], "f8"), np.array([7], "i4")]) == expected


def test_files(tmp_path):
    content = RNG.bytes(100_001)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "empty").touch()
    # As the library for it says.
    assert digest_of_file(tmp_path / "file") == digest_of_bytes(content) == f"crc32c:{google_crc32c.value(content):08x}"
    assert digest_of_file(tmp_path / "empty") == digest_of_bytes(b"") == "crc32c:00000000"


def test_numbers_that_are_none_are_digested_as_they_lie():
    content = b"(2,)" + np.array([np.nan, 1], "<f4").tobytes()
    assert digest_of_arrays([np.array([np.nan, 1], "f4")]) == f"crc32c:{google_crc32c.value(content):08x}"
