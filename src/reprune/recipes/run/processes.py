"""Several processes of one run: Lightning starts them, the first one decides and writes for all."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lightning.fabric import Fabric
from torch import distributed

from reprune.core.errors import RecipeError
from reprune.recipes.run.options import RunOptions
from reprune.torch.training.distributed import processes, rank, shared

T = TypeVar("T")


@contextmanager
def launch(options: RunOptions) -> Iterator[bool]:
    """Start the other processes that the options ask for, or meet those that torchrun or Slurm has started.

    Within this context, `torch.distributed` is initialised if there is more than one. It yields whether this is the
    first one.

    Raises:
        RecipeError: This machine lacks what the options name, the strategy is one under which a process does not hold
            the whole model, or another process failed while this one waited for it.
    """
    if options.strategy not in ("auto", "ddp"):
        raise RecipeError(
            f"--strategy {options.strategy}: the recipes run under ddp, with the whole model in every process. "
            "Give ddp, or leave it out."
        )
    precision: Any = options.precision
    with hardware(options):
        fabric = Fabric(
            accelerator=options.accelerator,
            devices=devices(options),
            num_nodes=options.num_nodes,
            strategy=options.strategy,
            precision=precision,
        )
    fabric.launch()
    if processes() > 1:
        atexit.register(_leave)
    try:
        yield rank() == 0
    except RuntimeError as error:
        if processes() == 1 or not _of_another_process(error):
            raise
        raise RecipeError(
            f"Process {rank()} stopped because another one of the {processes()} did. The error of that one says why, "
            "unless it was killed, such as for memory. Mend it, then add --resume to go on."
        ) from error


@contextmanager
def hardware(options: RunOptions) -> Iterator[None]:
    """Inside, Lightning looks for what the options name: it knows best what this machine has.

    Raises:
        RecipeError: When there is no such thing here.
    """
    try:
        yield
    except Exception as error:  # Its errors for this share no class of their own.
        raise RecipeError(
            f"--accelerator {options.accelerator} --devices {options.devices} --num-nodes {options.num_nodes} "
            f"--precision {options.precision} cannot be had here: {' '.join(str(error).split())}"
        ) from error


def _of_another_process(error: RuntimeError) -> bool:
    """Whether an operation failed because a process at its other end is gone; gloo has no exception of its own."""
    return isinstance(error, distributed.DistError) or "gloo/transport" in str(error)


def _leave() -> None:
    """Let go of the group while the interpreter is whole: a thread of gloo that needs it later aborts the process."""
    gc.collect()  # What DistributedDataParallel holds of the group lies in cycles.
    distributed.destroy_process_group()


def devices(options: RunOptions) -> int | str:
    """Lightning's `devices`: a number where the text is one."""
    return int(options.devices) if options.devices.lstrip("-").isdecimal() else options.devices


def share_of(options: RunOptions) -> int:
    """Sequences per step of each process.

    Raises:
        RecipeError: They cannot be dealt out evenly.
    """
    if options.batch_size % processes():
        raise RecipeError(
            f"--batch-size {options.batch_size} is of all {processes()} processes together: give a multiple of "
            f"{processes()}."
        )
    return options.batch_size // processes()


def once(act: Callable[[], T]) -> T:
    """What `act` returns in the first process, in all of them; the others wait for it.

    Where it raises, the others leave: the first one says why.
    """
    if processes() == 1:
        return act()
    found: tuple[bool, T | None] = (False, None)
    try:
        if rank() == 0:
            found = (True, act())
    finally:
        done, value = shared(found)
    if not done:
        raise SystemExit(1)
    return value  # type: ignore[return-value]
