"""Recipes that Keras trains."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import safetensors.numpy

import reprune.keras as verbs
from reprune.core.errors import RecipeError
from reprune.core.evidence.passes import Again, Labels
from reprune.core.methods import TRAINING_METHODS
from reprune.core.plan import Plan
from reprune.core.saving.files import replacing
from reprune.keras.surgery.expand import expand
from reprune.keras.tracing.graph import array, graph_of
from reprune.keras.weights import digest
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.keras_training import Checkpoints, Measurement, Pruning
from reprune.recipes.run.options import RunOptions
from reprune.recipes.run.procedure import Recipe

# Lightning's names for what Keras calls a policy.
_POLICIES = {"32-true": "float32", "16-mixed": "mixed_float16", "bf16-mixed": "mixed_bfloat16"}


class KerasRecipe(Recipe):
    """A recipe in Keras: what is left to bring is its model, its data, and how the one is trained on the other.

    Args:
        options: What to do.

    Attributes:
        labels: Classes of a training batch's sequences, where it has any.
        inputs: Whether the columns of embeddings are removed as well; see `Pruner`.

    Raises:
        RecipeError: The options ask for what only Lightning does.
    """

    labels: Labels | None = None
    inputs: bool = False

    def __init__(self, options: RunOptions) -> None:
        _check(options)
        self.options = options

    @abstractmethod
    def training_batches(self) -> Iterable[Any]:
        """Inputs and labels to train on, anew for every pass."""

    @abstractmethod
    def calibration(self) -> Iterable[Any]:
        """Inputs of the model from the training data, as many batches as the options say."""

    @abstractmethod
    def steps(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def compiled(self, model: Any) -> Any:
        """Compile the model for training; returns the optimizer that steps, without its loss scaling."""

    @abstractmethod
    def rate(self, optimizer: Any, *, finetune: bool) -> Any:
        """The callback that sets the learning rate."""

    @abstractmethod
    def metrics(self, model: Any, *, final: bool) -> dict[str, float]:
        """Metrics of a model on the data of the final measurement, or on those of the one after every epoch."""

    @abstractmethod
    def loop(
        self,
        model: Any,
        callbacks: Sequence[Any],
        start: tuple[int, int],
        epochs: int,
        *,
        offset: int,
        taught: RunFolder | None,
    ) -> None:
        """Train up to some number of epochs.

        Args:
            model: The compiled model.
            callbacks: Called as by `fit`.
            start: The epoch to begin with, and how many of its batches are used up.
            epochs: Where to end.
            offset: Added to the epoch, so that two parts of a run do not see the same order.
            taught: The folder whose `answers` are learned beside the labels, or None.
        """

    def carried(self, model: Any) -> list[Any]:
        """Variables beside the weights that a model carries from step to step: states, and those of random numbers."""
        weights = {id(weight) for weight in model.weights}
        held = [*graph_of(model).states(), *(v for layer in model.layers for v in layer.variables)]
        return list({id(variable): variable for variable in held if id(variable) not in weights}.values())

    def train(self, model: Any, folder: RunFolder) -> tuple[Any, Plan | None]:
        """Train the dense model; see `Recipe.train`."""
        return self.trained(model, self._fit(folder, "train", model, self.options.epochs, 0))

    def expand(self, small: Any, plan: Plan) -> tuple[Any, Plan]:
        """A full-size model that computes what a smaller one does, and the plan for it."""
        model = expand(self.build(), small, plan)
        return model, replace(plan, fitted_to=digest(model, plan.structure))

    def finetune(self, model: Any, folder: RunFolder) -> None:
        """Train the smaller model; see `Recipe.finetune`."""
        self._fit(folder, "finetune", model, self.options.finetune_epochs or 0, self.options.epochs)

    def plan(self, model: Any) -> Plan:
        """Decide which units go."""
        options = self.options
        with device(options):
            return verbs.plan(
                model,
                Again(self.calibration),
                ratio=options.ratio,
                of=options.of,
                scope=options.scope,
                method=options.method,
                seed=options.seed,
            )

    def apply(self, model: Any, plan: Plan) -> Any:
        """The smaller model."""
        return verbs.apply(model, plan)

    def measure(self, model: Any) -> dict[str, float]:
        """Metrics of a model on the data of the final measurement."""
        return self.metrics(model, final=True)

    def parameters(self, model: Any) -> int:
        """Number of parameters."""
        return int(model.count_params())

    def save(self, model: Any, path: Path) -> None:
        """Write the weights."""
        with replacing(path) as part:
            safetensors.numpy.save_file({name: array(v) for name, v in graph_of(model).weights().items()}, str(part))

    def load(self, model: Any, path: Path) -> Any:
        """Read weights into a model of their shapes, and return it."""
        found = safetensors.numpy.load_file(str(path))
        for name, variable in graph_of(model).weights().items():
            variable.assign(found[name])
        return model

    def load_pruned(self, dense_model: Any, directory: Path) -> Any:
        """The smaller model of a run's folder."""
        return verbs.load(dense_model, directory)

    def _pruner(self, model: Any) -> verbs.Pruner | None:
        """What prunes the compiled model while it trains."""
        options = self.options
        if not options.prunes_while_training:
            return None
        return verbs.Pruner(
            model,
            self.training_batches(),
            ratio=options.ratio,
            of=options.of,
            scope=options.scope,
            method=options.method,
            schedule=options.when,
            total_steps=self.steps() * options.epochs,
            labels=None if options.method in TRAINING_METHODS else self.labels,
            inputs=self.inputs,
            seed=options.seed,
        )

    def _fit(self, folder: RunFolder, part: str, model: Any, epochs: int, offset: int) -> verbs.Pruner | None:
        """Train for some epochs, from the part's checkpoint if there is one; what pruned meanwhile."""
        options = self.options
        optimizer = self.compiled(model)
        model.optimizer.build(model.trainable_variables)
        pruner = self._pruner(model) if part == "train" else None
        path = folder.checkpoint(part)
        checkpoints = Checkpoints(path, options.checkpoint_steps, model, pruner, self.carried(model))
        logs = folder.path / "logs" / part
        callbacks = [
            self.rate(optimizer, finetune=part == "finetune"),
            *([Pruning(pruner)] if pruner is not None else []),
            Measurement(logs, lambda: self.metrics(model, final=False)),
            *_curves(logs / "tensorboard"),
            # Last: a checkpoint must hold what all others did in that step.
            checkpoints,
        ]
        with checkpoints.interruptible(), device(options):
            taught = folder if options.teaches(part) else None
            self.loop(model, callbacks, checkpoints.load(), epochs, offset=offset, taught=taught)
        return pruner


def _curves(folder: Path) -> list[Any]:
    """TensorBoard's logs, where it is installed: TensorFlow does without it, and `metrics.csv` holds the same."""
    if find_spec("tensorboard") is None:
        return []
    return [keras.callbacks.TensorBoard(str(folder), write_graph=False)]


def _check(options: RunOptions) -> None:
    single = {"devices": ("1", "auto"), "strategy": ("auto",), "num_nodes": (1,), "workers": (0,)}
    for name, choices in {**single, "precision": tuple(_POLICIES)}.items():
        if getattr(options, name, choices[0]) not in choices:
            flag = name.replace("_", "-")
            raise RecipeError(
                f"--{flag} {getattr(options, name)}: with --framework keras, which trains on one device and reads "
                f"its data in a thread of its own, give {' or '.join(map(str, choices))}; or --framework torch."
            )


@contextmanager
def precision(options: RunOptions) -> Iterator[None]:
    """Within this context, layers are made in the precision that the options name."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[options.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def device(options: RunOptions) -> AbstractContextManager[Any]:
    """Within this context, Keras runs on the device that the options name."""
    if options.accelerator == "auto":
        return nullcontext()
    found: AbstractContextManager[Any] = keras.device("cpu:0" if options.accelerator == "cpu" else "gpu:0")
    return found


def scaled(optimizer: Any, options: RunOptions) -> Any:
    """The optimizer to compile with: half precision needs its losses scaled."""
    return keras.optimizers.LossScaleOptimizer(optimizer) if options.precision == "16-mixed" else optimizer
