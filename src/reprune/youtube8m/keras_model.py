"""The paper's video classifier in Keras: bidirectional LSTM → LSTM → one sigmoid per class."""

from __future__ import annotations

from typing import Any

import keras

from reprune.youtube8m.keras_batches import Dequantize


def video_classifier(
    features: int, classes: int, hidden: int = 1024, *, normalize: bool = True, output_decay: float = 0.0
) -> Any:
    """Bidirectional LSTM → LSTM → linear map, which gives one logit per class.

    The last valid state of the second LSTM is classified; padding is masked and never counts. It computes what
    `youtube8m.model.VideoClassifier` does with the same weights.

    Args:
        features: Numbers per frame.
        classes: Number of classes; a video may belong to several.
        hidden: Units of the second LSTM; each direction of the first one has half as many.
        normalize: Scale every frame to Euclidean length 1 first.
        output_decay: Weight of the L2 penalty λ/2 ‖W‖² on the output layer's kernel.

    Returns:
        A functional model of `{"frames": uint8 B × T × F, "lengths": int32 B}`.

    Raises:
        ValueError: When `hidden` is odd.

    Example:
        >>> model = video_classifier(features=1152, classes=3862)
        >>> logits = model({"frames": frames, "lengths": lengths})       # doctest: +SKIP
    """
    if hidden < 2 or hidden % 2:
        raise ValueError(f"hidden={hidden} must be even: each direction of the first layer has half of it.")
    frames = keras.Input((None, features), dtype="uint8", name="frames")
    lengths = keras.Input((), dtype="int32", name="lengths")
    half = keras.layers.LSTM(hidden // 2, return_sequences=True)
    x = Dequantize(normalize, name="dequantize")(frames, lengths)
    x = keras.layers.Masking(0.0, name="masking")(x)
    x = keras.layers.Bidirectional(half, name="bidirectional")(x)
    x = keras.layers.LSTM(hidden, name="recurrent")(x)
    # Keras's L2 has no half.
    penalty = keras.regularizers.L2(output_decay / 2) if output_decay else None
    logits = keras.layers.Dense(classes, kernel_regularizer=penalty, dtype="float32", name="output")(x)
    return keras.Model({"frames": frames, "lengths": lengths}, logits, name="video_classifier")
