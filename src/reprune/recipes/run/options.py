"""Options of the recipes: plain data, checked before anything is spent. Imports no framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, Self

from reprune.core.budget.budget import Budget
from reprune.core.budget.cost import Measure
from reprune.core.errors import RecipeError
from reprune.core.layers import Scope, checked_scope
from reprune.core.methods import TRAINING_METHODS, check_training_method, get_method
from reprune.core.schedule import Schedule, parse_schedule

# They change where and how fast a run goes, not what comes out, so a resumed run may differ in them.
_FREE = {"free": True}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every recipe asks: how long to train, how to prune, and on what hardware. Recipes derive theirs from it.

    Attributes:
        epochs: Passes over the training data before pruning is final.
        finetune_epochs: Passes after the model was shrunk; None for half of `epochs`, rounded up.
        batch_size: Sequences per optimiser step, over all devices together.
        clip_gradients: Largest norm of the gradient of a step; 0 for no limit.
        teach: Share of the dense model's answers, beside the labels', in what the smaller model is fine-tuned on; with
            `dense`, in what a model that is pruned while it trains learns.
        ratio: Fraction to remove.
        of: What the fraction is of: `units`, `parameters` or `macs`.
        scope: What counts as units: those of `recurrent` layers, or `all` widths.
        method: How units are chosen.
        schedule: When: `after` training, or `soft:S`, every S steps of it.
        calibration_batches: Training batches on which responses are observed with `after`.
        seed: Seed of weights, order of the data and everything else that is random.
        precision: Lightning's numeric precision, such as `16-mixed`.
        dense: Folder of a run whose dense model takes the place of training; methods that act on training start there.
        devices: Lightning's devices: a number, a list, or `auto`.
        num_nodes: Machines taking part.
        strategy: Lightning's strategy for several devices.
        accelerator: Lightning's accelerator: `cpu`, `gpu`, `auto` ….
        checkpoint_steps: Steps from one checkpoint to the next; there is one after every epoch as well.
        progress: Whether a progress bar is shown.

    Raises:
        RecipeError: When a value makes no sense.
    """

    recipe: ClassVar[str]
    _at_least_one: ClassVar[tuple[str, ...]] = ("epochs", "batch_size", "checkpoint_steps", "num_nodes")
    _not_negative: ClassVar[tuple[str, ...]] = ("finetune_epochs", "clip_gradients")
    _positive: ClassVar[tuple[str, ...]] = ("calibration_batches",)

    epochs: int
    finetune_epochs: int | None = None
    batch_size: int
    clip_gradients: float
    teach: float = 0.0
    ratio: float = 0.5
    of: Measure = "units"
    scope: Scope = "recurrent"
    method: str = "iss-gm"
    schedule: str = "after"
    calibration_batches: int = 100
    seed: int = 0
    precision: str = "32-true"
    dense: str = ""
    devices: str = "1"
    num_nodes: int = 1
    strategy: str = "auto"
    accelerator: str = field(default="auto", metadata=_FREE)
    checkpoint_steps: int = field(default=500, metadata=_FREE)
    progress: bool = field(default=True, metadata=_FREE)

    def __post_init__(self) -> None:
        if self.finetune_epochs is None:
            object.__setattr__(self, "finetune_epochs", (self.epochs + 1) // 2)
        for name in self._at_least_one:
            if getattr(self, name) < 1:
                raise RecipeError(f"--{_flag(name)} {getattr(self, name)} must be at least 1.")
        for name in self._not_negative:
            if getattr(self, name) < 0:
                raise RecipeError(f"--{_flag(name)} {getattr(self, name)} must not be negative.")
        for name in self._positive:
            if not getattr(self, name) > 0:
                raise RecipeError(f"--{_flag(name)} {getattr(self, name)} must be greater than 0.")
        if not 0 <= self.teach <= 1:
            raise RecipeError(f"--teach {self.teach} is a share: give a number from 0 to 1.")
        if self.teach and self.when.shrinks and not self.dense:
            raise RecipeError(
                f"--teach {self.teach} with --schedule {self.schedule}: the model shrinks while it trains, so there is "
                "no dense one to learn from. Give --dense DIR, the folder of a run that has trained one."
            )
        self._check_pruning()

    def _check_pruning(self) -> None:
        Budget(self.ratio, self.of)
        checked_scope(self.scope)
        check_training_method(self.method)
        parse_schedule(self.schedule)
        method = None if self.method in TRAINING_METHODS else get_method(self.method)
        labelled = self.has_labels and self.when.kind != "after"
        if method is not None and (method.needs_loss or (method.needs_labels and not labelled)):
            raise RecipeError(
                f"--method {self.method} looks at {'the loss' if method.needs_loss else 'labels'}, which this recipe "
                f"does not show it with --schedule {self.schedule}: give one that looks at weights and responses, such "
                "as iss-gm."
            )

    @property
    def has_labels(self) -> bool:
        """Whether the sequences of a training batch belong to classes."""
        return False

    @property
    def prunes_while_training(self) -> bool:
        """Whether pruning has a part in the training itself."""
        return self.when.kind != "after" or self.method in TRAINING_METHODS

    def teaches(self, part: str) -> bool:
        """Whether a dense model's answers are learned in a part of the run: `finetune`, or `train` with `dense`."""
        return self.teach > 0 and (part == "finetune" or bool(self.dense and self.prunes_while_training))

    @property
    def when(self) -> Schedule:
        """The schedule, parsed."""
        return parse_schedule(self.schedule)

    def to_dict(self) -> dict[str, Any]:
        """The options as JSON-clean data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options that `to_dict` wrote.

        Raises:
            RecipeError: When the values are not options of this recipe.
        """
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise RecipeError(f"These are not the options of a {cls.recipe} run: {error}.") from None

    def differences(self, other: RunOptions) -> list[str]:
        """How `other` differs in what changes the result, one line per option."""
        mine, theirs = self.to_dict(), other.to_dict()
        return [
            f"--{_flag(entry.name)}: {_shown(mine[entry.name])} before, {_shown(theirs[entry.name])} now"
            for entry in fields(self)
            if not entry.metadata.get("free") and mine[entry.name] != theirs[entry.name]
        ]


@dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """What to train on YouTube-8M records and how to prune it. Defaults are the paper's where it names a value.

    Attributes:
        train: Globs of the record files to train on.
        validate: Globs of the record files that are measured after every epoch, and at the end unless `test` is given.
        test: Globs of the record files of the final measurement.
        features: Feature lists in the records and their bytes per frame.
        classes: Number of classes.
        hidden: Units of the second LSTM; each direction of the first has half as many.
        normalize: Scale every frame to Euclidean length 1.
        max_frames: Longest window of a video that is used.
        learning_rate: Adam's step size at the start.
        decay: Factor on the step size after every `decay_examples` examples.
        decay_examples: See `decay`.
        output_decay: Weight of the L2 penalty on the output layer.
        on_error: What to do about a damaged record: `raise`, or `skip` it and say so.
        workers: Processes that read records.
        framework: What trains and runs the model: `torch` or `keras`.

    Raises:
        RecipeError: When a value makes no sense.
    """

    recipe: ClassVar[str] = "YouTube-8M"
    _at_least_one: ClassVar[tuple[str, ...]] = (*RunOptions._at_least_one, "classes", "max_frames", "decay_examples")
    _not_negative: ClassVar[tuple[str, ...]] = (*RunOptions._not_negative, "workers", "output_decay")
    _positive: ClassVar[tuple[str, ...]] = (*RunOptions._positive, "learning_rate", "decay")

    train: tuple[str, ...]
    validate: tuple[str, ...]
    test: tuple[str, ...] = ()
    features: Mapping[str, int] = field(default_factory=lambda: {"rgb": 1024, "audio": 128})
    classes: int = 3862
    hidden: int = 1024
    normalize: bool = True
    max_frames: int = 300
    epochs: int = 20
    batch_size: int = 160
    learning_rate: float = 2e-4
    decay: float = 0.95
    decay_examples: int = 4_000_000
    output_decay: float = 0.005
    clip_gradients: float = 1.0
    on_error: Literal["raise", "skip"] = "raise"
    workers: int = 0
    framework: str = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("train", "validate"):
            if not getattr(self, name):
                raise RecipeError(f"--{name} names no record files: give a path or a quoted glob.")
        if self.hidden < 2 or self.hidden % 2:
            raise RecipeError(f"--hidden {self.hidden} must be even: each direction of the first layer has half of it.")
        check_framework(self.framework)
        if self.on_error not in ("raise", "skip"):
            raise RecipeError(f"--on-error {self.on_error} must be 'raise' or 'skip'.")
        if self.scope == "all":
            raise RecipeError(
                "--scope all: the video classifier reads frames with its recurrent layers and classes with its output "
                "layer; it has no widths but their units. Leave --scope out."
            )

    @property
    def has_labels(self) -> bool:
        """Whether the sequences of a training batch belong to classes."""
        return True

    def staircase(self, step: int) -> float:
        """Factor on the learning rate after so many optimiser steps."""
        return self.decay ** (step * self.batch_size // self.decay_examples)

    @property
    def measured(self) -> tuple[str, ...]:
        """Globs of the records of the final measurement."""
        return self.test or self.validate


def check_framework(name: str) -> None:
    """Raise a `RecipeError` for what no recipe trains in."""
    if name not in ("torch", "keras"):
        raise RecipeError(f"--framework {name} must be 'torch' or 'keras'.")


def parse_features(text: str) -> dict[str, int]:
    """Read `rgb:1024,audio:128`.

    Raises:
        RecipeError: When the text is not of that form.
    """
    features = {}
    for part in text.split(","):
        name, _, size = part.strip().partition(":")
        if not name or not size.isdecimal() or int(size) < 1 or name in features:
            raise RecipeError(f"--features {text!r} is not NAME:SIZE[,NAME:SIZE…], such as rgb:1024,audio:128.")
        features[name] = int(size)
    return features


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}:{size}" for name, size in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
