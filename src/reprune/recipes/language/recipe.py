"""Word-level language modelling: train → prune → fine-tune → evaluate on a user's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from torch import Tensor, nn

from reprune.core.errors import RecipeError
from reprune.recipes.language.data import Text, Vocabulary
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.word_model import LanguageModule, WordModel
from reprune.recipes.run import procedure
from reprune.recipes.run.folder import options_of
from reprune.recipes.run.procedure import Say, Summary
from reprune.recipes.run.torch_recipe import TorchRecipe

VOCABULARY = "vocabulary.txt"


class LanguageModel(TorchRecipe):
    """Stacked LSTMs that predict the next word.

    Args:
        options: What to do.
        vocabulary: The words that the model knows; those of the training text if not given.
    """

    metrics = ("perplexity",)

    def __init__(self, options: LanguageOptions, vocabulary: Vocabulary | None = None) -> None:
        self.options: LanguageOptions = options
        self.inputs = options.inputs
        self._given = vocabulary
        self._texts: dict[str, Tensor] = {}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The words that the model knows."""
        return self._given or Vocabulary.of(self.options.train, self.options.vocabulary)

    def build(self) -> WordModel:
        """The dense model, always with the same weights for the same seed."""
        seed_everything(self.options.seed, verbose=False)
        options = self.options
        return WordModel(
            len(self.vocabulary), options.hidden, options.layers, dropout=options.dropout, init=options.init
        )

    def data(self, offset: int = 0) -> Text:
        """The texts; every epoch reads them in the same order."""
        return Text(self.options, self.read)

    def read(self, path: str) -> Tensor:
        """The numbers of the words of a text, which is read once.

        Raises:
            RecipeError: When it cannot be read, or is too short.
        """
        if path not in self._texts:
            self._texts[path] = self.vocabulary.encode(path)
        return self._texts[path]

    def module(self, model: nn.Module, *, finetune: bool = False, teacher: nn.Module | None = None) -> LanguageModule:
        """The model with its loss, optimiser, carried state and perplexity."""
        if teacher is not None and isinstance(model, WordModel):
            # A smaller model that learns from answers learns less by heart: it takes less dropout.
            named = model.recurrent.named_parameters()
            units = sum(weight.shape[1] for name, weight in named if name.endswith("weight_hh_l0"))
            model.dropout.p = self.options.dropout * (units / (self.options.layers * self.options.hidden)) ** 0.5
        return LanguageModule(model, self.options, finetune=finetune, teacher=teacher)

    def files(self) -> Mapping[str, str]:
        """The vocabulary, one word a line, in the order of their numbers."""
        return {VOCABULARY: "".join(f"{word}\n" for word in self.vocabulary.words)}


def run(options: LanguageOptions, out: Path, *, resume: bool = False, say: Say = lambda _: None) -> Summary:
    """Train, prune, fine-tune and evaluate; everything lands in a folder. See `procedure.run`.

    Raises:
        RecipeError: The folder cannot be written, or holds another run; a text is missing or too short.
        InterruptedRunError: The user asked to stop.
    """
    recipe = LanguageModel(options)
    for path in (options.train, options.valid, options.test):
        recipe.read(path)
    return procedure.run(recipe, out, resume=resume, say=say)


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
    return procedure.evaluate_folder(folder, LanguageModel(options, Vocabulary(words)))


def table(summary: Mapping[str, Any]) -> str:
    """A summary as a table for people."""
    return procedure.table(
        summary, {"perplexity": "perplexity", "macs": "MACs per word", "latency_ms": "ms per window"}
    )
