"""The YouTube-8M recipe in Keras."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import keras

from reprune.core.saving.arrays import StoredArrays
from reprune.keras.tracing.graph import array
from reprune.recipes.run.folder import RunFolder
from reprune.recipes.run.keras_recipe import KerasRecipe, device, precision, scaled
from reprune.recipes.run.latency import latency_ms
from reprune.recipes.run.options import Options
from reprune.recipes.video.answers import VideoAnswers, said_of, store
from reprune.recipes.video.keras_training import LearningRate, loop, summed_cross_entropy
from reprune.youtube8m.epochs import Epochs
from reprune.youtube8m.keras_batches import RecordBatches
from reprune.youtube8m.keras_model import video_classifier
from reprune.youtube8m.metrics import VideoMetrics
from reprune.youtube8m.records import count_records, find_files


class YouTube8M(KerasRecipe):
    """The paper's classifier on records of videos."""

    options: Options

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.labels = _labels

    def build(self) -> Any:
        """The dense model, always with the same weights for the same seed."""
        options = self.options
        keras.utils.set_random_seed(options.seed)
        features, penalty = sum(options.features.values()), options.output_decay
        with precision(options), device(options):
            return video_classifier(
                features, options.classes, options.hidden, normalize=options.normalize, output_decay=penalty
            )

    def training_batches(self) -> RecordBatches:
        """The records to train on."""
        return self.batches(self.options.train, training=True)

    def calibration(self) -> Iterator[Any]:
        """Inputs of the first batches to train on."""
        return (inputs for inputs, _ in islice(self.training_batches(), self.options.calibration_batches))

    def steps(self) -> int:
        """Batches of an epoch."""
        return math.ceil(count_records(self.options.train) / self.options.batch_size)

    def compiled(self, model: Any) -> Any:
        """Compile with Adam as the paper sets it."""
        options = self.options
        adam = keras.optimizers.Adam(
            options.learning_rate, epsilon=1e-8, global_clipnorm=options.clip_gradients or None, name="adam"
        )
        # Compiling anew for every length of a batch would take longer than the batches.
        model.compile(scaled(adam, options), summed_cross_entropy, jit_compile=False, auto_scale_loss=False)
        return adam

    def rate(self, optimizer: Any, *, finetune: bool) -> LearningRate:
        """The paper's schedule, which falls too slowly to end a short fine-tuning on a quiet note."""
        return LearningRate(optimizer, self.options, self.options.finetune_epochs if finetune else None)

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
        """Call `fit` for each epoch."""
        batches = self.training_batches()
        if taught is not None:
            answers = VideoAnswers([StoredArrays(taught.answers / "0")], partial(_ask, self.teacher(taught)))
            batches.answered = partial(_shared, answers, self.options.teach)
        loop(model, batches, callbacks, start, epochs, offset=offset, progress=self.options.progress)

    def answer(self, folder: RunFolder) -> str:
        """See `Recipe.answer`; videos are asked about in the order of the files."""
        stored, longest = StoredArrays(folder.answers / "0"), self.options.max_frames
        if stored.done:
            return ""
        with device(self.options):
            pairs = (
                (inputs["frames"], inputs["lengths"]) for inputs, _ in self.batches(self.options.train, training=False)
            )
            return said_of(*store(stored, pairs, partial(_ask, self.teacher(folder)), longest), longest)

    def metrics(self, model: Any, *, final: bool) -> dict[str, float]:
        """GAP, mAP, Hit@1 and PERR of a model."""
        metrics = VideoMetrics(self.options.classes)
        with device(self.options):
            for inputs, labels in self.batches(
                self.options.measured if final else self.options.validate, training=False
            ):
                logits = model.predict_on_batch(inputs)
                metrics.update(array(keras.ops.sigmoid(logits)), labels > 0)
        return metrics.compute()

    def latencies(self, models: Mapping[str, Any]) -> dict[str, float]:
        """Milliseconds of each model for the longest of the first measured videos, on the CPU."""
        inputs, _ = next(iter(self.batches(self.options.measured, training=False)))
        which = int(inputs["lengths"].argmax())
        video = {name: value[which : which + 1] for name, value in inputs.items()}
        with keras.device("cpu:0"):
            return latency_ms({name: partial(model.predict_on_batch, video) for name, model in models.items()})

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


def _labels(batch: Any) -> Any:
    """Ones and zeros of a batch's classes."""
    return batch[1] > 0


def _ask(teacher: Any, frames: Any, lengths: Any) -> Any:
    """Logits of videos."""
    return array(teacher.predict_on_batch({"frames": frames, "lengths": lengths})).astype("float32")


def _shared(answers: VideoAnswers, share: float, inputs: Any, labels: Any) -> Any:
    """Labels, of which a share is what the dense model answers."""
    chances = array(keras.ops.sigmoid(answers(inputs["frames"], inputs["lengths"])))
    return (labels + share * (chances - labels)).astype(labels.dtype)
