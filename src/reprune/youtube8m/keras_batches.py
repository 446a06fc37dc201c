"""Feed YouTube-8M records to Keras: `tf.data` from the reader, and what turns bytes into features on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import keras
import numpy as np

from reprune.youtube8m.batches import batch_shape, contents, fill_frames, one_per_class
from reprune.youtube8m.epochs import Epochs, in_batches

Inputs = dict[str, Any]
"""`frames`: uint8, B × T × F, padded with zeros; `lengths`: int32, B."""


class RecordBatches:
    """Batches of inputs and labels, as `fit` takes them; every pass is the next epoch.

    With the same seed they are the batches that the PyTorch loader gives with `workers=0`.

    Args:
        epochs: What an epoch reads.
        batch_size: Videos per batch; the last one of an epoch may be smaller.

    Attributes:
        epoch: The epoch that the next pass reads.
        skip: How many of its first batches the next pass leaves out.
        answered: Replaces labels: a function of inputs and labels, or None.

    Example:
        >>> batches = RecordBatches(Epochs(find_files("train*.tfrecord"), 3862, DEFAULT_FEATURES), batch_size=160)
        >>> model.fit(batches.dataset(), epochs=20)                                     # doctest: +SKIP
    """

    def __init__(self, epochs: Epochs, batch_size: int) -> None:
        self.epoch = 0
        self.skip = 0
        self.answered: Callable[[Inputs, Any], Any] | None = None
        self._epochs = epochs
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Inputs, Any]]:
        """Inputs and labels (float32, B × classes) as arrays."""
        epoch, skip = self.epoch, self.skip
        # At the start of a pass, not at its end: a pass that is given up must not move a later one.
        self.epoch, self.skip = epoch + 1, 0
        _, records = self._epochs.open(epoch)
        for batch in islice(in_batches(records, self._batch_size), skip, None):
            frames = np.empty(batch_shape(batch, "mask", self._epochs.max_frames), np.uint8)
            fill_frames(frames, batch, "mask")
            rest = contents(batch, "mask", self._epochs.max_frames)
            labels = one_per_class(rest.labels, self._epochs.classes).astype(np.float32)
            inputs = {"frames": frames, "lengths": np.array(rest.lengths, np.int32)}
            yield inputs, labels if self.answered is None else self.answered(inputs, labels)

    def start(self, epoch: int, skip: int = 0) -> None:
        """Let the next pass be an epoch without its first batches."""
        self.epoch, self.skip = epoch, skip

    def dataset(self) -> Any:
        """The batches as a `tf.data.Dataset`, read ahead in a thread; each pass over it is one over this object."""
        # TensorFlow is asked for only here: everything else runs on any backend.
        import tensorflow as tf

        width = sum(self._epochs.features.values())
        inputs = {"frames": tf.TensorSpec((None, None, width), "uint8"), "lengths": tf.TensorSpec((None,), "int32")}
        signature = (inputs, tf.TensorSpec((None, self._epochs.classes), "float32"))
        return tf.data.Dataset.from_generator(lambda: iter(self), output_signature=signature).prefetch(2)


@keras.saving.register_keras_serializable(package="reprune")
class Dequantize(keras.layers.Layer):  # type: ignore[misc]
    """Quantised frames to features: x = q · 4/255 + 4/512 − 2; padding becomes 0.

    No valid frame is 0 throughout: no byte stands for 0. So `keras.layers.Masking` tells padding by it.

    Args:
        normalize: Scale every frame to unit L2 norm, as the paper does.
        options: Options of every Keras layer.

    Example:
        >>> Dequantize(normalize=False)(np.array([[[0, 255]]], "uint8"), np.array([1]))  # doctest: +SKIP
        [[[-1.9922, 2.0078]]]
    """

    def __init__(self, normalize: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.normalize = normalize

    def call(self, frames: Any, lengths: Any) -> Any:
        """Features (B × T × F) of frames (uint8, B × T × F), of which the first `lengths` (B) are valid."""
        # In float32 whatever the layer's precision: 16 bits cannot tell neighbouring values apart.
        features = keras.ops.cast(frames, "float32") * (4 / 255) + (4 / 512 - 2)
        if self.normalize:
            norm = keras.ops.sqrt(keras.ops.sum(keras.ops.square(features), -1, keepdims=True))
            features = features / keras.ops.maximum(norm, 1e-12)
        steps = keras.ops.arange(keras.ops.shape(frames)[1], dtype="int32")
        valid = steps < keras.ops.cast(lengths, "int32")[:, None]
        features = keras.ops.where(valid[..., None], features, 0.0)
        return keras.ops.cast(features, self.compute_dtype)

    def compute_output_shape(self, frames_shape: Any, lengths_shape: Any) -> Any:
        """The shape of the frames."""
        return frames_shape

    def get_config(self) -> dict[str, Any]:
        """What makes the layer anew."""
        return {**super().get_config(), "normalize": self.normalize}
