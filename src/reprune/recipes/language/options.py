"""Options of the language-model recipe, and the settings of Zaremba et al. Imports no framework.

W. Zaremba, I. Sutskever, O. Vinyals, "Recurrent Neural Network Regularization", arXiv 1409.2329 (2014), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from reprune.core.errors import RecipeError
from reprune.recipes.run.options import RunOptions, check_framework

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "small": {
            "hidden": 200,
            "dropout": 0.0,
            "init": 0.1,
            "decay": 1 / 2,
            "decay_after": 4,
            "epochs": 13,
            "unroll": 20,
            "clip_gradients": 5.0,
        },
        "medium": {
            "hidden": 650,
            "dropout": 0.5,
            "init": 0.05,
            "decay": 1 / 1.2,
            "decay_after": 6,
            "epochs": 39,
            "unroll": 35,
            "clip_gradients": 5.0,
        },
        "large": {
            "hidden": 1500,
            "dropout": 0.65,
            "init": 0.04,
            "decay": 1 / 1.15,
            "decay_after": 14,
            "epochs": 55,
            "unroll": 35,
            "clip_gradients": 10.0,
        },
    }
)


@dataclass(frozen=True, kw_only=True)
class LanguageOptions(RunOptions):
    """What language model to train and how to prune it. Defaults are Zaremba's large setting.

    Attributes:
        train: The text to train on: plain or gzipped, UTF-8, words separated by white space.
        valid: The text that is measured after every epoch.
        test: The text of the final measurement.
        vocabulary: Size of the vocabulary: the most frequent words of `train`, `<eos>` and `<unk>` included.
        layers: Number of LSTM layers.
        hidden: Units of each, and numbers that stand for a word.
        dropout: Fraction dropped between layers, before the first and after the last.
        finetune_dropout: The same while the smaller model is fine-tuned; None for less the fewer units are left.
        init: Weights start uniformly between minus this and this.
        unroll: Words through which a gradient flows back.
        learning_rate: Step size of gradient descent on the loss summed over a window and averaged over its streams.
        decay: Factor on the step size after every epoch from `decay_after` on.
        decay_after: Epochs with the first step size.
        weight_decay: What a step of size 1 takes off every weight, as a fraction of it, in training and fine-tuning.
        written: Words that the dense model writes, for the smaller one to read beside the text, with its answers.
        inputs: Whether `neuron-selection` removes numbers that stand for a word as well.
        framework: What trains and runs the model: `torch` or `keras`.

    Raises:
        RecipeError: When a value makes no sense.
    """

    recipe: ClassVar[str] = "language-model"
    _at_least_one: ClassVar[tuple[str, ...]] = (*RunOptions._at_least_one, "layers", "hidden", "unroll")
    _not_negative: ClassVar[tuple[str, ...]] = (*RunOptions._not_negative, "decay_after", "weight_decay", "written")
    _positive: ClassVar[tuple[str, ...]] = (*RunOptions._positive, "init", "learning_rate", "decay")

    train: str
    valid: str
    test: str
    vocabulary: int = 10_000
    layers: int = 2
    hidden: int = 1500
    dropout: float = 0.65
    finetune_dropout: float | None = None
    init: float = 0.04
    unroll: int = 35
    epochs: int = 55
    batch_size: int = 20
    learning_rate: float = 1.0
    decay: float = 1 / 1.15
    decay_after: int = 14
    weight_decay: float = 0.0
    clip_gradients: float = 10.0
    method: str = "reconstruct"
    written: int = 0
    inputs: bool = False
    framework: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_framework(self.framework)
        if self.vocabulary < 3:
            raise RecipeError(f"--vocabulary {self.vocabulary} must be at least 3: <unk>, <eos> and a word.")
        for name in ("dropout", "finetune_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                flag = name.replace("_", "-")
                raise RecipeError(f"--{flag} {getattr(self, name)} is a fraction: give a number from 0 to under 1.")
        if self.written and not self.teach:
            raise RecipeError(f"--written {self.written} is for a smaller model to learn from. Add --teach 0.5.")
        if self.written and self.framework == "keras":
            raise RecipeError(f"--written {self.written}: no text is written with Keras. Add --framework torch.")
        if self.inputs and self.method != "neuron-selection":
            raise RecipeError(
                f"--inputs: --method {self.method} removes hidden units only. Give --method neuron-selection, or leave "
                "--inputs out."
            )

    def dropout_of(self, units: int) -> float:
        """The dropout of a smaller model in fine-tuning: it learns less by heart, and takes less."""
        if self.finetune_dropout is not None:
            return self.finetune_dropout
        return float(self.dropout * (units / (self.layers * self.hidden)) ** 0.5)

    def falling(self, epoch: int) -> float:
        """Factor on the step size in an epoch, counted from 0."""
        return float(self.decay ** max(epoch + 1 - self.decay_after, 0))

    @property
    def rewound(self) -> int:
        """The epoch of training whose step size fine-tuning begins with, to end as training did.

        Learning-rate rewinding: A. Renda, J. Frankle, M. Carbin, "Comparing Rewinding and Fine-tuning in Neural Network
        Pruning", ICLR 2020.
        """
        return max(self.epochs - (self.finetune_epochs or 0), 0)


def with_preset(preset: str, given: Mapping[str, Any]) -> LanguageOptions:
    """A preset's settings, but for those that are given (and not None).

    Raises:
        RecipeError: When there is no such preset, or a value makes no sense.

    Example:
        >>> with_preset("small", {"train": "a", "valid": "b", "test": "c", "epochs": 2, "hidden": None}).epochs
        2
    """
    if preset not in PRESETS:
        raise RecipeError(f"--preset {preset} is not one of {', '.join(PRESETS)}.")
    return LanguageOptions(**{**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}})
