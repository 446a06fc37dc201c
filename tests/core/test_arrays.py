"""Arrays that are computed once and read from disk."""

from __future__ import annotations

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
    StoredArrays(tmp_path / "a").write(batches())
    found = StoredArrays(tmp_path / "a")
    assert found.done
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
    (tmp_path / "pairs.bin").write_bytes(b"")
    assert not stored.done


def test_nothing_at_all(tmp_path: Path) -> None:
    stored = StoredArrays(tmp_path)
    stored.write([{"numbers": np.empty((0, 2))}])
    assert stored.done
    assert stored["numbers"].shape == (0, 2)
