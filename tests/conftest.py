"""One thread for all tests and the processes they start: small models gain nothing from more, and sums keep their order."""

from __future__ import annotations

import os

# Before PyTorch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
