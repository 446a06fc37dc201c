"""The verbs for Keras models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras

from reprune.core.errors import keras_2_error

if int(keras.__version__.split(".")[0]) < 3:
    # Before the modules below stumble over what it does not have.
    raise keras_2_error(f"keras {keras.__version__}")

from reprune.core.budget import RATIO, Request
from reprune.core.cost import Measure
from reprune.core.errors import UnsupportedModelError
from reprune.core.latency import LatencyTable
from reprune.core.methods import Method
from reprune.core.passes import first_batch
from reprune.core.plan import Plan
from reprune.keras.calibration.calibrate import Calibration, calibrate, is_tensor
from reprune.keras.calibration.labelled import Labels, Loss
from reprune.keras.calibration.responses import observe
from reprune.keras.latency import measure_latency
from reprune.keras.legacy import load_model
from reprune.keras.result import Result, load
from reprune.keras.surgery.apply import apply, mask
from reprune.keras.surgery.ragged import RaggedBidirectional
from reprune.keras.surgery.verify import rehearse
from reprune.keras.tracing.graph import check_keras
from reprune.keras.tracing.record import Forward, record, trace
from reprune.keras.training.callback import PruningCallback
from reprune.keras.training.distill import distill
from reprune.report import Inspection

__all__ = [
    "Calibration",
    "Inspection",
    "PruningCallback",
    "RaggedBidirectional",
    "Result",
    "apply",
    "calibrate",
    "distill",
    "inspect",
    "load",
    "load_model",
    "mask",
    "measure_latency",
    "observe",
    "plan",
    "prune",
    "trace",
]


def inspect(
    model: Any, batches: Iterable[Any], *, forward: Forward | None = None, strict: bool = False, verify: bool = True
) -> Inspection:
    """What can be pruned, what is pinned and why.

    Args:
        model: The model; it is left as it was.
        batches: Inputs as the model takes them; only the first is used.
        forward: Replaces `model(batch)`: a function of model and batch.
        strict: Raise instead of pinning.
        verify: Rehearse the removal of units on the example.

    Raises:
        UnsupportedModelError: When there is no recurrent layer, or, if `strict`, when a layer is pinned.
        VerificationError: When something reads units that the trace did not see.
    """
    check_keras(model)
    example, _ = first_batch(batches, is_tensor)
    found = record(model, example, forward)
    info = Inspection(rehearse(found, model) if verify else found.structure())
    if strict and info.pinned:
        pins = "".join(f"\n  {name}: {pin}" for name, pin in info.pinned.items())
        raise UnsupportedModelError(f"Some layers cannot be pruned (strict=True):{pins}")
    return info


def plan(
    model: Any,
    batches: Iterable[Any],
    ratio: float | None = RATIO,
    of: Measure = "units",
    method: str | Method = "reconstruct",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    counts: Mapping[str, float] | None = None,
    min_units: int = 1,
    round_to: int | Literal["auto"] = 1,
    uniform: bool = False,
    target_ms: float | None = None,
    latency: LatencyTable | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Plan:
    """Decide which units go.

    Args:
        model: The model; it is left as it was.
        batches: Calibration inputs: each what the model takes as its one argument, a list or dict for several inputs.
            Iterated once, one batch at a time, and once more for labels or a loss. Leave labels out, or drop them with
            `forward`.
        ratio: Fraction to remove; None for methods that find their own size (`pfa-kl`, `pfa-en`).
        of: What the fraction is of: `units`, `parameters`, `macs`, or `latency` on this machine.
        method: A preset's name (`core.methods.METHODS`) or a `Method`.
        include: Globs of layers; all others are left alone.
        exclude: Globs of layers to leave alone.
        counts: Sizes of some layers, by glob: units to keep (a whole number) or the fraction to remove (under 1). The
            budget is met with the other layers.
        min_units: Units that every layer keeps at least.
        round_to: Make the units kept a multiple of this; `auto` for the one that this machine's kernels like.
        uniform: Keep equal sizes in both directions of every `Bidirectional`, so that it stays plain.
        target_ms: With `of="latency"`, the milliseconds that one call may take, in place of a ratio.
        latency: Times from `measure_latency`. By default they are measured in ONNX Runtime, on one thread, on the first
            batch, when `of="latency"` or `round_to="auto"` needs them.
        labels: Classes of a batch's sequences, for methods that look at them (see `calibrate`).
        loss: Mean loss of model and batch, for methods that look at its gradient.
        forward: Replaces `model(batch)`: a function of model and batch, such as `lambda model, batch: model(batch[0])`.
        verify: Check the trace on the first batch.
        seed: Seed of methods that are random.

    Raises:
        UnsupportedModelError: When nothing can be pruned; the message says why.
        BudgetError: When the budget cannot be met.
        VerificationError: When something reads units in a way that the trace did not see.
    """
    # A budget that is out of range is told before the model is run.
    Request(ratio, of, min_units, round_to, target_ms)
    calibration = calibrate(
        model,
        batches,
        methods=[method],
        labels=labels,
        loss=loss,
        include=include,
        exclude=exclude,
        uniform=uniform,
        forward=forward,
        verify=verify,
    )
    return calibration.plan(
        ratio,
        of,
        method,
        counts=counts,
        min_units=min_units,
        round_to=round_to,
        target_ms=target_ms,
        latency=latency,
        seed=seed,
    )


def prune(
    model: Any,
    batches: Iterable[Any],
    ratio: float | None = RATIO,
    of: Measure = "units",
    method: str | Method = "reconstruct",
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    counts: Mapping[str, float] | None = None,
    min_units: int = 1,
    round_to: int | Literal["auto"] = 1,
    uniform: bool = False,
    target_ms: float | None = None,
    latency: LatencyTable | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Result:
    """Decide which units go and return a smaller model: `plan` and `apply` in one. See `plan` for the arguments.

    Example:
        >>> result = prune(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> result.model(x)                                # doctest: +SKIP
    """
    # A budget that is out of range is told before the model is run.
    Request(ratio, of, min_units, round_to, target_ms)
    calibration = calibrate(
        model,
        batches,
        methods=[method],
        labels=labels,
        loss=loss,
        include=include,
        exclude=exclude,
        uniform=uniform,
        forward=forward,
        verify=verify,
    )
    return calibration.prune(
        ratio,
        of=of,
        method=method,
        counts=counts,
        min_units=min_units,
        round_to=round_to,
        target_ms=target_ms,
        latency=latency,
        seed=seed,
    )
