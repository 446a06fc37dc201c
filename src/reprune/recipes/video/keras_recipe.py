"""The YouTube-8M recipe in Keras."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import keras
import safetensors.numpy

import reprune.keras as verbs
from reprune.core.errors import RecipeError
from reprune.core.methods import TRAINING_METHODS
from reprune.core.plan import Plan
from reprune.core.saving.files import replacing
from reprune.keras.surgery.expand import expand
from reprune.keras.tracing.graph import array, graph_of
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.latency import latency_ms
from reprune.recipes.run.options import Options
from reprune.recipes.run.procedure import Recipe
from reprune.recipes.video.keras_training import (
    Checkpoints,
    LearningRate,
    Measurement,
    Pruning,
    loop,
    summed_cross_entropy,
)
from reprune.youtube8m.epochs import Epochs
from reprune.youtube8m.keras_batches import RecordBatches
from reprune.youtube8m.keras_model import video_classifier
from reprune.youtube8m.metrics import VideoMetrics
from reprune.youtube8m.records import count_records, find_files

# Lightning's names for what Keras calls a policy.
_POLICIES = {"32-true": "float32", "16-mixed": "mixed_float16", "bf16-mixed": "mixed_bfloat16"}


class YouTube8M(Recipe):
    """The paper's classifier on records of videos.

    Args:
        options: What to do.

    Raises:
        RecipeError: The options ask for what only Lightning does.
    """

    def __init__(self, options: Options) -> None:
        _check(options)
        self.options: Options = options

    def build(self) -> Any:
        """The dense model, always with the same weights for the same seed."""
        options = self.options
        keras.utils.set_random_seed(options.seed)
        features, penalty = sum(options.features.values()), options.output_decay
        with _precision(options), _device(options):
            return video_classifier(
                features, options.classes, options.hidden, normalize=options.normalize, output_decay=penalty
            )

    def train(self, model: Any, folder: RunFolder) -> tuple[Any, Plan | None]:
        """Train the dense model; see `Recipe.train`."""
        pruner = self._fit(folder, "train", model, self.options.epochs, 0)
        if pruner is None:
            return model, None
        small = pruner.finish()
        assert pruner.plan is not None
        if pruner.schedule.shrinks:
            model = expand(self.build(), small, pruner.plan)
        return model, pruner.plan

    def finetune(self, model: Any, folder: RunFolder) -> None:
        """Train the smaller model; see `Recipe.finetune`."""
        teacher = self.load(self.build(), folder.path / "dense.safetensors") if self.options.teach else None
        self._fit(folder, "finetune", model, self.options.finetune_epochs or 0, self.options.epochs, teacher)

    def plan(self, model: Any) -> Plan:
        """Decide which units go."""
        options = self.options
        batches = islice(self.batches(options.train, training=True), options.calibration_batches)
        with _device(options):
            return verbs.plan(
                model,
                (inputs for inputs, _ in batches),
                ratio=options.ratio,
                of=options.of,
                method=options.method,
                seed=options.seed,
            )

    def apply(self, model: Any, plan: Plan) -> Any:
        """The smaller model."""
        return verbs.apply(model, plan)

    def measure(self, model: Any) -> dict[str, float]:
        """GAP, mAP, Hit@1 and PERR of a model on the records of the final measurement."""
        return self._metrics(model, self.options.measured)

    def parameters(self, model: Any) -> int:
        """Number of parameters."""
        return int(model.count_params())

    def latencies(self, models: Mapping[str, Any]) -> dict[str, float]:
        """Milliseconds of each model for the longest of the first measured videos, on the CPU."""
        inputs, _ = next(iter(self.batches(self.options.measured, training=False)))
        which = int(inputs["lengths"].argmax())
        video = {name: value[which : which + 1] for name, value in inputs.items()}
        with keras.device("cpu:0"):
            return latency_ms({name: partial(model.predict_on_batch, video) for name, model in models.items()})

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

    def batches(self, paths: tuple[str, ...], *, training: bool) -> RecordBatches:
        """The records of some files."""
        options = self.options
        epochs = Epochs(
            find_files(paths),
            options.classes,
            options.features,
            options.max_frames,
            "random" if training else "first",
            shuffle=training,
            seed=options.seed,
            on_error=options.on_error,
        )
        return RecordBatches(epochs, options.batch_size)

    def _pruner(self, model: Any) -> verbs.Pruner | None:
        """What prunes the compiled model while it trains."""
        options = self.options
        if not options.prunes_while_training:
            return None
        steps = math.ceil(count_records(options.train) / options.batch_size) * options.epochs
        return verbs.Pruner(
            model,
            self.batches(options.train, training=True),
            ratio=options.ratio,
            of=options.of,
            method=options.method,
            schedule=options.when,
            total_steps=steps,
            labels=_labels if options.method not in TRAINING_METHODS else None,
            seed=options.seed,
        )

    def _fit(
        self, folder: RunFolder, part: str, model: Any, epochs: int, offset: int, teacher: Any = None
    ) -> verbs.Pruner | None:
        """Train for some epochs, from the part's checkpoint if there is one; what pruned meanwhile."""
        options = self.options
        adam = keras.optimizers.Adam(
            options.learning_rate, epsilon=1e-8, global_clipnorm=options.clip_gradients or None, name="adam"
        )
        optimizer = keras.optimizers.LossScaleOptimizer(adam) if options.precision == "16-mixed" else adam
        # Compiling anew for every length of a batch would take longer than the batches.
        model.compile(optimizer=optimizer, loss=summed_cross_entropy, jit_compile=False, auto_scale_loss=False)
        optimizer.build(model.trainable_variables)
        pruner = self._pruner(model) if part == "train" else None
        checkpoints = Checkpoints(folder.checkpoint(part), options.checkpoint_steps, model, pruner)
        logs = folder.path / "logs" / part
        callbacks = [
            # The paper's schedule falls too slowly to end a short fine-tuning on a quiet note.
            LearningRate(adam, options, epochs if part == "finetune" else None),
            *([Pruning(pruner)] if pruner is not None else []),
            Measurement(logs, lambda: self._metrics(model, options.validate)),
            keras.callbacks.TensorBoard(str(logs / "tensorboard"), write_graph=False),
            # Last: a checkpoint must hold what all others did in that step.
            checkpoints,
        ]
        batches = self.batches(options.train, training=True)
        batches.answered = None if teacher is None else partial(_shared, teacher, options.teach)
        with checkpoints.interruptible(), _device(options):
            loop(model, batches, callbacks, checkpoints.load(), epochs, offset=offset, progress=options.progress)
        return pruner

    def _metrics(self, model: Any, paths: tuple[str, ...]) -> dict[str, float]:
        metrics = VideoMetrics(self.options.classes)
        with _device(self.options):
            for inputs, labels in self.batches(paths, training=False):
                logits = model.predict_on_batch(inputs)
                metrics.update(array(keras.ops.sigmoid(logits)), labels > 0)
        return metrics.compute()


def _shared(teacher: Any, share: float, inputs: Any, labels: Any) -> Any:
    """Labels, of which a share is what the teacher answers."""
    answers = array(keras.ops.sigmoid(teacher.predict_on_batch(inputs)))
    return (labels + share * (answers - labels)).astype(labels.dtype)


def _labels(batch: Any) -> Any:
    """Ones and zeros of a batch's classes."""
    return batch[1] > 0


def _check(options: Options) -> None:
    single = {"devices": ("1", "auto"), "strategy": ("auto",), "num_nodes": (1,), "workers": (0,)}
    for name, choices in {**single, "precision": tuple(_POLICIES)}.items():
        if getattr(options, name) not in choices:
            flag = name.replace("_", "-")
            raise RecipeError(
                f"--{flag} {getattr(options, name)}: with --framework keras, which trains on one device and reads "
                f"records in a thread of its own, give {' or '.join(map(str, choices))}; or --framework torch."
            )


@contextmanager
def _precision(options: Options) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(_POLICIES[options.precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _device(options: Options) -> AbstractContextManager[Any]:
    if options.accelerator == "auto":
        return nullcontext()
    device: AbstractContextManager[Any] = keras.device("cpu:0" if options.accelerator == "cpu" else "gpu:0")
    return device
