"""What the tests and the processes they start have in common, however they are started."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# One thread: sums keep their order, and small models need no more. Before PyTorch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
# Shells start jobs in the background with Ctrl-C ignored, which is inherited; the tests of interruptions send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def gates(request: pytest.FixtureRequest) -> Iterator[None]:
    """In Keras, refitting gates takes half of a plan's time for models this small: modules with `GATES` do it."""
    with pytest.MonkeyPatch.context() as patch:
        if "keras" in request.module.__name__ and not getattr(request.module, "GATES", False):
            patch.setattr("reprune.core.answers.gates.WORK", 0)
        yield
