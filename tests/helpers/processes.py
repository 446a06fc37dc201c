"""Two processes that train together, started and left in a way that cannot fail by chance."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, multiprocessing


def in_two_processes(act: Callable[..., None], *arguments: Any) -> None:
    """Run `act(rank, *arguments)` in two processes; `act` meets the other one with `meet`.

    Raises:
        multiprocessing.ProcessRaisedException: It failed in one of them.
    """
    multiprocessing.spawn(_run, (act, arguments), nprocs=2)  # type: ignore[no-untyped-call]


def meet(rank: int, folder: Path | str) -> None:
    """Make the group of the two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)


def _run(rank: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    act(rank, *arguments)
    # What DistributedDataParallel holds of the group lies in cycles.
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    # A thread of gloo may still let go of a tensor. If the interpreter is being torn down just then, CPython 3.11 ends
    # the thread inside C++, which aborts the process ("terminate called without an active exception").
    os._exit(0)
