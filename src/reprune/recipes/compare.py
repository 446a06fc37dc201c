"""Every method at every ratio on one model: the grid, kept cell by cell, with a table and a plot at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import reprune
from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import CostModel, Measure
from reprune.core.errors import RecipeError
from reprune.core.evidence.moments import to_numpy
from reprune.core.layers import Scope, Structure, checked_scope
from reprune.core.methods import get_method
from reprune.core.saving.files import replacing
from reprune.recipes.run.folder import held, read_json
from reprune.report.compare_plot import svg
from reprune.report.compare_table import Cell, csv_text, json_text, markdown

Evaluate = Callable[[Any], float]
Finetune = Callable[[Any, int], Any]


def compare(
    model: Any,
    batches: Iterable[Any],
    evaluate: Evaluate,
    out: Path,
    *,
    methods: Sequence[str],
    ratios: Sequence[float],
    of: Measure = "units",
    scope: Scope = "recurrent",
    finetune: Finetune | None = None,
    finetune_steps: int | Sequence[int] = 0,
    metric: str = "metric",
    labels: Callable[[Any], Any] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    seed: int = 0,
    say: Callable[[str], Any] = print,
) -> list[Cell]:
    """Measure the dense model, and what each method leaves of it at each ratio.

    Interrupted at any moment, the same call goes on with the cells that are missing: each is kept in a file of its own
    as soon as it is measured. The model is observed once for all of them.

    Args:
        model: The trained model, of PyTorch or Keras; it is left as it was.
        batches: Calibration inputs.
        evaluate: The metric of a model: one number.
        out: Folder for the cells, `comparison.json`, `.csv`, `.md` and `.svg`.
        methods: Names of methods.
        ratios: Fractions to remove.
        of: What the fractions are of.
        scope: What counts as units: those of `recurrent` layers, or `all` widths of the model (see `reprune.plan`).
        finetune: Trains a model in place for a number of steps. By default it is distilled from the dense model on
            the calibration inputs (`reprune.distill`), which needs no labels.
        finetune_steps: Measure every pruned model again after this many steps; of several numbers, after each of these
            fine-tunings by itself.
        metric: Name of the metric.
        labels: Classes of a batch's sequences, for methods that look at them.
        loss: Mean loss of model and batch, for methods that look at its gradient.
        forward: Replaces `model(batch)`.
        seed: Seed of methods that are random.
        say: Takes a line of progress.

    Returns:
        All cells, the dense model's first.

    Raises:
        RecipeError: When the folder holds a grid with other settings, something that a method needs is not given, or
            the metric is no number.
    """
    methods, ratios = list(dict.fromkeys(methods)), list(dict.fromkeys(ratios))
    _check(methods, ratios, of, labels, loss)
    asked = [finetune_steps] if isinstance(finetune_steps, int) else finetune_steps
    stages = sorted({0, *asked})
    if stages[0] < 0:
        raise RecipeError(f"finetune_steps={finetune_steps} must be whole numbers, at least 0.")
    if stages[-1] and finetune is None and isinstance(batches, Iterator):
        raise RecipeError(
            f"Distillation goes through the batches again and again, and a {type(batches).__name__} gives only one "
            "pass: give a list or a data loader, or finetune=."
        )
    train = finetune or (lambda small, steps: reprune.distill(small, model, batches, steps, forward=forward))
    settings = {"of": of, "scope": checked_scope(scope), "seed": seed, "metric": metric, "weights": _fingerprint(model)}
    with held(out):
        grid = _Grid(out, settings, "distilled" if finetune is None else "")
        missing = [
            (name, ratio)
            for name in methods
            for ratio in ratios
            if any(grid.read(name, ratio, steps) is None for steps in stages)
        ]
        dense = grid.read("dense", 0.0, 0)
        if missing or dense is None:
            used = sorted({name for name, _ in missing})
            calibration = reprune.calibrate(
                model, batches, methods=used, scope=scope, labels=labels, loss=loss, forward=forward
            )
            if dense is None:
                structure = calibration.structure
                dense = grid.keep(
                    _cell(structure, structure.counts(), "dense", 0.0, 0, _number(evaluate, model), 0.0, None)
                )
                say(f"dense: {dense.metric:.4g}")
            for place, (name, ratio) in enumerate(missing, start=1):
                started = time.perf_counter()
                result = calibration.prune(ratio, of=of, method=name, seed=seed)
                for steps in stages:
                    small = result.model
                    if steps:
                        started = time.perf_counter()
                        small = reprune.apply(model, result.plan)
                        train(small, steps)
                    took = time.perf_counter() - started
                    counts, structure = result.plan.counts(), result.plan.structure
                    near = result.fidelity.divergence if result.fidelity and not steps else None
                    cell = grid.keep(_cell(structure, counts, name, ratio, steps, _number(evaluate, small), took, near))
                    say(f"[{place}/{len(missing)}] {name} {ratio:.0%}, {steps} steps: {cell.metric:.4g}")
        cells = [grid.read(name, ratio, steps) for name in methods for steps in stages for ratio in ratios]
        found = [dense, *(cell for cell in cells if cell is not None)]
        for suffix, text in (
            ("json", json_text(found)),
            ("csv", csv_text(found)),
            ("md", markdown(found)),
            ("svg", svg(found, metric)),
        ):
            _write(out / f"comparison.{suffix}", text)
        return found


def _check(methods: Sequence[str], ratios: Sequence[float], of: Measure, labels: object, loss: object) -> None:
    """What can be known to be wrong before anything runs."""
    for name in methods:
        method = get_method(name)
        for needed, given, option in ((method.needs_labels, labels, "labels"), (method.needs_loss, loss, "loss")):
            if needed and given is None:
                raise RecipeError(f"{name!r} needs {option}= (--{option} on the command line), or leave it out.")
    for ratio in ratios:
        Budget(ratio, of)


def _number(evaluate: Evaluate, model: Any) -> float:
    found = evaluate(model)
    try:
        return float(found)
    except (TypeError, ValueError):
        raise RecipeError(
            f"The evaluation returned {found!r:.100}, a {type(found).__name__}: it must return one number."
        ) from None


def _fingerprint(model: Any) -> str:
    """Tells whether a folder's cells are those of this model."""
    digest = sha256()
    for weight in model.parameters() if hasattr(model, "parameters") else model.weights:
        digest.update(to_numpy(weight).tobytes())
    return digest.hexdigest()[:16]


def _cell(
    structure: Structure,
    counts: dict[str, int],
    method: str,
    ratio: float,
    steps: int,
    metric: float,
    seconds: float,
    divergence: float | None,
) -> Cell:
    cost = CostModel(structure)
    units, parameters, macs = (cost(of, counts) for of in ("units", "parameters", "macs"))
    return Cell(method, ratio, steps, metric, round(units), round(parameters), macs, round(seconds, 3), divergence)


class _Grid:
    """The cells on disk, one file each, complete or absent."""

    def __init__(self, out: Path, settings: dict[str, Any], training: str) -> None:
        self._training = training
        self._folder, self._settings = out / "cells", out / "settings.json"
        # Without a cell there is nothing yet that other settings could spoil.
        found = any(self._folder.glob("*.json"))
        before = {"scope": "recurrent", **read_json(self._settings)} if found else settings
        if before != settings:
            raise RecipeError(
                f"{out} holds a comparison with {before}, this one has {settings}: give another folder, or the same "
                "settings to go on with it."
            )
        self._text = json.dumps(settings) + "\n"

    def _path(self, method: str, ratio: float, steps: int) -> Path:
        return self._folder / f"{method}@{ratio:g}@{steps}{self._training if steps else ''}.json"

    def read(self, method: str, ratio: float, steps: int) -> Cell | None:
        """The cell, or None when it was not measured yet."""
        path = self._path(method, ratio, steps)
        if not path.exists():
            return None
        try:
            return Cell(**read_json(path))
        except TypeError:
            raise RecipeError(f"{path} holds no measured model: delete it to measure it again.") from None

    def keep(self, cell: Cell) -> Cell:
        """Write a cell down; returns it."""
        if not any(self._folder.glob("*.json")):
            _write(self._settings, self._text)
        _write(self._path(cell.method, cell.ratio, cell.steps), json.dumps(asdict(cell)) + "\n")
        return cell


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
