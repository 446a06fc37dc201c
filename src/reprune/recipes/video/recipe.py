"""The paper's whole procedure on YouTube-8M records: train → prune → fine-tune → evaluate.

N. Gkalelis, V. Mezaris, "Structured Pruning of LSTMs via Eigenanalysis and Geometric Median for Mobile Multimedia and
Deep Learning Applications", IEEE ISM 2020.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from reprune.core.errors import RecordError
from reprune.recipes.run import procedure
from reprune.recipes.run.folder import options_of
from reprune.recipes.run.options import Options
from reprune.recipes.run.procedure import Recipe, Say, Summary
from reprune.recipes.run.quiet import quiet
from reprune.youtube8m.records import find_files, read_records


def recipe(options: Options) -> Recipe:
    """The recipe in the framework that the options name, which is imported only now."""
    with quiet():
        module = import_module(f"reprune.recipes.video.{options.framework}_recipe")
    found: Recipe = module.YouTube8M(options)
    return found


def run(options: Options, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder. See `procedure.run`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run.
        RecordError: Records are missing or damaged.
        InterruptedRunError: The user asked to stop.
    """
    _check_records(options, train=options.train, validate=options.validate, test=options.test)
    return procedure.run(recipe(options), out, resume=resume, say=say)


def evaluate_folder(
    folder: Path, data: tuple[str, ...], *, batch_size: int | None = None, accelerator: str = "auto"
) -> Summary:
    """Measure both models of a finished run on other records: a summary without sizes and times.

    Raises:
        RecipeError: The folder holds no run.
        RecordError: Records are missing or damaged.
        PlanError: The run is not finished.
    """
    options = replace(options_of(folder, Options), test=data, accelerator=accelerator, progress=False)
    _check_records(options, data=data)
    return procedure.evaluate_folder(folder, recipe(replace(options, batch_size=batch_size or options.batch_size)))


def _check_records(options: Options, **globs: tuple[str, ...]) -> None:
    """Files that hold no record at all would only be missed when they are read, perhaps after hours."""
    for option, paths in globs.items():
        if paths and next(read_records(paths, options.features, options.on_error), None) is None:
            raise RecordError(
                f"--{option} {' '.join(paths)}: 0 records to read in {len(find_files(paths))} files. Give files that "
                "hold some."
            )


def table(summary: Mapping[str, Any]) -> str:
    """A summary as a table for people."""
    return procedure.table(summary, _LABELS)


_LABELS = {
    "gap": "GAP@20",
    "map": "mAP",
    "hit_at_1": "Hit@1",
    "perr": "PERR",
    "macs": "MACs per frame",
    "latency_ms": "ms per video",
}
