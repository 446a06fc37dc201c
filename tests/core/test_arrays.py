"""Arrays that are computed once and read from disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reprune.core.saving.arrays import StoredArrays


def batches() -> Iterator[dict[str, Any]]:
    for start in (0, 3, 5):
        numbers = np.arange(start, min(start + 3, 6), dtype=np.uint16)
        # Of the kind that is not contiguous.
        yield {"numbers": numbers, "pairs": np.stack([numbers * 0.5, numbers * 0.25]).astype(np.float16).T}


def test_parts_are_put_together(tmp_path: Path) -> None:
    StoredArrays(tmp_path / "new" / "a").write(batches())
    found = StoredArrays(tmp_path / "new" / "a")
    assert found.done
    assert found["pairs"] is found["pairs"]  # Mapped once.
    for name in ("numbers", "pairs"):
        wanted = np.concatenate([batch[name] for batch in batches()])
        np.testing.assert_array_equal(found[name], wanted)
        assert found[name].dtype == wanted.dtype


def test_what_is_not_whole_is_not_there(tmp_path: Path) -> None:
    stored = StoredArrays(tmp_path)
    assert not stored.done
    stored.write(batches())

    def failing() -> Iterator[dict[str, Any]]:
        yield next(batches())
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stored.write(failing())
    assert not StoredArrays(tmp_path).done
    stored.write(batches())
    for damage in (b"", (tmp_path / "pairs.bin").read_bytes() + b"0"):
        (tmp_path / "pairs.bin").write_bytes(damage)
        assert not stored.done
    (tmp_path / "pairs.bin").unlink()
    assert not stored.done


def test_arrays_that_are_written_anew_are_read_anew(tmp_path: Path) -> None:
    stored = StoredArrays(tmp_path)
    for size in (4, 8):
        stored.write({"squares": size * np.arange(n, n + 2) ** 2} for n in range(0, size, 2))
        assert stored.done
        np.testing.assert_array_equal(stored["squares"], size * np.arange(size) ** 2)

    def failing() -> Iterator[dict[str, Any]]:
        yield {"squares": np.arange(8)}
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stored.write(failing())
    assert not stored.done


def test_arrays_are_on_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: sizes.append(os.fstat(descriptor).st_size))
    StoredArrays(tmp_path).write({"a": np.zeros(3), "b": np.zeros(2, "f4")} for _ in range(2))
    assert sizes[:2] == [2 * 3 * 8, 2 * 2 * 4]


def test_nothing_at_all(tmp_path: Path) -> None:
    stored = StoredArrays(tmp_path)
    stored.write([{"numbers": np.empty((0, 2))}])
    assert stored.done
    assert stored["numbers"].shape == (0, 2)
