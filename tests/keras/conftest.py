from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before TensorFlow is imported: it logs to stderr from C++.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

collect_ignore_glob: list[str] = []
try:
    import keras  # noqa: F401
except ImportError:
    # The adapter is an extra of its own; without Keras there is nothing to test.
    collect_ignore_glob = ["test_*.py"]


# Keras 3.15 on TensorFlow 2.21 with NumPy 2: its `predict` and `fit` convert tensors in a way that NumPy warns about.
COPY = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(COPY))
