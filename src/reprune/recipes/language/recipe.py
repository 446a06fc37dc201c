"""Word-level language modelling: train → prune → fine-tune → evaluate on a user's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from reprune.core.errors import RecipeError
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import VOCABULARY, Vocabulary
from reprune.recipes.run import procedure
from reprune.recipes.run.folder import options_of
from reprune.recipes.run.procedure import Say, Summary
from reprune.recipes.run.quiet import quiet


def recipe(options: LanguageOptions, vocabulary: Vocabulary | None = None) -> Any:
    """The recipe in the framework that the options name, which is imported only now.

    Args:
        options: What to do.
        vocabulary: The words that the model knows; those of the training text if not given.
    """
    with quiet():
        module = import_module(f"reprune.recipes.language.{options.framework}_recipe")
    return module.LanguageModel(options, vocabulary)


def run(options: LanguageOptions, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder. See `procedure.run`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run; a text is missing or too short.
        InterruptedRunError: The user asked to stop.
    """
    found = recipe(options)
    for path in (options.train, options.valid, options.test):
        found.read(path)
    return procedure.run(found, out, resume=resume, say=say)


def evaluate_folder(folder: Path, data: str, *, batch_size: int | None = None, accelerator: str = "auto") -> Summary:
    """Perplexity of both models of a finished run on another text: a summary without sizes and times.

    Args:
        folder: The run's folder.
        data: The text.
        batch_size: Streams that it is cut into; 1 reads it from end to end with one state.
        accelerator: Lightning's accelerator.

    Raises:
        RecipeError: The folder holds no run.
        PlanError: The run is not finished.
    """
    options = replace(options_of(folder, LanguageOptions), test=data, accelerator=accelerator, progress=False)
    options = replace(options, batch_size=batch_size or options.batch_size)
    file = folder / VOCABULARY
    if not file.exists():
        raise RecipeError(f"{folder} has no {VOCABULARY}: add --resume to the command that trained, to finish it.")
    words = file.read_text(encoding="utf-8").split("\n")[:-1]
    return procedure.evaluate_folder(folder, recipe(options, Vocabulary(words)))


def table(summary: Mapping[str, Any]) -> str:
    """A summary as a table for people."""
    return procedure.table(
        summary, {"perplexity": "perplexity", "macs": "MACs per word", "latency_ms": "ms per window"}
    )
