"""What the tests and the processes they start have in common, however they are started."""

from __future__ import annotations

import os
import signal

# One thread: sums keep their order, and small models need no more. Before PyTorch is imported, which reads it once.
os.environ["OMP_NUM_THREADS"] = "1"
# Shells start jobs in the background with Ctrl-C ignored, which is inherited; the tests of interruptions send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
