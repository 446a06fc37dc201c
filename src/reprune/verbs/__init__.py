"""The verbs, the same for every framework: what `reprune`, `reprune.torch` and `reprune.keras` offer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from reprune.core.budget.budget import RATIO, Request
from reprune.core.budget.cost import Measure
from reprune.core.budget.latency import LatencyTable
from reprune.core.errors import UnsupportedModelError
from reprune.core.evidence.passes import Forward, Labels, Loss, first_batch
from reprune.core.layers import Scope, Structure, checked_scope
from reprune.core.methods import Method
from reprune.core.plan import Plan
from reprune.core.progress import tell
from reprune.report import Inspection
from reprune.verbs.adapter import adapter_of, fitting
from reprune.verbs.calibration import Calibration, calibrate, log_pins
from reprune.verbs.distillation import distill
from reprune.verbs.progress import shown
from reprune.verbs.result import Result, load

Model = TypeVar("Model")

__all__ = [
    "Calibration",
    "Inspection",
    "Result",
    "apply",
    "calibrate",
    "distill",
    "export",
    "inspect",
    "load",
    "mask",
    "measure_latency",
    "plan",
    "prune",
]


def inspect(
    model: Any,
    batches: Iterable[Any],
    *,
    scope: Scope = "recurrent",
    forward: Forward | None = None,
    strict: bool = False,
    verify: bool = True,
) -> Inspection:
    """Find out which layers can lose units, which weights read them, and which layers must stay whole, and why.

    Args:
        model: The model, of PyTorch or Keras; it is left as it was.
        batches: Inputs as the model takes them; only the first is used.
        scope: What counts as units: those of recurrent layers, or `all` widths of the model (see `plan`).
        forward: Called in place of `model(batch)`: a function of model and batch.
        strict: Raise an error for a layer that must stay whole.
        verify: Try on the first batch whether the model runs with fewer units.

    Raises:
        BatchError: When the model does not run on the first batch.
        UnsupportedModelError: When there is no recurrent layer, or, if `strict`, when a layer must stay whole.
        VerificationError: When something reads units and was not found.

    Example:
        >>> info = reprune.inspect(model, batches)      # doctest: +SKIP
        >>> print(info)                                 # doctest: +SKIP
        >>> info.pinned["decoder:l0"].reason            # doctest: +SKIP
    """
    adapter = adapter_of(model)
    made_plain = adapter.made_plain(model)
    model = adapter.private(adapter.checked(model))
    example, _ = first_batch(batches, adapter.is_tensor)
    forward = adapter.accepted(model, example, forward)
    with shown():
        tell("tracing")
        found = adapter.record(model, example, forward, scope=checked_scope(scope))
        tell("rehearsing")
        structure = adapter.rehearse(found, model, example, forward, ()) if verify else found.structure()
    info = Inspection(structure, made_plain)
    log_pins(info.structure)
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
    scope: Scope = "recurrent",
    target_ms: float | None = None,
    latency: LatencyTable | None = None,
    tolerance: float | None = None,
    divergence: str | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Plan:
    """Decide which units go, without changing anything. For several plans of one model, `calibrate` once.

    Args:
        model: The model, of PyTorch or Keras; it is left as it was.
        batches: Calibration inputs as the model takes them: `model(x)`, in PyTorch also `model(*xs)` and
            `model(**named)`. Iterated once, one batch at a time, and once more for labels or a loss. Leave labels out,
            or drop them with `forward`.
        ratio: Fraction to remove; None for methods that find their own size (`pfa-kl`, `pfa-en`).
        of: What the fraction is of: `units`, `parameters`, `macs`, or `latency` on this machine.
        method: A preset's name (`core.methods.METHODS`) or a `Method`.
        include: Globs of layers; all others are left alone.
        exclude: Globs of layers to leave alone.
        counts: Sizes of some layers, by glob: units to keep (a whole number) or the fraction to remove (under 1). The
            budget is met with the other layers.
        min_units: Units that every layer keeps at least.
        round_to: Make the units kept a multiple of this; `auto` for the one that this machine's kernels like.
        uniform: Keep equal sizes in all layers and directions of one recurrent module, so that it stays plain.
        scope: What counts as units: `recurrent` ones alone, or `all` widths of the model, so convolution channels,
            features of linear maps between two readers, columns of embeddings and attention heads, too.
        target_ms: With `of="latency"`, the milliseconds that one call may take, in place of a ratio.
        latency: Times from `measure_latency`. By default they are measured on one thread, on the first batch, in
            PyTorch or, for Keras, in ONNX Runtime, when `of="latency"` or `round_to="auto"` needs them.
        tolerance: Find the ratio: the largest one whose answers diverge no further than this from the dense model's on
            calibration batches (`Result.fidelity`). 0.02 lets a language model's perplexity rise by about 2%.
        divergence: How answers are compared: `kl`, `bce`, `mse` or `cosine`; what they look like by default.
        labels: Classes of a batch's sequences, for methods that look at them (see `calibrate`).
        loss: Mean loss of model and batch, for methods that look at its gradient.
        forward: Replaces `model(batch)`: a function of model and batch, such as `lambda model, batch: model(batch[0])`.
        verify: Try on the first batch whether the model runs with fewer units.
        seed: Seed of methods that are random.

    Returns:
        The plan; `plan.kept` lists the units that stay, `apply` carries it out, `plan.to_json()` keeps it.

    Raises:
        BatchError: When the model does not run on the first batch.
        StatisticsError: When there are no batches, or the method needs `labels` or a `loss`.
        UnsupportedModelError: When nothing can be pruned; the message says why.
        BudgetError: When the budget cannot be met; the message names the nearest one that can.
        VerificationError: When something reads units and was not found.

    Example:
        >>> decided = reprune.plan(model, batches, 0.5, of="macs", counts={"encoder:l0": 64})   # doctest: +SKIP
        >>> small = reprune.apply(model, decided)                                             # doctest: +SKIP
    """
    # A budget that is out of range is told before the model is run.
    Request(ratio, of, min_units, round_to, target_ms, tolerance)
    with shown():
        calibration = calibrate(
            model,
            batches,
            methods=[method],
            labels=labels,
            loss=loss,
            include=include,
            exclude=exclude,
            uniform=uniform,
            scope=scope,
            divergence=divergence,
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
            tolerance=tolerance,
            seed=seed,
        )


def prune(
    model: Model,
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
    scope: Scope = "recurrent",
    target_ms: float | None = None,
    latency: LatencyTable | None = None,
    tolerance: float | None = None,
    divergence: str | None = None,
    labels: Labels | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    verify: bool = True,
    seed: int = 0,
) -> Result[Model]:
    """Decide which units go and return a smaller model: `plan` and `apply` in one.

    The arguments and the errors are those of `plan`; the most used:

    Args:
        model: The model, of PyTorch or Keras; it is left as it was.
        batches: Calibration inputs as the model takes them, some hundreds of sequences like those to come.
        ratio: Fraction to remove.
        of: What the fraction is of: `units`, `parameters`, `macs`, or `latency` on this machine.
        method: What decides, and what makes up for the removed units; the default needs no labels and no training.

    Returns:
        The smaller model, its plan, and how near its answers are to the model's.

    Example:
        >>> result = reprune.prune(model, batches, ratio=0.5)      # doctest: +SKIP
        >>> result.model(x)                                        # doctest: +SKIP
        >>> print(result)                                          # doctest: +SKIP
    """
    Request(ratio, of, min_units, round_to, target_ms, tolerance)
    with shown():
        calibration = calibrate(
            model,
            batches,
            methods=[method],
            labels=labels,
            loss=loss,
            include=include,
            exclude=exclude,
            uniform=uniform,
            scope=scope,
            divergence=divergence,
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
            tolerance=tolerance,
            seed=seed,
        )


def apply(model: Model, plan: Plan, *, compensate: bool = True) -> Model:
    """A new, smaller model without the units that the plan removes; the original is left as it was.

    Args:
        model: The model that was planned. Out of `DataParallel`, `torch.compile` and the like, the plain one is taken.
        plan: Which units stay, and what makes up for the others.
        compensate: Add the plan's corrections to what is left. They were fitted to the weights that the model had when
            it was planned. False cuts only, whatever the weights are.

    Raises:
        PlanError: When the plan belongs to another model, or its corrections to other weights.

    Warns:
        PlanWarning: When a plan without corrections was made from other weights.

    Example:
        >>> plan = reprune.Plan.from_json(Path("plan.json").read_text())     # doctest: +SKIP
        >>> small = reprune.apply(model, plan, compensate=False)             # doctest: +SKIP
    """
    adapter = adapter_of(model)
    model = adapter.checked(model)
    small: Model = adapter.apply(model, fitting(adapter, model, plan, compensate))
    return small


def mask(model: Model, plan: Plan, *, compensate: bool = True) -> Model:
    """A copy of full size in which nothing reads the units that the plan removes.

    It computes what the model of `apply` computes, to rounding, so that the one can be checked by the other. Arguments,
    errors and warnings are those of `apply`.

    Example:
        >>> small, same = reprune.apply(model, plan), reprune.mask(model, plan)     # doctest: +SKIP
        >>> torch.testing.assert_close(small(x), same(x))                           # doctest: +SKIP
    """
    adapter = adapter_of(model)
    model = adapter.checked(model)
    masked: Model = adapter.mask(model, fitting(adapter, model, plan, compensate))
    return masked


def measure_latency(
    model: Any,
    example: Any,
    *,
    runtime: str | None = None,
    threads: int = 1,
    forward: Forward | None = None,
    structure: Structure | None = None,
) -> LatencyTable:
    """Measure how long layers of several sizes take on this machine: once, for any number of plans with `of="latency"`.

    Recurrent layers and products with weights are timed by themselves, at a few sizes up to those of the model. The
    model is timed as a whole; what is left of its time counts as constant. This takes seconds to a minute. Each time is
    the shortest of several. A single thread is timed by its own clock, which other programs do not lengthen.

    Args:
        model: The model; it is left as it was.
        example: An input as the model takes it, with the batch size and the length that matter in use.
        runtime: What will run the model: `torch` (the default for PyTorch), `onnxruntime` (the default for Keras), or
            `onnxruntime-int8` (the exported file, its weights in 8 bits).
        threads: Threads it may use. While PyTorch is timed, they are those of the whole process.
        forward: Replaces `model(example)`; in PyTorch for the runtime `torch` only.
        structure: What a trace of the model found on this example, if there is one already.

    Returns:
        The table: `table(plan.counts())` is a prediction in milliseconds, `table.to_json()` keeps it.

    Raises:
        BudgetError: When there is no such runtime, or `threads` is not positive.
        UnsupportedModelError: When a layer that can be pruned is of a kind that cannot be timed.
        ExportError: When the model cannot be exported to the runtime, or it is not installed.

    Example:
        >>> table = measure_latency(model, torch.randn(1, 300, 1152), runtime="onnxruntime")     # doctest: +SKIP
        >>> result = reprune.prune(model, batches, of="latency", target_ms=20, latency=table)    # doctest: +SKIP
    """
    return adapter_of(model).measure_latency(
        model, example, runtime=runtime, threads=threads, forward=forward, structure=structure
    )


def export(model: Any, example: Any, path: str | Path, **options: Any) -> Any:
    """Write a model to a file of a runtime (`.onnx`, `.tflite`, `.pte`, `.pt2`), run it there and compare the outputs.

    The suffix decides the format. `help(reprune.torch.export)` and `help(reprune.keras.export)` list the options.

    Returns:
        An `ExportReport`: inputs, outputs, and how far the file's answers are from the model's.

    Raises:
        ExportError: When the model cannot be written, a package is missing, or the file computes something else.

    Example:
        >>> print(reprune.export(small, example, "small.onnx"))     # doctest: +SKIP
    """
    return adapter_of(model).export(model, example, path, **options)
