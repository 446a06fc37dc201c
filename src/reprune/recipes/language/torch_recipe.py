"""The language-model recipe in PyTorch."""

from __future__ import annotations

from lightning.pytorch import seed_everything
from torch import nn

from reprune.recipes.language.data import Text
from reprune.recipes.language.options import LanguageOptions
from reprune.recipes.language.text import Reader, Vocabulary
from reprune.recipes.language.word_model import LanguageModule, WordModel
from reprune.recipes.run.torch_recipe import TorchRecipe


class LanguageModel(Reader, TorchRecipe):
    """Stacked LSTMs that predict the next word.

    Args:
        options: What to do.
        vocabulary: The words that the model knows; those of the training text if not given.
    """

    options: LanguageOptions
    metrics = ("perplexity",)

    def __init__(self, options: LanguageOptions, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(options, vocabulary)
        self.inputs = options.inputs

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

    def module(self, model: nn.Module, *, finetune: bool = False) -> LanguageModule:
        """The model with its loss, optimiser, carried state and perplexity."""
        if finetune and isinstance(model, WordModel):
            named = model.recurrent.named_parameters()
            units = sum(weight.shape[1] for name, weight in named if name.endswith("weight_hh_l0"))
            model.dropout.p = self.options.dropout_of(units)
        return LanguageModule(model, self.options, finetune=finetune)
