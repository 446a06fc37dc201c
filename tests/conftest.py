"""One thread for the tests and the processes they start: sums keep their order, and small models need no more."""

from __future__ import annotations

import os

# Before PyTorch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
